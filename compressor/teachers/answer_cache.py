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


class AnswerCache:
    """Key to answer; `put` returns when the answer is on disk. Safe to use from several threads, one process."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; `damaged` lines are not in it. Raises OSError."""
        self.damaged = 0
        self._path = path
        self._lock = threading.Lock()
        self._answers: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    whole += len(line)
                    self._read(line)
                else:
                    self.damaged += 1
            if whole != path.stat().st_size:  # else the next line would continue the torn one
                os.truncate(path, whole)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Any:
        """The answer, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: Any) -> None:
        """Appends an answer (JSON) and waits until the disk has it."""
        text = json.dumps({"key": key, "answer": answer, "check": _check(key, answer)}, ensure_ascii=False)
        with self._lock, self._path.open("ab") as file:
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._answers[key] = answer

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key, answer = entry["key"], entry["answer"]
            if entry["check"] != _check(key, answer):
                raise ValueError("rotten")
        except (ValueError, KeyError, TypeError):
            self.damaged += 1
            return
        self._answers[key] = answer


def _check(key: str, answer: Any) -> int:
    return zlib.crc32(json.dumps([key, answer], sort_keys=True).encode())
