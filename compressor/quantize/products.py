"""The integer products of a quantized ONNX graph: which weights, which activations, and how they are multiplied.

What onnxruntime computes in integers: MatMulInteger, MatMulIntegerToFloat, and MatMul, Gemm and Conv between
DequantizeLinear nodes, which it fuses. A convolution is a product whose depth runs over the kernel's places and,
innermost, the input channels of a group, as onnxruntime's kernels have it; its pairs of products follow that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from compressor.onnx_file import bodies_of
from compressor.quantized_operators import INTEGER_PRODUCTS

# They read the integers themselves, without DequantizeLinear nodes.
ON_INTEGERS = ("MatMulInteger", "MatMulIntegerToFloat")
# onnxruntime computes them in integers between DequantizeLinear nodes.
_FUSED = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class IntegerProduct:
    """A node that multiplies 8-bit activations with constant 8-bit weights.

    `activations` is the integer tensor, and `padding` what a convolution with `kernel` (its size) puts around it.
    `weights`, `scale`, `zero_point` and `bias` are initializers: those of the weights (None where the graph does not
    show them), and the int32 one that is added, with its own scale. `channel_axis` is the weights' axis of output
    channels.
    """

    node: onnx.NodeProto
    activations: str
    padding: int
    kernel: tuple[int, ...]
    weights: str
    scale: str | None
    zero_point: str | None
    bias: tuple[str, str] | None
    channel_axis: int

    @property
    def name(self) -> str:
        return self.node.name or self.node.output[0]


class Graph:
    """An ONNX graph, looked up by name. `inside`: what multiplies integers in the bodies of If, Loop and Scan, and in
    the model's functions, by name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.inside = _products_inside(model)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)

    def array(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self.initializers[name])

    def integers(self, name: str) -> bool:
        """Whether it is an initializer of 8-bit integers."""
        tensor = self.initializers.get(name)
        return tensor is not None and tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)

    def dequantized(self, value: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that gives `value`."""
        node = self.producers.get(value)
        return node if node is not None and node.op_type == "DequantizeLinear" else None


def find_products(graph: Graph) -> tuple[list[IntegerProduct], list[str]]:
    """The products with constant weights, and the names of the nodes that multiply integers in another way, or
    elsewhere than in the graph itself; those of two unsigned operands, and those in float, are neither."""
    found, unexamined = [], list(graph.inside)
    for node in graph.nodes:
        if node.op_type in ON_INTEGERS:
            product = _on_integers(graph, node)
        elif node.op_type in _FUSED:
            activations, weights = (graph.dequantized(value) for value in node.input[:2])
            if activations is None or weights is None or not _in_integers(graph, activations, weights):
                continue
            product = _between_dequantizers(graph, node, activations, weights)
        elif node.op_type in INTEGER_PRODUCTS:
            product = None  # in kernels or layouts that are not looked into here
        else:
            continue
        if product is None:
            unexamined.append(node.name or node.output[0])
        else:
            found.append(product)
    return found, unexamined


def _products_inside(model: onnx.ModelProto) -> list[str]:
    outside = _dequantized(model.graph.node)
    found = [
        name for node in model.graph.node for body in bodies_of(node) for name in _may_multiply(body.node, outside)
    ]
    for function in model.functions:
        found += _may_multiply(function.node, set(function.input) if outside else set())
    return found


def _may_multiply(nodes: Iterable[onnx.NodeProto], outside: set[str]) -> Iterator[str]:
    """Nodes that multiply integers, or what they stand for, as onnxruntime does in integers; `outside`: values around
    the nodes that may be such numbers.
    """
    nodes = list(nodes)
    numbers = outside | _dequantized(nodes)
    for node in nodes:
        fused = node.op_type in _FUSED and numbers.issuperset(node.input[:2])
        if fused or node.op_type in INTEGER_PRODUCTS:
            yield node.name or node.output[0]
        for body in bodies_of(node):
            yield from _may_multiply(body.node, numbers)


def _dequantized(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}


def _in_integers(graph: Graph, first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
    """Whether the product of what these give may differ: not in float, where onnxruntime leaves 16-bit activations, and
    not of two unsigned activations, as in attention, which is exact on every processor."""
    if _type_of(graph, first) in (TensorProto.INT16, TensorProto.UINT16):
        return False
    return second.input[0] in graph.initializers or _type_of(graph, second) != TensorProto.UINT8


def _type_of(graph: Graph, dequantizer: onnx.NodeProto) -> int | None:
    """That of what it reads, as its zero point has it, or uint8 without one; None where that is no constant."""
    if len(dequantizer.input) < 3:
        return int(TensorProto.UINT8)
    tensor = graph.initializers.get(dequantizer.input[2])
    return None if tensor is None else int(tensor.data_type)


def _on_integers(graph: Graph, node: onnx.NodeProto) -> IntegerProduct | None:
    activations, weights = node.input[:2]
    if not graph.integers(weights) or len(graph.initializers[weights].dims) != 2:
        return None
    return IntegerProduct(node, activations, 0, (), weights, _scale_of(graph, node), zero_point_of(node), None, 1)


def zero_point_of(node: onnx.NodeProto) -> str | None:
    """That of the weights of one ON_INTEGERS; None where it has none."""
    position = 5 if node.op_type == "MatMulIntegerToFloat" else 3
    return (node.input[position] or None) if len(node.input) > position else None


def _scale_of(graph: Graph, node: onnx.NodeProto) -> str | None:
    """The weights' scale; of MatMulInteger in onnxruntime's dynamic form: Cast(product) * (scale of the activations *
    scale).
    """
    if node.op_type == "MatMulIntegerToFloat":
        return node.input[3] if node.input[3] in graph.initializers else None
    casts = graph.readers.get(node.output[0], [])
    after = [reader for cast in casts for reader in graph.readers.get(cast.output[0], [])]
    if len(after) != 1 or after[0].op_type != "Mul":
        return None
    scales = [graph.producers[value] for value in after[0].input if value in graph.producers]
    names = [name for scale in scales if scale.op_type == "Mul" for name in scale.input if name in graph.initializers]
    return names[0] if len(names) == 1 else None


def _between_dequantizers(
    graph: Graph, node: onnx.NodeProto, activations: onnx.NodeProto, weights: onnx.NodeProto
) -> IntegerProduct | None:
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    (tensor, scale, *zero_point), (quantized, _, *offset) = weights.input, activations.input
    known = graph.integers(tensor) and all(name in graph.initializers for name in (scale, *zero_point, *offset))
    known &= attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and not attributes.get("transA")
    if not known or (len(graph.initializers[tensor].dims) == 2) == (node.op_type == "Conv"):
        return None
    bias = graph.dequantized(node.input[2]) if len(node.input) > 2 else None
    padding = int(graph.array(offset[0]).reshape(-1)[0]) if offset else 0
    outputs_first = node.op_type == "Conv" or attributes.get("transB", 0)
    return IntegerProduct(
        node,
        quantized,
        padding,
        tuple(graph.initializers[tensor].dims[2:]),
        tensor,
        scale,
        zero_point[0] if zero_point else None,
        (bias.input[0], bias.input[1]) if bias is not None else None,
        0 if outputs_first else 1,
    )


def columns_of(product: IntegerProduct, weights: NDArray[Any]) -> NDArray[Any]:
    """The weights as what activations are multiplied with: [groups, depth, output channels of a group]."""
    if product.node.op_type != "Conv":
        return np.ascontiguousarray(np.moveaxis(weights, product.channel_axis, 1))[None]
    groups, outputs = _groups(product), weights.shape[0]
    places_first = np.moveaxis(weights, 1, -1)  # [outputs, *kernel, inputs of a group]
    grouped = places_first.reshape(groups, outputs // groups, -1)
    return np.ascontiguousarray(grouped.swapaxes(1, 2))


def rows_of(product: IntegerProduct, activations: NDArray[Any]) -> NDArray[Any]:
    """The activations as what is multiplied with `columns_of`: [groups, rows, depth]."""
    if product.node.op_type != "Conv":
        return np.ascontiguousarray(activations).reshape(1, -1, activations.shape[-1])
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in product.node.attribute}
    dimensions = activations.ndim - 2
    pads = attributes.get("pads", [0] * 2 * dimensions)
    strides, dilations = (attributes.get(name, [1] * dimensions) for name in ("strides", "dilations"))
    around = [(0, 0), (0, 0), *zip(pads[:dimensions], pads[dimensions:], strict=True)]
    padded = np.pad(activations, around, constant_values=product.padding)
    axes = tuple(range(2, 2 + dimensions))
    spans = [1 + (size - 1) * step for size, step in zip(product.kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
    steps = (slice(None, None, step) for step in (*strides, *dilations))
    windows = windows[(slice(None), slice(None), *steps)]  # [batch, channels, *places, *kernel]
    groups, inputs = _groups(product), activations.shape[1]
    split = windows.reshape(windows.shape[0], groups, inputs // groups, *windows.shape[2:])
    last = np.moveaxis(split, 2, -1)  # [batch, groups, *places, *kernel, inputs of a group]
    depth = int(np.prod(product.kernel)) * (inputs // groups)
    return np.ascontiguousarray(last.swapaxes(0, 1)).reshape(groups, -1, depth)


def adds_in_pairs(product: IntegerProduct, weights: NDArray[Any]) -> bool:
    """Whether kernels may add two of its products in 16 bits: not with unsigned weights, and not in a depthwise
    convolution on x86, whose kernel multiplies in 32 bits."""
    depthwise = product.node.op_type == "Conv" and weights.shape[1] == 1 and _groups(product) == weights.shape[0]
    return weights.dtype == np.int8 and not depthwise


def _groups(product: IntegerProduct) -> int:
    found = [one.i for one in product.node.attribute if one.name == "group"]
    return found[0] if found else 1
