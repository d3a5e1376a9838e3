"""Zero points that are 0 need not be written."""

from __future__ import annotations

import onnx
from onnx import numpy_helper


def drop_zero_points(model: onnx.ModelProto) -> None:
    """Takes the zero points that are all 0 from the constants of convolutions, in place: 0 is the default.

    A weight and a bias per channel have one a channel, of a byte and of four. Of convolutions alone: of Gemm and MatMul
    with integers onnxruntime makes integer products only where zero points are written.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    of_convolutions = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]}
    others = {name for node in model.graph.node if node.op_type != "Conv" for name in node.input}
    dropped = set()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.output[0] not in of_convolutions - others:
            continue
        zero_point = initializers.get(node.input[2]) if len(node.input) > 2 else None
        if zero_point is not None and node.input[0] in initializers and not numpy_helper.to_array(zero_point).any():
            dropped.add(node.input.pop())
    read = {name for node in model.graph.node for name in node.input}
    for name in dropped - read:
        model.graph.initializer.remove(initializers[name])
