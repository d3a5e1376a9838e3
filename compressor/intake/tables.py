"""Tables, .jsonl, .json, .csv and .parquet, looked through before a library converts them.

What reads text recurses as deep as a row nests, and makes a column of every key that occurs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from compressor.errors import CompressorError
from compressor.intake.files import state_of
from compressor.intake.parquet import check_parquet

_DEEPEST = 64
_MOST_KEYS = 10_000
_PIECE = 1 << 23
_KEY = re.compile(rb'"([^"]*)"\s*:')


def check_table(path: Path, error: type[CompressorError]) -> None:
    """Raises `error` unless the file is a regular one; and one of rows in JSON or CSV without NUL bytes, at most 64
    deep, with at most 10,000 different keys or columns, or in Parquet as `check_parquet` wants it. A file that has not
    changed is not read again.
    """
    state = state_of(path, error)
    try:
        _check_table(path, state)
    except ValueError as found:
        raise error(f"{path}: {found}") from None


@lru_cache
def _check_table(path: Path, _state: tuple[int, ...]) -> None:
    checks = {
        ".jsonl": _check_json_rows,
        ".json": _check_json_rows,
        ".csv": _check_csv,
        ".tsv": _check_csv,
        ".parquet": check_parquet,
    }
    if check := checks.get(path.suffix.lower()):
        with path.open("rb") as file:
            check(file)


def _check_json_rows(file: BinaryIO) -> None:
    """Brackets outside of strings, counted; whether it is JSON at all, the library says."""
    import numpy as np

    depth = quotes = 0
    keys: set[bytes] = set()
    for piece in _whole_lines(file):
        plain = piece.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
        content = np.frombuffer(plain, np.uint8)
        inside = (quotes + np.cumsum(content == ord('"'), dtype=np.int64)) & 1
        if inside[content == ord("\n")].any():
            raise ValueError("a string does not end in its line; expected JSON")
        opening, closing = ((content == ord(a)) | (content == ord(b)) for a, b in ("[{", "]}"))
        steps = (opening.astype(np.int8) - closing.astype(np.int8)) * (1 - inside.astype(np.int8))
        depths = depth + np.cumsum(steps, dtype=np.int64)
        if depths.max() > _DEEPEST or depths.min() < 0:
            raise ValueError(f"expected rows nested at most {_DEEPEST} deep, each bracket closed once")
        depth, quotes = int(depths[-1]), int(inside[-1])
        keys.update(_KEY.findall(plain))
        if len(keys) > _MOST_KEYS:
            raise ValueError(f"expected at most {_MOST_KEYS:,} different keys, got more")


def _check_csv(file: BinaryIO) -> None:
    columns = file.readline(_PIECE)
    if (found := columns.count(b",") + columns.count(b"\t")) > _MOST_KEYS:
        raise ValueError(f"expected at most {_MOST_KEYS:,} columns, got {found:,}")
    file.seek(0)
    while piece := file.read(_PIECE):
        _refuse_nul(piece)


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The content in pieces, none of which ends within a line that is shorter than it, or behind a backslash."""
    while piece := file.read(_PIECE):
        if not piece.endswith(b"\n"):
            piece += file.readline(_PIECE)
        while piece.endswith(b"\\") and (more := file.read(1)):
            piece += more
        _refuse_nul(piece)
        yield piece


def _refuse_nul(piece: bytes) -> None:
    if b"\0" in piece:
        raise ValueError("has NUL bytes; expected text")
