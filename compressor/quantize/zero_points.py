"""Zero points that are 0 need not be written."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import numpy_helper


def drop_zero_points(model: onnx.ModelProto) -> None:
    """Takes the zero points that are all 0 from the constants of convolutions and of dynamic products (MatMulInteger),
    in place: 0 is the default.

    A weight per channel has a byte for each, a bias four; and onnxruntime's MatMulIntegerToFloat looks at each again in
    every product. Of Gemm and MatMul between DequantizeLinear nodes it makes integer products only where zero points
    are written: those stay.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    of_convolutions = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]}
    others = {name for node in model.graph.node if node.op_type != "Conv" for name in node.input}
    dropped = set()
    for node in model.graph.node:
        constant, position = _constant_of(node, of_convolutions - others)
        if constant not in initializers or len(node.input) <= position:
            continue
        zero_point = initializers.get(node.input[position])
        if zero_point is not None and not numpy_helper.to_array(zero_point).any():
            dropped.add(node.input.pop())
    read = {name for node in model.graph.node for name in node.input}
    for name in dropped - read:
        model.graph.initializer.remove(initializers[name])


def _constant_of(node: onnx.NodeProto, of_convolutions: Collection[str]) -> tuple[str | None, int]:
    """What may need no zero point here, and where that one is, the last input."""
    if node.op_type == "DequantizeLinear" and node.output[0] in of_convolutions:
        return node.input[0], 2
    return (node.input[1], 3) if node.op_type == "MatMulInteger" else (None, 0)
