"""Answers that were paid for, on disk: one JSON line each, only ever appended, safe against a crash at any byte.

A line is `{"key": ..., "answer": ..., "check": ...}`; the check is a CRC-32 over key and answer. A line that a crash
has torn, or that has rotted, is left out, so that its answer is asked for again. Several runs may share the file: one
at a time asks.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from compressor.errors import TeacherError
from compressor.locks import hold


class AnswerCache:
    """Key to answer; `put` returns when the answer is on disk. Safe to use from several threads; of several processes,
    each puts only what it found missing while it holds the file.

    In memory is where each answer lies, not what it says: with log-probabilities they come to kilobytes each.
    """

    def __init__(self, path: Path, waits: Callable[[], None] = lambda: None) -> None:
        """Reads what is there; `damaged` counts the lines that are left out. `waits` is called where another process
        holds the file. Raises OSError.
        """
        self.damaged = 0
        self._path, self._waits = path, waits
        self._lock = threading.Lock()
        self._places: dict[str, int] = {}
        self._end = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.held():
            pass

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the file against other processes; what they have put is there from now on."""
        with self._path.open("ab+") as file:
            hold(file, self._waits)
            self._read_on(file)
            yield

    def _read_on(self, file: IO[bytes]) -> None:
        file.seek(self._end)
        for line in file:
            entry = _entry(line)
            if entry is None:
                self.damaged += 1
            else:
                self._places[entry[0]] = self._end
            if line.endswith(b"\n"):
                self._end += len(line)
        file.truncate(self._end)  # else the next line would continue a torn one

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Any:
        """The answer. Raises KeyError without one, TeacherError where it has rotted since it was read first."""
        with self._path.open("rb") as file:
            file.seek(self._places[key])
            entry = _entry(file.readline())
        if entry is None or entry[0] != key:
            raise TeacherError(f"{self._path}: damaged while in use; run the same command again")
        return entry[1]

    def put(self, key: str, answer: Any) -> None:
        """Appends an answer (JSON) and waits until the disk has it."""
        text = json.dumps({"key": key, "answer": answer, "check": _check(key, answer)}, ensure_ascii=False)
        line = text.encode() + b"\n"
        with self._lock, self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._places[key] = self._end
            self._end += len(line)


def _entry(line: bytes) -> tuple[str, Any] | None:
    """Key and answer of a whole line, else None."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
        if entry is not None and entry["check"] == _check(entry["key"], entry["answer"]):
            return entry["key"], entry["answer"]
    except (ValueError, KeyError, TypeError):
        pass
    return None


def _check(key: str, answer: Any) -> int:
    return zlib.crc32(json.dumps([key, answer], sort_keys=True).encode())
