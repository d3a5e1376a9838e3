"""What an ONNX file says of itself: its interface, its size, and where the bytes are. Needs the package `onnx`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.result import SizeShare

_PART_OF_OPERATOR = {
    "Gather": "embedding tables",
    "EmbedLayerNormalization": "embedding tables",
    "QEmbedLayerNormalization": "embedding tables",
    "Attention": "linear weights",
    "QAttention": "linear weights",
    "MatMul": "linear weights",
    "Gemm": "linear weights",
    "MatMulInteger": "linear weights",
    "DynamicQuantizeMatMul": "linear weights",
    "MatMulIntegerToFloat": "linear weights",
    "Conv": "convolution weights",
    "ConvInteger": "convolution weights",
    "QLinearConv": "convolution weights",
}
_TRANSPARENT = ("DequantizeLinear", "Transpose", "Reshape", "Cast")


def describe_onnx(path: Path, name: str, precision: str, parameters: int | None = None) -> OnnxModel:
    """What an ONNX file says of itself; `parameters` counts its initialisers unless given."""
    model = onnx.load(path, load_external_data=False)
    return OnnxModel(
        name=name,
        precision=precision,
        path=path,
        bytes=path.stat().st_size,
        parameters=parameters if parameters is not None else sum(_size(i) for i in model.graph.initializer),
        opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        inputs=tuple(_spec(value) for value in model.graph.input),
        outputs=tuple(_spec(value) for value in model.graph.output),
    )


def _size(tensor: onnx.TensorProto) -> int:
    count = 1
    for dimension in tensor.dims:
        count *= dimension
    return count


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))


def where_bytes_are(path: Path, name: str) -> tuple[SizeShare, ...]:
    """Bytes per kind of content, largest first; they add up to the file's size.

    An initialiser belongs to the operator that reads it, looking through de-quantisation; what is no initialiser
    is the graph itself.
    """
    model = onnx.load(path, load_external_data=False)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    bytes_of: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        bytes_of[_part(tensor.name, readers)] += tensor.ByteSize()
    rest = path.stat().st_size - sum(bytes_of.values())
    bytes_of["graph"] += rest
    return tuple(SizeShare(name, part, count) for part, count in bytes_of.most_common())


def _part(value: str, readers: dict[str, list[onnx.NodeProto]]) -> str:
    for node in readers.get(value, []):
        if node.op_type in _TRANSPARENT:
            if node.input[0] != value:
                return "scales and zero points"
            return _part(node.output[0], readers)
        if node.op_type in _PART_OF_OPERATOR:
            return _PART_OF_OPERATOR[node.op_type]
    return "other tensors"
