"""Every change that the device side makes on its disk. What a power cut can leave behind is decided here.

A file is written and synced under a name that nothing refers to; a rename within one folder makes it count; the folder
is synced before anything relies on that. All goes through `os`, so that a test can stop the world before any call.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

UNFINISHED = ".unfinished-"  # how everything is called that a killed process leaves


def unfinished(folder: Path) -> Path:
    """A new name in the folder, for what is not finished."""
    return folder / f"{UNFINISHED}{secrets.token_hex(8)}"


def make_folder(path: Path) -> None:
    """Makes one folder, and its entry durable."""
    os.mkdir(path, 0o755)  # noqa: PTH102 (of this module's `os`)
    sync_folder(path.parent)


def write_new(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file that is not there yet, and syncs its content; its folder is the caller's to sync."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Puts a file in the place of one that may be there: at any moment the old one or the new one, whole."""
    new = unfinished(path.parent)
    write_new(new, [content])
    move(new, path)


def replace_link(path: Path, target: str) -> None:
    """Points a symbolic link at another target: at any moment it has the old one or the new one."""
    new = unfinished(path.parent)
    os.symlink(target, new)  # noqa: PTH211 (of this module's `os`)
    move(new, path)


def move(new: Path, final: Path) -> None:
    """Renames within one folder, and makes that durable."""
    os.replace(new, final)  # noqa: PTH105 (of this module's `os`)
    sync_folder(final.parent)


def sync_folder(path: Path) -> None:
    """Makes durable which names a folder holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; follows no link."""
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)  # noqa: PTH108 (of this module's `os`)
        return
    for inner in sorted(path.iterdir()):
        remove(inner)
    os.rmdir(path)  # noqa: PTH106 (of this module's `os`)


def sweep(folder: Path) -> None:
    """Removes what a killed process left unfinished in a folder."""
    for path in folder.glob(f"{UNFINISHED}*"):
        remove(path)
