"""Answers that were paid for, on disk: one JSON line each, only ever appended, safe against a crash at any byte.

A line is `{"key": ..., "answer": ..., "check": ...}`; the check is a CRC-32 over key and answer. A line that a crash
has torn, or that has rotted, is left out, so that its answer is asked for again.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from pathlib import Path
from typing import Any

from compressor.errors import TeacherError


class AnswerCache:
    """Key to answer; `put` returns when the answer is on disk. Safe to use from several threads, one process.

    In memory is where each answer lies, not what it says: with log-probabilities they come to kilobytes each.
    """

    def __init__(self, path: Path) -> None:
        """Reads what is there; `damaged` counts the lines that are left out. Raises OSError."""
        self.damaged = 0
        self._path = path
        self._lock = threading.Lock()
        self._places: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end = 0
        with path.open("ab+") as file:
            file.seek(0)
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
