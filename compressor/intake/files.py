"""Files from outside: regular ones, of a bounded size, and within the folder that they are read from.

Nothing here holds off somebody who changes a file while it is read: who can do that writes where you read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from compressor.errors import CompressorError


def open_regular(path: Path, error: type[CompressorError], *, links: bool = True) -> BinaryIO:
    """A regular file, open for reading; what a FIFO or a device would give is never waited for.

    A path that the user names may be a link; of others only with `links`. Raises `error`.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as found:
        raise error(f"{path}: expected a file, cannot open it: {(found.strerror or '').lower()}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        got = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise error(f"{path}: expected a regular file, got {got}; name a file")
    return os.fdopen(descriptor, "rb")


def state_of(path: Path, error: type[CompressorError]) -> tuple[int, ...]:
    """What of a regular file is another where its content is: device, inode, time of change and, last, size in bytes.

    Raises `error`.
    """
    with open_regular(path, error) as file:
        status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def read_bounded(path: Path, most: int, error: type[CompressorError]) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises `error`."""
    with open_regular(path, error) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise error(f"{path}: expected at most {most:,} bytes, got more; shorten it")
    return content


def check_within(path: Path, root: Path, error: type[CompressorError]) -> None:
    """What `path` leads to lies in the folder `root`, or is what a link of the hub's cache leads to. Raises `error`."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        raise error(f"{path}: a link that leads nowhere; copy the file itself") from None
    if not target.is_relative_to(root.resolve()) and not _in_hub_cache(path, target):
        raise error(f"{path}: leads out of {root}; copy the file itself into the folder")


def open_contained(root: Path, location: str, error: type[CompressorError]) -> BinaryIO:
    """The regular file at a place that another file names, relative to the folder `root`, open for reading.

    It lies there under one name: no link, but those that huggingface_hub makes in its cache, and no second hard link,
    which might be to anything. Raises `error`, where `location` is no such place too.
    """
    parts = [part for part in location.split("/") if part != "."]
    if not parts or "\0" in location or "\\" in location or any(part in ("", "..") for part in parts):
        raise error(f"names the file {location!r}; expected a plain path below the model's folder")
    path = root
    for number, part in enumerate(parts, 1):
        path = path / part
        if path.is_symlink() and not (number == len(parts) and _in_hub_cache(path, path.resolve())):
            raise error(f"names {location!r}, which is a link; copy the file itself there")
    file = open_regular(path, error)
    if os.fstat(file.fileno()).st_nlink != 1:
        file.close()
        raise error(f"names {location!r}, which has other names too (hard links); copy it")
    return file


def _in_hub_cache(link: Path, target: Path) -> bool:
    """REPOSITORY/snapshots/COMMIT/... that leads to REPOSITORY/blobs/NAME, as huggingface_hub lays out its cache."""
    if not link.is_symlink():
        return False
    snapshots = next((parent for parent in link.absolute().parents if parent.name == "snapshots"), None)
    return snapshots is not None and target.parent == snapshots.parent.resolve() / "blobs"
