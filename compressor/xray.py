"""Where every byte of an ONNX file is, and what would make it smaller. Needs the package `onnx`."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from compressor.errors import BundleError
from compressor.intake.onnx_tensor import Tensor as Claim
from compressor.onnx_file import outside, outside_files, read_onnx
from compressor.tensor_roles import WEIGHTS, Held, Readers, held_tensors

# Below this, a tensor is not worth a word.
_NOTEWORTHY_BYTES = 1024
# Of weight-int8: what a recipe has unless it says otherwise, and the narrowest that a table can have.
_BLOCK, _NARROWEST_BLOCK = 32, 16
_UNCLAIMED = "external data of no tensor"
_GRAPH = ("nodes", "shapes of values in between", "inputs and outputs", "metadata", "framing", _UNCLAIMED)


@dataclass(frozen=True)
class Tensor:
    """An initialiser, or what a Constant gives: who reads it, what it holds, its bytes, which one it repeats, if any.

    What lies in a function has that one's name before its own. Bytes in other files are counted; of several tensors in
    one place there, the first one has them.
    """

    name: str
    readers: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    kind: str
    repeats: str | None = None


@dataclass(frozen=True)
class Remedy:
    """What would save how many bytes."""

    saves_bytes: int
    words: str


@dataclass(frozen=True)
class Xray:
    """`parts`: bytes by kind of content, largest first; with external data files, they add up to `bytes`."""

    bytes: int
    parts: dict[str, int]
    tensors: tuple[Tensor, ...]
    remedies: tuple[Remedy, ...]


def xray(path: Path) -> Xray:
    """Every byte of the model and its external data. Raises BundleError where onnx cannot read it."""
    model = read_onnx(path, BundleError)
    bare = onnx.load(path, load_external_data=False)
    readers = Readers(bare)
    held, stored = list(held_tensors(model)), list(held_tensors(bare))
    inside, apart = [_in_message(one.tensor) for one in stored], _apart(stored)
    tensors = tuple(
        Tensor(
            one.name,
            readers.names(one),
            TensorProto.DataType.Name(one.tensor.data_type).lower(),
            tuple(one.tensor.dims),
            sum(sizes),
            _kind(one, readers, repeats),
            repeats,
        )
        for one, repeats, *sizes in zip(held, _repeats(held), inside, apart, strict=True)
    )
    parts: Counter[str] = Counter()
    for tensor in tensors:
        parts[tensor.kind] += tensor.bytes
    parts.update(_beside_tensors(bare))
    parts["nodes"] -= sum(inside[len(bare.graph.initializer) :])
    outside_bytes = sum(outside_files(path, bare).values())
    if (unclaimed := outside_bytes - sum(apart)) > 0:
        parts[_UNCLAIMED] = unclaimed
    whole = path.stat().st_size + outside_bytes
    parts["framing"] += whole - sum(parts.values())
    possible = {one.name: precision for one in held if (precision := _precision(one, readers))}
    return Xray(whole, dict(parts.most_common()), tensors, _remedies(tensors, possible, parts))


def by_role(found: Xray) -> dict[str, int]:
    """The bytes by what they are for, largest first: weights of each kind whatever their dtype, "graph" what is no
    tensor.
    """
    bytes_of: Counter[str] = Counter()
    for kind, size in found.parts.items():
        bytes_of["graph" if kind in _GRAPH else kind.partition(",")[0]] += size
    return dict(bytes_of.most_common())


def _apart(stored: Iterable[Held]) -> list[int]:
    """Bytes of each in another file; of several in one place, the first one's."""
    seen: set[tuple[str, str]] = set()
    sizes = []
    for one in stored:
        where = outside(one.tensor)
        place = where.get("location", ""), where.get("offset", "0")
        claimed = bool(where) and place not in seen
        sizes.append(Claim(dims=list(one.tensor.dims), kind=one.tensor.data_type).bytes if claimed else 0)
        seen.add(place)
    return sizes


