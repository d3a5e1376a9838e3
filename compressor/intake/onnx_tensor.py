"""A tensor of an ONNX file as it stands there: what it claims to hold against the bytes that there are.

The numbers of fields and of types are those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice

from compressor.intake.protobuf import FIXED32, FIXED64, LENGTH, VARINT, Budget, Buffer, fields, signed, text, varints

_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_ENTRIES = _FLOATS, _INT32S, _STRINGS, _INT64S, _DOUBLES, _UINT64S = 4, 5, 6, 7, 10, 11
# How each may be written; a reader passes over what is written otherwise.
_WIRES = {
    **dict.fromkeys((_TYPE, _LOCATION), (VARINT,)),
    **dict.fromkeys((_NAME, _RAW, _STRINGS, _EXTERNAL), (LENGTH,)),
    **dict.fromkeys((_DIMS, _INT32S, _INT64S, _UINT64S), (VARINT, LENGTH)),
    _FLOATS: (FIXED32, LENGTH),
    _DOUBLES: (FIXED64, LENGTH),
}
_FIXED_BYTES = {_FLOATS: 4, _DOUBLES: 8}
_MOST_DIMS = 64
_PIECE = 1 << 20
_MOST_ELEMENTS = 1 << 40

_STRING = 8
# Of every other type: bits an element, the field that may hold elements instead of bytes, elements in one entry of it.
_TYPES: dict[int, tuple[int, int, float]] = {
    1: (32, _FLOATS, 1),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), (8, _INT32S, 1)),  # bytes, bool, float8
    **dict.fromkeys((4, 5, 10, 16), (16, _INT32S, 1)),  # int16, float16, bfloat16
    6: (32, _INT32S, 1),
    7: (64, _INT64S, 1),
    11: (64, _DOUBLES, 1),
    12: (32, _UINT64S, 1),
    13: (64, _UINT64S, 1),
    14: (64, _FLOATS, 0.5),  # complex numbers are two
    15: (128, _DOUBLES, 0.5),
    **dict.fromkeys((21, 22, 23), (4, _INT32S, 2)),  # int4, float4
    **dict.fromkeys((25, 26), (2, _INT32S, 4)),  # int2
    **dict.fromkeys((27, 28), (6, _INT32S, 1)),  # float6
}


@dataclass
class Tensor:
    """What a TensorProto says. `external` is where its bytes lie, by key; empty where they are in the message."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    raw: int | None = None  # bytes
    entries: dict[int, int] = field(default_factory=dict)  # of each field of elements, how many
    external: dict[str, str] = field(default_factory=dict)
    outside: bool = False

    @property
    def bytes(self) -> int:
        """What dims and type ask for."""
        return -(-math.prod(self.dims) * _TYPES[self.kind][0] // 8)


def read_tensor(data: Buffer, start: int, end: int, budget: Budget) -> Tensor:
    """The tensor in data[start:end]. Raises ValueError where it is none, claims what is not there, or has more fields
    than the budget."""
    tensor = Tensor()
    for number, wire, at, to in fields(data, start, end, budget):
        if wire not in _WIRES.get(number, (wire,)):
            raise ValueError(f"tensor {tensor.name}: its field {number} has the wire type {wire}")
        if number == _DIMS:
            tensor.dims += map(signed, [at] if wire == VARINT else islice(varints(data, at, to), _MOST_DIMS + 1))
            budget.spend(len(tensor.dims))
        elif number == _TYPE:
            tensor.kind = at
        elif number == _NAME:
            tensor.name = text(data, at, to)[:80]
        elif number == _RAW:
            tensor.raw = to - at
        elif number in _ENTRIES:
            tensor.entries[number] = tensor.entries.get(number, 0) + _entries(data, number, wire, at, to)
        elif number == _EXTERNAL:
            key, value = _entry(data, at, to, budget)
            if key in tensor.external:
                raise ValueError(f"tensor {tensor.name}: names its {key} twice")
            tensor.external[key] = value
        elif number == _LOCATION:
            tensor.outside = at == 1
        if len(tensor.dims) > _MOST_DIMS:
            raise ValueError(f"tensor {tensor.name}: more than {_MOST_DIMS} dimensions")
    _check(tensor)
    return tensor


def _check(tensor: Tensor) -> None:
    called = f"tensor {tensor.name}"
    if any(dim < 0 for dim in tensor.dims) or math.prod(tensor.dims) > _MOST_ELEMENTS:
        raise ValueError(f"{called}: has the shape {tensor.dims}")
    count = math.prod(tensor.dims)
    if tensor.kind == _STRING and not tensor.outside:
        if tensor.entries.get(_STRINGS, 0) != count:
            raise ValueError(f"{called}: {tensor.entries.get(_STRINGS, 0)} strings for the shape {tensor.dims}")
        return
    if tensor.kind not in _TYPES:
        raise ValueError(f"{called}: its type {tensor.kind} is none that numbers can have")
    if tensor.outside:
        return
    if tensor.raw is not None:
        if tensor.raw != tensor.bytes:
            raise ValueError(f"{called}: {tensor.raw:,} bytes for the shape {tensor.dims}, which has {tensor.bytes:,}")
        return
    _, place, elements = _TYPES[tensor.kind]
    expected, got = math.ceil(count / elements), tensor.entries.get(place, 0)
    if got != expected:
        raise ValueError(f"{called}: {got:,} numbers for the shape {tensor.dims}, which has {expected:,}")


def _entries(data: Buffer, number: int, wire: int, at: int, to: int) -> int:
    """Numbers in a field, which may be packed."""
    if wire != LENGTH or number == _STRINGS:
        return 1
    if number in _FIXED_BYTES:
        return (to - at) // _FIXED_BYTES[number]
    # Every number ends in one byte below 128.
    pieces = (data[begin : min(begin + _PIECE, to)] for begin in range(at, to, _PIECE))
    return sum(len(piece.translate(None, _CONTINUED)) for piece in pieces)


_CONTINUED = bytes(range(128, 256))


def _entry(data: Buffer, start: int, end: int, budget: Budget) -> tuple[str, str]:
    found = fields(data, start, end, budget)
    said = {number: text(data, at, to) for number, wire, at, to in found if wire == LENGTH}
    return said.get(1, ""), said.get(2, "")
