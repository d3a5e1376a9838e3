"""A safetensors file, its header read before the library reads it: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.intake.files import open_regular
from compressor.intake.json_text import strict_json

_MOST_HEADER_BYTES = 8 << 20
_MOST_TENSORS = 100_000
_METADATA = "__metadata__"
# Bits of an element.
_DTYPES = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32,
    "F64": 64, "C64": 64, "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
}  # fmt: skip


def check_safetensors(path: Path, error: type[CompressorError]) -> int:
    """How many tensors the file has. Raises `error` unless they are as large as they claim and fill it, one after the
    other.
    """
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > size - 8:
            raise error(f"{path}: expected a safetensors file, got {size:,} bytes without its header; copy it again")
        if header_bytes > _MOST_HEADER_BYTES:
            raise error(f"{path}: expected a header of at most {_MOST_HEADER_BYTES:,} bytes, got {header_bytes:,}")
        header = strict_json(file.read(header_bytes), f"{path}: the header of a safetensors file", error)
    try:
        return _check_header(header, size - 8 - header_bytes)
    except ValueError as found:
        raise error(f"{path}: expected a safetensors file: {found}; copy it again") from None


def _check_header(header: Any, content_bytes: int) -> int:
    if not isinstance(header, dict) or len(header) > _MOST_TENSORS:
        raise ValueError(f"its header is no object of at most {_MOST_TENSORS:,} tensors")
    said = header.pop(_METADATA, {})
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ValueError(f"its {_METADATA} are no texts")
    end = 0
    for begin, stop, name in sorted(_place(name, entry) for name, entry in header.items()):
        if begin != end:
            raise ValueError(f"tensor {name[:80]!r} begins at {begin:,}, the one before ends at {end:,}")
        end = stop
    if end != content_bytes:
        raise ValueError(f"its tensors have {end:,} bytes, the file {content_bytes:,}")
    return len(header)


def _place(name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor begins and ends."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name[:80]!r} lacks dtype, shape or data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not all(isinstance(numbers, list) and all(map(_counts, numbers)) for numbers in (shape, offsets)):
        raise ValueError(f"tensor {name[:80]!r}: its shape or its place are no whole numbers")
    if entry["dtype"] not in _DTYPES or len(offsets) != 2 or len(shape) > 64:
        raise ValueError(f"tensor {name[:80]!r}: no dtype, no place, or too many dimensions")
    wanted = math.prod(shape) * _DTYPES[entry["dtype"]]
    if wanted % 8 or offsets[1] - offsets[0] != wanted // 8:
        raise ValueError(f"tensor {name[:80]!r}: not as many bytes as {entry['dtype']} {shape} has")
    return offsets[0], offsets[1], name


def _counts(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 63
