"""JSON from outside: of a bounded size, each key once, its texts such that they can be written again."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.intake.files import state_of

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape of half a character


def strict_json(content: bytes, what: str, error: type[CompressorError], *, constants: bool = False) -> Any:
    """The value of a JSON text without duplicate keys; NaN and infinity only with `constants`, also that of 1e999.

    Raises `error`, which names `what`; also where it nests deeper than Python's recursion goes, and where a text holds
    half a character (a lone surrogate), which nothing can print.
    """
    try:
        return _parsed(content, constants)
    except ValueError as found:
        raise error(_refusal(what, found)) from None


def check_json(path: Path, most: int, error: type[CompressorError]) -> None:
    """Raises `error` unless the file is such a JSON text of at most `most` bytes, in which infinity may occur, as
    Hugging Face's do. A file that has not changed is not read again.
    """
    *_, size = state = state_of(path, error)
    if size > most:
        raise error(f"{path}: expected at most {most:,} bytes, got {size:,}")
    try:
        _check_json(path, state)
    except ValueError as found:
        raise error(_refusal(str(path), found)) from None


def _refusal(what: str, found: ValueError) -> str:
    return f"{what}: not valid JSON with each key once: {found}; copy it again"


@lru_cache
def _check_json(path: Path, state: tuple[int, ...]) -> None:
    with path.open("rb") as file:
        _parsed(file.read(state[-1]), constants=True)


def _parsed(content: bytes, constants: bool) -> Any:
    constant, number = (None, None) if constants else (_no_constant, _finite)
    try:
        found = json.loads(
            content.decode(), object_pairs_hook=_without_duplicates, parse_constant=constant, parse_float=number
        )
        if _SURROGATE.search(content):
            json.dumps(found, ensure_ascii=False).encode()  # both halves of one character are one by now
        return found
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {key[:80]!r}")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:80]} is beyond the largest number")
    return number
