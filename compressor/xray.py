"""Where every byte of an ONNX file is, and what would make it smaller. Needs the package `onnx`."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from compressor.errors import BundleError
from compressor.onnx_file import read_onnx

# Below this, a tensor is not worth a word.
_NOTEWORTHY_BYTES = 1024
_TRANSPARENT = ("DequantizeLinear", "Transpose", "Reshape", "Cast")
_TABLES, _LINEAR, _CONVOLUTION = "embedding tables", "linear weights", "convolution weights"
_WEIGHTS = (_TABLES, _LINEAR, _CONVOLUTION)
_CODING, _OTHER = "scales and zero points", "biases and constants"
_GRAPH = ("nodes", "shapes of values in between", "inputs and outputs", "metadata", "framing")
# What an operator does with its weights, and which of its inputs they are.
_WEIGHT_OF = {
    "Gather": (_TABLES, (0,)),
    "GatherBlockQuantized": (_TABLES, (0,)),
    "MatMul": (_LINEAR, (1,)),
    "Gemm": (_LINEAR, (1,)),
    "EmbedLayerNormalization": (_TABLES, (2, 3, 4)),
    "QEmbedLayerNormalization": (_TABLES, (2, 3, 4)),
    "Attention": (_LINEAR, (1,)),
    "MatMulInteger": (_LINEAR, (1,)),
    "DynamicQuantizeMatMul": (_LINEAR, (1,)),
    "MatMulIntegerToFloat": (_LINEAR, (1,)),
    "MatMulNBits": (_LINEAR, (1,)),
    "QAttention": (_LINEAR, (1,)),
    "QLinearMatMul": (_LINEAR, (3,)),
    "Conv": (_CONVOLUTION, (1,)),
    "ConvInteger": (_CONVOLUTION, (1,)),
    "QLinearConv": (_CONVOLUTION, (3,)),
}
_FLOAT_OPERATORS = ("Gather", "EmbedLayerNormalization", "MatMul", "Gemm", "Attention", "Conv")


@dataclass(frozen=True)
class Tensor:
    """An initialiser: who reads it, what it holds, its bytes in the file, and which one it repeats, if any."""

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
    outside = {tensor.name: _outside(tensor, path) for tensor in bare.graph.initializer}
    whole = path.stat().st_size + sum({file: size for file, _, size in outside.values() if file}.values())
    readers = _readers(model.graph)
    first = _repeats(model.graph.initializer)
    tensors = tuple(
        Tensor(
            tensor.name,
            tuple(sorted({f"{node.op_type} {node.name}".strip() for node in readers[tensor.name]})),
            TensorProto.DataType.Name(tensor.data_type).lower(),
            tuple(tensor.dims),
            _in_message(stored) + outside[tensor.name][1],
            _kind(tensor, readers, first),
            first.get(tensor.name),
        )
        for tensor, stored in zip(model.graph.initializer, bare.graph.initializer, strict=True)
    )
    parts: Counter[str] = Counter()
    for tensor in tensors:
        parts[tensor.kind] += tensor.bytes
    parts.update(_beside_tensors(bare))
    parts["framing"] += whole - sum(parts.values())
    return Xray(whole, dict(parts.most_common()), tensors, _remedies(tensors, parts))


def by_role(found: Xray) -> dict[str, int]:
    """The bytes by what they are for, largest first: weights of each kind whatever their dtype, "graph" what is no
    tensor.
    """
    bytes_of: Counter[str] = Counter()
    for kind, size in found.parts.items():
        bytes_of["graph" if kind in _GRAPH else kind.partition(",")[0]] += size
    return dict(bytes_of.most_common())


def _outside(tensor: onnx.TensorProto, path: Path) -> tuple[str, int, int]:
    """The external file that holds it, its bytes there, and the file's; ("", 0, 0) where it is in the model."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return "", 0, 0
    said = {entry.key: entry.value for entry in tensor.external_data}
    size = (path.parent / said["location"]).stat().st_size
    return said["location"], int(said.get("length", size)), size


