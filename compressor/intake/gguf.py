"""A GGUF file, its header walked before a library reads it: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

The package gguf makes an object of every value of every array, some 900 bytes and 20 µs each.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from compressor.errors import CompressorError
from compressor.intake.files import state_of

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # of little-endian files; version 1 had other sizes, and was replaced within weeks
_MOST_FIELDS = 10_000
_MOST_TENSORS = 100_000
_MOST_HEADER_BYTES = 1 << 27
_MOST_VALUES = 1_500_000  # of all arrays; Gemma 3 has 1.3 million: 262,144 tokens, scores and kinds, 514,906 merges
_MOST_ITEM_BYTES = 4096  # of a text in an array: making merges of a token takes the square of its length
_MOST_KEY_BYTES = (1 << 16) - 1
_MOST_COUNT = 1 << 20  # a list is made of as many layers
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32  # bytes, where general.alignment says nothing else
_STRING, _ARRAY = 8, 9
# Bytes of a value.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_WHOLE = {0, 1, 2, 3, 4, 5, 10, 11}
# Of ggml's types: numbers in a block, and its bytes.
_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip


def check_gguf(path: Path, error: type[CompressorError]) -> tuple[int, int]:
    """How many tensors the file has, and how many numbers these are.

    Raises `error` unless it is what it claims: counts and lengths that the file has room for, each name once, tensors
    of a known type that lie within it, none on another. A file that has not changed is not read again.
    """
    state = state_of(path, error)
    try:
        return _checked(path, state)
    except ValueError as found:
        raise error(f"{path}: not a GGUF file: {found}; if it was cut short, fetch it again") from None


@lru_cache
def _checked(path: Path, state: tuple[int, ...]) -> tuple[int, int]:
    size = state[-1]
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"it does not begin with {_MAGIC.decode()}")
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
            return _check(_Reader(data, min(size, _MOST_HEADER_BYTES)), size)


@dataclass
class _Reader:
    """Whole numbers and texts, one after the other, up to `end`. Its methods raise ValueError."""

    data: mmap.mmap
    end: int
    at: int = len(_MAGIC)
    values: int = 0

    def skip(self, size: int) -> int:
        """Where what is skipped begins."""
        if size > self.end - self.at:
            raise ValueError(f"its header claims {size:,} bytes where {self.end - self.at:,} are left of it")
        self.at += size
        return self.at - size

    def number(self, size: int) -> int:
        at = self.skip(size)
        return int.from_bytes(self.data[at : at + size], "little")

    def text(self, most: int) -> str:
        size = self.number(8)
        if size > most:
            raise ValueError(f"a text of {size:,} bytes; expected at most {most:,}")
        at = self.skip(size)
        return self.data[at : at + size].decode()


def _check(reader: _Reader, size: int) -> tuple[int, int]:
    version = reader.number(4)
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}; expected 2 or 3")
    tensors, fields = reader.number(8), reader.number(8)
    if tensors > _MOST_TENSORS or fields > _MOST_FIELDS:
        raise ValueError(
            f"{tensors:,} tensors and {fields:,} settings; expected at most {_MOST_TENSORS:,} and {_MOST_FIELDS:,}"
        )
    alignment, seen = _ALIGNMENT, set[str]()
    for _ in range(fields):
        key = _new(reader.text(_MOST_KEY_BYTES), seen)
        found = _value(reader, key)
        if key == "general.alignment" and found is not None:
            alignment = found
    if alignment not in (1 << power for power in range(21)):
        raise ValueError(f"its alignment is {alignment}; expected a power of two")
    seen = set()
    places = [_tensor(reader, _new(reader.text(_MOST_KEY_BYTES), seen)) for _ in range(tensors)]
    begins = -(-reader.at // alignment) * alignment
    end = 0
    for begin, stop, name, _ in sorted(places):
        if begin < end or begin % alignment or begins + stop > size:
            raise ValueError(f"tensor {name[:80]!r} lies on another or not within the file")
        end = stop
    return tensors, sum(numbers for *_, numbers in places)


def _new(name: str, seen: set[str]) -> str:
    if name in seen:
        raise ValueError(f"{name[:80]!r} stands there twice")
    seen.add(name)
    return name


def _value(reader: _Reader, key: str) -> int | None:
    """The value, where it is a whole number."""
    kind = reader.number(4)
    if kind == _STRING:
        reader.text(_MOST_HEADER_BYTES)
    elif kind == _ARRAY:
        _array(reader, key)
    elif kind not in _SCALARS:
        raise ValueError(f"{key[:80]!r} has no type of value: {kind}")
    elif kind in _WHOLE:
        value = reader.number(_SCALARS[kind])
        if key.endswith("_count") and value > _MOST_COUNT:
            raise ValueError(f"{key[:80]!r} is {value:,}; expected at most {_MOST_COUNT:,}")
        return value
    else:
        reader.skip(_SCALARS[kind])
    return None


def _array(reader: _Reader, key: str) -> None:
    kind, count = reader.number(4), reader.number(8)
    reader.values += count
    if reader.values > _MOST_VALUES:
        raise ValueError(f"{key[:80]!r} has {count:,} values; expected at most {_MOST_VALUES:,} in all arrays together")
    if kind == _STRING:
        for _ in range(count):
            reader.text(_MOST_ITEM_BYTES)
    elif kind in _SCALARS:
        reader.skip(count * _SCALARS[kind])
    else:
        raise ValueError(f"{key[:80]!r} holds arrays of type {kind}; expected numbers or texts")


def _tensor(reader: _Reader, name: str) -> tuple[int, int, str, int]:
    """Where a tensor begins and ends behind the header, and how many numbers it is."""
    dimensions = reader.number(4)
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name[:80]!r} has {dimensions:,} dimensions; expected at most {_MOST_DIMENSIONS}")
    shape = [reader.number(8) for _ in range(dimensions)]
    kind, begin = reader.number(4), reader.number(8)
    if kind not in _TYPES:
        raise ValueError(f"tensor {name[:80]!r} has no known type: {kind}")
    numbers, (block, block_bytes) = math.prod(shape), _TYPES[kind]
    if (shape[0] if shape else 1) % block:
        raise ValueError(f"tensor {name[:80]!r} of shape {shape} has rows that are no whole blocks of {block}")
    return begin, begin + numbers // block * block_bytes, name, numbers