def _in_message(message: onnx.TensorProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.FunctionProto) -> int:
    """Bytes of a repeated field's entry: its content, its length and one byte of tag."""
    content = int(message.ByteSize())
    length = max(1, -(-content.bit_length() // 7))
    return content + length + 1


def _repeats(held: Iterable[Held]) -> list[str | None]:
    """Of each tensor the name of an earlier one with its numbers, as they are or transposed."""
    seen: dict[str, str] = {}
    found: list[str | None] = []
    for one in held:
        found.append(None)
        if one.tensor.ByteSize() < _NOTEWORTHY_BYTES or one.tensor.data_type == TensorProto.STRING:
            continue
        numbers = numpy_helper.to_array(one.tensor)
        plain, turned = _digest(numbers), _digest(numbers.T) if numbers.ndim == 2 else None
        found[-1] = seen.get(plain) or (seen.get(turned) if turned else None)
        if found[-1] is None:
            seen[plain] = one.name
    return found


def _digest(numbers: NDArray[np.generic]) -> str:
    content = np.ascontiguousarray(numbers)
    return hashlib.sha256(f"{content.dtype}{content.shape}".encode() + content.tobytes()).hexdigest()


def _kind(held: Held, readers: Readers, repeats: str | None) -> str:
    if repeats is not None:
        return "repeated tensors"
    if not readers.names(held):
        return "tensors that nothing reads"
    role, bits = readers.role(held)
    if role not in WEIGHTS:
        return role
    return f"{role}, {f'{bits} bits in blocks' if bits else TensorProto.DataType.Name(held.tensor.data_type).lower()}"


def _beside_tensors(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    interface = [*graph.input, *graph.output]
    said = [model.doc_string, graph.doc_string, *(entry.key + entry.value for entry in model.metadata_props)]
    return {
        "nodes": sum(map(_in_message, [*graph.node, *model.functions])),
        "shapes of values in between": sum(map(_in_message, graph.value_info)),
        "inputs and outputs": sum(map(_in_message, interface)),
        "metadata": sum(len(text.encode()) for text in said),
    }


def _precision(held: Held, readers: Readers) -> str | None:
    """One in which all that read a float32 weight can have it, as `quantize.sites` has it; None where there is none."""
    nodes, shape = readers.weighing(held), tuple(held.tensor.dims)
    if not nodes or readers.keeps_float32(held) or 0 in shape:
        return None
    operators = {node.op_type for node in nodes}
    if operators == {"Conv"}:
        return "static-int8" if len(shape) > 2 else None
    if len(shape) != 2 or not operators <= {"MatMul", "Gemm", "Gather"}:
        return None
    scaled = {entry.name for node in nodes for entry in node.attribute if _scales(node, entry)}
    tables = [node for node in nodes if node.op_type == "Gather"]
    along_rows = all(entry.i == 0 for node in tables for entry in node.attribute if entry.name == "axis")
    if not scaled and (not tables or (along_rows and shape[1] % _NARROWEST_BLOCK == 0)):
        return "weight-int8"
    if operators == {"Gather"}:
        return "dynamic-int8"
    return "static-int8" if operators == {"Gemm"} and "beta" not in scaled else None


def _scales(node: onnx.NodeProto, entry: onnx.AttributeProto) -> bool:
    """Whether an attribute makes a Gemm more than a product and a sum."""
    gemm = node.op_type == "Gemm"
    return gemm and ((entry.name in ("alpha", "beta") and entry.f != 1) or (entry.name == "transA" and entry.i != 0))


def _saved(tensor: Tensor, precision: str) -> int:
    """By one byte for a number, with the scales and zero points: those of blocks, or of output channels at most."""
    numbers = math.prod(tensor.shape)
    scales = -(-numbers // _BLOCK) if precision == "weight-int8" else max(tensor.shape)
    return tensor.bytes - numbers - 5 * scales


def _remedies(tensors: tuple[Tensor, ...], possible: Mapping[str, str], parts: Counter[str]) -> tuple[Remedy, ...]:
    """Largest first. `possible`: the precision that weights can have."""
    found = []
    for tensor in tensors:
        if tensor.bytes < _NOTEWORTHY_BYTES:
            continue
        if tensor.kind == "repeated tensors":
            found.append(Remedy(tensor.bytes, f"storing {tensor.name} once: it holds the numbers of {tensor.repeats}"))
        elif tensor.kind == "tensors that nothing reads":
            found.append(Remedy(tensor.bytes, f"leaving out {tensor.name}"))
        elif tensor.dtype == "float" and tensor.kind.startswith(WEIGHTS) and tensor.name in possible:
            precision = possible[tensor.name]
            words = f"{precision} for {tensor.readers[0]}: {tensor.name} is float32"
            found.append(Remedy(_saved(tensor, precision), words))
    if parts["metadata"] >= _NOTEWORTHY_BYTES:
        found.append(Remedy(parts["metadata"], "leaving out the metadata"))
    return tuple(sorted(found, key=lambda remedy: -remedy.saves_bytes))
