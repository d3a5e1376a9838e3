"""Where the bytes of an ONNX file are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from compressor.artifacts import SizeShare

_PART_OF_OPERATOR = {
    "Gather": "embedding tables",
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
