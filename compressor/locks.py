"""What one process works in at a time: a run's own folder, and a stage or a file of several runs'."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from compressor.errors import StorageError
from compressor.progress import Progress


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the run folder and holds it. Raises StorageError when another process holds it."""
    make_folder(folder, "--out")
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"{folder}: another compressor is at work in it; wait for it, or choose another with --out"
            ) from None
        yield


@contextmanager
def alone_with(stage: Path, progress: Progress) -> Iterator[None]:
    """Makes the folder that a shared stage lies in and holds that stage, after whoever else holds it."""
    make_folder(stage.parent, "--cache")

    def waits() -> None:
        progress.log(f"  waits for another compressor, which is at work on {stage}")

    with stage.with_name(f".{stage.name}.lock").open("w") as lock:
        hold(lock, waits)
        for leftover in stage.parent.glob(f".{stage.name}.*.old"):  # of a process that was killed
            shutil.rmtree(leftover)
        yield


def hold(file: IO[Any], waits: Callable[[], None]) -> None:
    """Holds an open file until it is closed, after whoever else holds it; `waits` is called where that is somebody."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waits()
        fcntl.flock(file, fcntl.LOCK_EX)


def make_folder(folder: Path, flag: str) -> None:
    """Makes it where it is not there. Raises StorageError where a file is in its way, or where none can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StorageError(f"{folder}: expected a folder, found a file; choose another with {flag}") from None
    except FileNotFoundError:  # /proc and the like
        raise StorageError(f"{folder}: no folder can be made there; choose another with {flag}") from None
