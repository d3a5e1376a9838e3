"""What lies between integer products and can be computed in integers too, so that no value turns float and back.

onnxruntime's kernels fuse a product with the ReLU behind it, and have sums and pools of integers; what only moves or
selects values passes integers on. A product that is alone among float operators keeps its output float.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
from onnx import numpy_helper

# A QuantizeLinear behind it clips as they do: onnxruntime drops them.
_ACTIVATIONS = ("Relu", "Clip")
_COMPUTED = ("Add", "AveragePool", "Concat", "GlobalAveragePool")
_RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_CARRIED = (*_ACTIVATIONS, *_COMPUTED, *_RESHAPING, "MaxPool", "Pad", "Transpose")
_HEIGHT_AND_WIDTH = ([2, 3], [-2, -1])


def carried(model: onnx.ModelProto, products: Collection[str], *, computed: bool = True) -> list[onnx.NodeProto]:
    """The nodes between these, in the order of the graph: all that they compute from comes from a convolution among
    them, by way of such nodes, and goes to one of them.

    What lies between matrix products, as in a transformer, stays float32: its sums have outliers that 8 bits do not
    hold. A mean over height and width of an image is among them: see `as_pool`. Not `computed`: only those that hand on
    the codes that they read.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    # What is quantized already has its weights behind a DequantizeLinear.
    convolved = {
        node.name: node.output[0]
        for node in model.graph.node
        if node.name in products and node.op_type == "Conv" and node.input[1] in constants
    }
    inside: set[str] = set()
    images: set[str] = set()  # of those, what has four dimensions
    between = []
    for node in model.graph.node:
        if node.name in convolved:
            inside.add(node.output[0])
            if len(constants[node.input[1]].dims) == 4:
                images.add(node.output[0])
            continue
        data = node.input if node.op_type in ("Add", "Concat") else node.input[:1]
        adds = node.op_type in _COMPUTED or (_is_pool(node, constants) and data[0] in images)
        known = computed if adds else node.op_type in _CARRIED
        if not known or node.domain not in ("", "ai.onnx") or len(node.output) > 1 or not inside.issuperset(data):
            continue
        if all(name in constants for name in node.input if name and name not in data):
            inside.add(node.output[0])
            between.append(node)
            if node.op_type not in _RESHAPING and images.issuperset(data):
                images.add(node.output[0])
    wanted = {node.input[0] for node in model.graph.node if node.name in products}
    kept = []
    for node in reversed(between):
        if node.output[0] in wanted or (node.op_type in _ACTIVATIONS and node.input[0] in convolved.values()):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def as_pool(node: onnx.NodeProto) -> None:
    """Makes of a mean over height and width, which has no integer kernel, a GlobalAveragePool, which has."""
    if node.op_type == "ReduceMean":
        node.op_type = "GlobalAveragePool"
        del node.input[1:], node.attribute[:]


def _is_pool(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "ReduceMean":
        return False
    found: dict[str, Any] = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    axes = found.get("axes", [])
    if len(node.input) > 1 and node.input[1] in constants:
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    return found.get("keepdims", 1) == 1 and sorted(axes) in _HEIGHT_AND_WIDTH
