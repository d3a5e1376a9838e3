"""The verbs of a device, for `compressor device` and `python -m compressor.device`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import storage_error

if TYPE_CHECKING:
    from compressor.device.source import Source
    from compressor.device.versions import Installed, Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs and their flags. Imports nothing heavy."""
    verbs = parser.add_subparsers(dest="device_verb", required=True, metavar="VERB")
    install = _verb(
        verbs, "install", "check, test and install a signed bundle; the old one serves until the new one may"
    )
    install.add_argument("bundle", metavar="BUNDLE", help="a folder, a .tar or .tar.zst file, or - for a .tar on stdin")
    install.add_argument("--delta", action="store_true", help="BUNDLE has only the difference from the current version")
    install.add_argument("--public-key", metavar="FILE", help="whose signatures count, where no key is trusted yet")
    _verb(verbs, "status", "what is installed, and whether it is whole")
    _verb(verbs, "rollback", "make the version before current again")


def run(options: argparse.Namespace) -> None:
    """Runs one verb and prints what it did. Raises what it raises, and StorageError where the file system refuses."""
    try:
        _run(options)
    except OSError as error:
        raise (storage_error(error) or error) from None


def _run(options: argparse.Namespace) -> None:
    from compressor.device import versions
    from compressor.device.state import CURRENT

    root = Path(options.root)
    if options.device_verb == "install":
        public_key = Path(options.public_key) if options.public_key else None
        with _source(Path(options.bundle), root / CURRENT if options.delta else None) as source:
            found: Status | Installed = versions.install(source, root, public_key)
    elif options.device_verb == "rollback":
        found = versions.rollback(root)
    else:
        found = versions.status(root)
        versions.check_current(root)
    if options.json:
        print(json.dumps(versions.described(found), indent=1))
    else:
        print(_line(root, found))


@contextmanager
def _source(bundle: Path, base: Path | None) -> Iterator[Source]:
    from compressor.device.delta import delta_source
    from compressor.device.source import open_archive, open_source

    if base is None:
        with open_source(bundle) as source:
            yield source
    else:
        with open_archive(bundle) as stream:
            yield delta_source(stream, base)


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.add_argument("--root", required=True, metavar="FOLDER", help="where versions are kept; `current` is in it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _line(root: Path, done: Status | Installed) -> str:
    from compressor.device.versions import Installed

    found, tested = (done.status, done.self_test) if isinstance(done, Installed) else (done, None)
    if found.current is None:
        return f"{root}: nothing is installed"
    back = f"rollback to {found.previous[:16]}" if found.previous else "nothing to go back to"
    line = f"{root}: {found.product} version {found.version}, {found.current[:16]}; floor {found.floor}; {back}"
    if tested is None:
        return line
    return (
        f"{line}; self-test: {tested.cases} golden cases in {tested.seconds:.2f} s,"
        f" lowest cosine {tested.min_cosine:.6f}, {tested.peak_ram_bytes / 1e6:.0f} MB of memory"
    )
