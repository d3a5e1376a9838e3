"""One installer at a time in the folder of a device, which it makes where there is none."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compressor.device import disk
from compressor.device.state import STATE, VERSIONS, current_version
from compressor.errors import StorageError

KEYS, LOCK = "keys", ".lock"


@contextmanager
def alone_on(root: Path) -> Iterator[None]:
    """Makes the folder of a device and holds it. Raises StorageError when another installer holds it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StorageError(f"{root}: expected a folder for versions, found a file; choose another") from None
    with (root / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{root}: another installer is at work; wait for it") from None
        try:
            _make_folders(root)
            yield
        except BaseException:
            if current_version(root) is None and not (root / STATE).exists():
                _leave_no_folders(root)
            raise


def _make_folders(root: Path) -> None:
    for folder in (root / VERSIONS, root / KEYS):
        if folder.is_dir():
            continue
        try:
            disk.make_folder(folder)
        except FileExistsError:
            raise StorageError(f"{folder}: expected a folder, found a file; remove it") from None


def _leave_no_folders(root: Path) -> None:
    """After a first installation that was refused. The lock stays, as another may hold it by now."""
    for folder in (root / VERSIONS, root / KEYS):
        with suppress(OSError):  # one that holds something
            folder.rmdir()
