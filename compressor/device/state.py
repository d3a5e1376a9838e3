"""What a device remembers of its versions, and which of them is current."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.device import disk
from compressor.errors import BundleError, StorageError
from compressor.intake.json_text import strict_json

CURRENT, VERSIONS, STATE = "current", "versions", "state.json"
STATE_VERSION = 1
AGAIN = ".1"  # ends the name of a version that was put there anew

_NAME = re.compile(rf"[0-9a-f]{{64}}({re.escape(AGAIN)})?", re.ASCII)


@dataclass(frozen=True)
class State:
    """What must be remembered. `floor`: the highest version that was committed, `floor_id` the one that had it.

    `previous` is what a rollback goes to. `pending`: a swap to it was about to happen, away from `replaced`. All three
    are names in `versions`.
    """

    format_version: int = STATE_VERSION
    product: str | None = None
    floor: int = 0
    floor_id: str | None = None
    previous: str | None = None
    pending: str | None = None
    replaced: str | None = None


def id_of(name: str) -> str:
    """The id of the version whose folder in `versions` has this name."""
    return name.removesuffix(AGAIN)


def current_version(root: Path) -> str | None:
    """The name in `versions` of what serves; None where nothing does. Raises StorageError where `current`
    is no such link.
    """
    try:
        target = (root / CURRENT).readlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise StorageError(f"{root / CURRENT}: expected a link into {VERSIONS}, got none; remove it") from None
    if str(target.parent) != VERSIONS or not _NAME.fullmatch(target.name):
        raise StorageError(f"{root / CURRENT}: expected a link into {VERSIONS}, got one to {target}; remove it")
    return target.name


def read_state(root: Path) -> State:
    """Raises StorageError where it is damaged, or missing although a version is current."""
    path = root / STATE
    try:
        found = strict_json(path.read_bytes(), str(path), BundleError)
    except FileNotFoundError:
        if current_version(root) is None:
            return State()
        found = None  # the floor is lost: not to be begun anew
    except BundleError:
        found = None
    if not _is_state(found):
        raise StorageError(f"{path}: expected the state of a device, got none; it must be restored by hand")
    return State(**found)


def _is_state(found: Any) -> bool:
    if not isinstance(found, dict) or set(found) != set(asdict(State())):
        return False
    if any(type(found[key]) is not int for key in ("format_version", "floor")):  # nor True
        return False
    names = [found[key] for key in ("floor_id", "previous", "pending", "replaced")]
    return (
        found["format_version"] == STATE_VERSION
        and found["floor"] >= 0
        and isinstance(found["product"], str | None)
        and all(name is None or (isinstance(name, str) and _NAME.fullmatch(name)) for name in names)
    )


def write_state(root: Path, state: State) -> None:
    """At any moment the old one or the new one is there."""
    disk.replace_file(root / STATE, (json.dumps(asdict(state), indent=1) + "\n").encode())