def _in_message(message: onnx.TensorProto | onnx.NodeProto | onnx.ValueInfoProto) -> int:
    """Bytes of a repeated field's entry: its content, its length and one byte of tag."""
    content = int(message.ByteSize())
    length = max(1, -(-content.bit_length() // 7))
    return content + length + 1


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in _nodes(graph):
        for value in node.input:
            found[value].append(node)
    return found


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from _nodes(body)


def _repeats(tensors: Iterable[onnx.TensorProto]) -> dict[str, str]:
    """Tensors with the numbers of an earlier one, as they are or transposed, and that one's name."""
    seen: dict[str, str] = {}
    found: dict[str, str] = {}
    for tensor in tensors:
        if tensor.ByteSize() < _NOTEWORTHY_BYTES or tensor.data_type == TensorProto.STRING:
            continue
        numbers = numpy_helper.to_array(tensor)
        plain, turned = _digest(numbers), _digest(numbers.T) if numbers.ndim == 2 else None
        earlier = seen.get(plain) or (seen.get(turned) if turned else None)
        if earlier:
            found[tensor.name] = earlier
        else:
            seen[plain] = tensor.name
    return found


def _digest(numbers: NDArray[np.generic]) -> str:
    content = np.ascontiguousarray(numbers)
    return hashlib.sha256(f"{content.dtype}{content.shape}".encode() + content.tobytes()).hexdigest()


def _kind(tensor: onnx.TensorProto, readers: dict[str, list[onnx.NodeProto]], first: dict[str, str]) -> str:
    if tensor.name in first:
        return "repeated tensors"
    if not readers[tensor.name]:
        return "tensors that nothing reads"
    role, bits = _role(tensor.name, readers)
    if role not in _WEIGHTS:
        return role
    return f"{role}, {f'{bits} bits in blocks' if bits else TensorProto.DataType.Name(tensor.data_type).lower()}"


def _role(value: str, readers: dict[str, list[onnx.NodeProto]]) -> tuple[str, int | None]:
    """What a tensor is to the operators that read it, seen through casts and de-quantization; and of codes in blocks,
    their bits.
    """
    for node in readers.get(value, []):
        if node.op_type in _TRANSPARENT:
            if node.input[0] != value:
                return _CODING if node.op_type == "DequantizeLinear" else _OTHER, None
            if (found := _role(node.output[0], readers))[0] != _OTHER:
                return found
        elif node.op_type in _WEIGHT_OF:
            role, positions = _WEIGHT_OF[node.op_type]
            if value in (node.input[position] for position in positions if position < len(node.input)):
                return role, next((entry.i for entry in node.attribute if entry.name == "bits"), None)
            if node.op_type not in _FLOAT_OPERATORS:
                return _CODING, None
        elif "Quantize" in node.op_type:
            return _CODING, None
    return _OTHER, None


def _beside_tensors(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    interface = [*graph.input, *graph.output]
    said = [model.doc_string, graph.doc_string, *(entry.key + entry.value for entry in model.metadata_props)]
    return {
        "nodes": sum(map(_in_message, graph.node)),
        "shapes of values in between": sum(map(_in_message, graph.value_info)),
        "inputs and outputs": sum(map(_in_message, interface)),
        "metadata": sum(len(text.encode()) for text in said),
    }


def _remedies(tensors: tuple[Tensor, ...], parts: Counter[str]) -> tuple[Remedy, ...]:
    """Largest first."""
    found = []
    for tensor in tensors:
        if tensor.bytes < _NOTEWORTHY_BYTES:
            continue
        if tensor.kind == "repeated tensors":
            found.append(Remedy(tensor.bytes, f"storing {tensor.name} once: it holds the numbers of {tensor.repeats}"))
        elif tensor.kind == "tensors that nothing reads":
            found.append(Remedy(tensor.bytes, f"leaving out {tensor.name}"))
        elif tensor.dtype == "float" and tensor.kind.startswith(_WEIGHTS):
            precision = "static-int8" if tensor.kind.startswith(_CONVOLUTION) else "weight-int8"
            found.append(
                Remedy(tensor.bytes * 3 // 4, f"{precision} for {tensor.readers[0]}: {tensor.name} is float32")
            )
    if parts["metadata"] >= _NOTEWORTHY_BYTES:
        found.append(Remedy(parts["metadata"], "leaving out the metadata"))
    return tuple(sorted(found, key=lambda remedy: -remedy.saves_bytes))
