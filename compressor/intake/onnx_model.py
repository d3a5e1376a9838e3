"""An ONNX file, looked through before any library sees it: what it claims, how deep it nests, what it names outside.

One pass over the file's messages that leaves out what tensors hold. The numbers of fields are those of onnx.proto.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path

from compressor.errors import CompressorError
from compressor.intake.files import open_contained, open_regular
from compressor.intake.onnx_tensor import Tensor, read_tensor
from compressor.intake.protobuf import LENGTH, MOST_TEXT_BYTES, Budget, Buffer, fields, text

_MOST_BYTES = (1 << 31) - 1  # what protobuf reads
_MOST_FIELDS = 1_000_000  # of all messages, as far as they are looked into; SmolLM2-135M has 41,000
_MOST_BESIDE_TENSORS = MOST_TEXT_BYTES  # bytes: lists of numbers take eight times as much when they are read
_GRAPH = 7  # of a Model
_OWN_DOMAIN = b"ai.onnx"
_DEEPEST = 100  # of messages in messages, as protobuf's readers have it

# What kind of message a field of one holds, where more may lie in it.
_INSIDE = {
    "Model": {_GRAPH: "Graph", 8: "OperatorSet", 14: "Entry", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute", 12: "Value", 14: "Entry"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 13: "Value", 15: "Sparse", 16: "Entry"},
    "Node": {5: "Attribute", 9: "Entry"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        14: "Type",
        15: "Type",
        22: "Sparse",
        23: "Sparse",
    },
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Value": {2: "Type", 4: "Entry"},
    "Type": {1: "TensorType", 4: "Element", 5: "Map", 8: "TensorType", 9: "Element"},
    "Element": {1: "Type"},
    "Map": {2: "Type"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Dimension"},
    "Dimension": {},
    "Entry": {},
}
# Fields that hold a text: libraries decode them where one is asked for.
_TEXTS = {
    "Model": {2, 3, 4, 6},
    "Function": {1, 4, 5, 6, 8, 10, 13},
    "Graph": {2, 10},
    "Node": {1, 2, 3, 4, 6, 7, 8},
    "Attribute": {1, 13, 21},
    "Value": {1, 3},
    "Type": {6},
    "Dimension": {2, 3},
    "Entry": {1, 2},
}
# Fields that hold one message: readers put together what is written twice.
_ONCE = {
    "Model": {_GRAPH},
    "Training": {1, 2},
    "Attribute": {5, 6, 14, 22},
    "Sparse": {1, 2},
    "Value": {2},
    "Type": {1, 4, 5, 8, 9},
    "Element": {1},
    "Map": {2},
    "TensorType": {2},
}


@dataclass
class OnnxFacts:
    """What a model says of itself. `opset` is of ONNX's own operators, 0 where it names none; `bytes` with the files
    that it names.
    """

    ir_version: int = 0
    opset: int = 0
    bytes: int = 0
    outside: list[Tensor] = field(default_factory=list)
    budget: Budget = field(default_factory=lambda: Budget(_MOST_FIELDS))
    graphs: int = 0
    tensor_bytes: int = 0


def check_onnx(path: Path, error: type[CompressorError]) -> OnnxFacts:
    """What the ONNX file says of itself, if it is one: whole, bounded, every tensor as large as it claims, and every
    file that it names a regular one below its folder, large enough for what is said to be there.

    Raises `error`.
    """
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= _MOST_BYTES:
            got = f"{size:,}" if size else "an empty file"
            raise error(f"{path}: expected an ONNX model of 1 to {_MOST_BYTES:,} bytes, got {got}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            facts = OnnxFacts(bytes=size)
            try:
                _walk(data, 0, size, "Model", 0, facts)
                if not facts.graphs:
                    raise ValueError("it has no graph")
            except ValueError as found:
                raise error(f"{path}: expected an ONNX model: {found}; export or copy it again") from None
    if size - facts.tensor_bytes > _MOST_BESIDE_TENSORS:
        raise error(f"{path}: expected at most {_MOST_BESIDE_TENSORS:,} bytes beside tensors, got {size:,}")
    facts.bytes += _check_outside(path, facts.outside, error)
    return facts


def _walk(data: Buffer, start: int, end: int, kind: str, depth: int, facts: OnnxFacts) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"its messages nest deeper than {_DEEPEST}")
    inside, texts, once, seen = _INSIDE[kind], _TEXTS.get(kind, ()), _ONCE.get(kind, ()), set[int]()
    for number, wire, at, to in fields(data, start, end, facts.budget):
        if kind == "Model":
            facts.ir_version = at if number == 1 else facts.ir_version
            facts.graphs += number == _GRAPH
        inner = inside.get(number)
        if number in texts and wire == LENGTH:
            text(data, at, to)
        if inner is None:
            continue
        if wire != LENGTH or number in seen:
            found = f"the wire type {wire}" if wire != LENGTH else "two values"
            raise ValueError(f"the field {number} of a message {kind} has {found}")
        if number in once:
            seen.add(number)
        if inner == "Tensor":
            _note_tensor(read_tensor(data, at, to, facts.budget), to - at, facts)
        elif inner == "OperatorSet":
            _note_opset(data, at, to, facts)
        elif to > at:
            _walk(data, at, to, inner, depth + 1, facts)


def _note_tensor(tensor: Tensor, size: int, facts: OnnxFacts) -> None:
    facts.tensor_bytes += size
    if tensor.outside:
        facts.outside.append(tensor)


def _note_opset(data: Buffer, start: int, end: int, facts: OnnxFacts) -> None:
    domain, version = b"", 0
    for number, wire, at, to in fields(data, start, end, facts.budget):
        if number == 1 and wire == LENGTH:
            domain = data[at : min(to, at + len(_OWN_DOMAIN) + 1)]
        elif number == 2:
            version = at
    if domain in (b"", _OWN_DOMAIN):
        facts.opset = version


def _check_outside(path: Path, tensors: list[Tensor], error: type[CompressorError]) -> int:
    """Bytes of the files that hold tensors of the model at `path`."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        where = f"{path}: tensor {tensor.name}"
        location = tensor.external.get("location", "")
        if location not in sizes:
            try:
                with open_contained(path.parent, location, error) as file:
                    sizes[location] = os.fstat(file.fileno()).st_size
            except error as found:
                raise error(f"{where}: {found}") from None
        offset, length = (tensor.external.get(key, default) for key, default in (("offset", "0"), ("length", "")))
        if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in (offset, length or "0")):
            raise error(f"{where}: expected offset and length as whole numbers, got {offset[:40]!r}, {length[:40]!r}")
        if length and int(length) != tensor.bytes:
            raise error(f"{where}: {length} bytes for the shape {tensor.dims}, which has {tensor.bytes:,}")
        if int(offset) + tensor.bytes > sizes[location]:
            raise error(
                f"{where}: its bytes {offset} to {int(offset) + tensor.bytes} are not all in {location}, which has"
                f" {sizes[location]:,}; copy it again"
            )
    return sum(sizes.values())
