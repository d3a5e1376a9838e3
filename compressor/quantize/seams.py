"""Seams: values of a float32 graph whose channels can be scaled without changing what the graph computes.

Where a value is read by products alone, its channels are divided by `s` in the weights of what makes it and multiplied
by `s` in the weights of what reads it: W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1) for f(s v) = s f(v), s > 0.
What makes it is a product, a normalization with weights, or attention over a product; in between may lie what is
positively homogeneous: of a Clip(0, 6) each channel would need a bound of its own, so it ends the way. Where nothing
can be divided, or others read the value too, a Mul before the products divides instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.onnx_file import reads
from compressor.quantize.products import Graph

PRODUCTS = ("Conv", "MatMul", "Gemm")
_HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity")
# Inputs that scale and shift each channel of what is normalized along the last dimension.
_NORMALIZATIONS = {
    "LayerNormalization": (1, 2),
    "SkipLayerNormalization": (2, 3),
    "EmbedLayerNormalization": (5, 6),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipSimplifiedLayerNormalization": (2,),
}
_VALUES, _ATTENTION_BIAS = 2, 3  # inputs of MultiHeadAttention


@dataclass(frozen=True)
class Fold:
    """Where channels are divided: input `position` of a node, an initializer, along `axis` from entry `start` on."""

    node: str
    position: int
    axis: int
    start: int = 0


@dataclass(frozen=True)
class Seam:
    """A value with `channels` along `axis` (negative), and the products that read it, by node.

    `folds`: what divides it; none: a Mul would.
    """

    value: str
    channels: int
    axis: int
    readers: tuple[str, ...]
    folds: tuple[Fold, ...]


def find_seams(model: onnx.ModelProto, products: Iterable[str]) -> tuple[Seam, ...]:
    """The seams before these nodes, in the order of the graph."""
    kept = {value.name for value in model.graph.output}
    # What the bodies of If, Loop and Scan read.
    kept.update(name for node in model.graph.node for name in reads(node) if name not in node.input)
    return _Finder(Graph(model), kept).seams(set(products))


def move(model: onnx.ModelProto, scales: Mapping[Seam, NDArray[np.float64]]) -> onnx.ModelProto:
    """A copy of the model in which each seam's channels are divided by its scales, [channels], positive.

    Computes the same up to float32 rounding.
    """
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    mover = _Mover(moved)
    for seam, scale in scales.items():
        mover.move(seam, scale)
    mover.finish()
    return moved


def by_input(weights: NDArray[Any], node: onnx.NodeProto) -> NDArray[Any]:
    """A view of a product's weights as [groups, outputs of a group, inputs of a group, places]."""
    if node.op_type != "Conv":
        turned = weights if attribute(node, "transB", 0) else weights.T
        return turned[None, :, :, None]
    groups = attribute(node, "group", 1)
    return weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((one.i for one in node.attribute if one.name == name), default)


class _Finder:
    """`kept` are the values and weights that must stay what they are."""

    def __init__(self, graph: Graph, kept: set[str]) -> None:
        self._graph, self._kept = graph, kept

    def seams(self, products: set[str]) -> tuple[Seam, ...]:
        graph = self._graph
        read: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.nodes:
            if node.name in products and node.op_type in PRODUCTS and self._weights(node) is not None:
                read.setdefault(node.input[0], []).append(node)
        found = []
        for value, readers in read.items():
            axis, channels = _channel_axis(graph, readers[0]), _inputs(graph, readers[0])
            if any((_channel_axis(graph, one), _inputs(graph, one)) != (axis, channels) for one in readers):
                continue
            names = tuple(node.name for node in readers)
            alone = len(graph.readers[value]) == len(readers) and value not in self._kept
            way = self._way(value, axis, channels) if alone else None
            if way is not None:
                found.append(Seam(value, channels, axis, names, way))
            elif readers[0].op_type != "Conv" and value in graph.producers:
                found.append(Seam(value, channels, axis, names, ()))
        return tuple(found)

    def _weights(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """A product's constant weights, which it shares with no other node: a table that is tied to it stays so."""
        tensor = self._graph.initializers.get(node.input[1])
        if tensor is None or len(self._graph.readers[node.input[1]]) > 1 or node.input[1] in self._kept:
            return None
        plain = node.op_type == "Conv" or len(tensor.dims) == 2
        return tensor if plain and not attribute(node, "transA", 0) else None

    def _way(self, value: str, axis: int, channels: int) -> tuple[Fold, ...] | None:
        """What divides `value`; None where nothing can."""
        node = self._graph.producers.get(value)
        if node is None:
            return None
        image = node.op_type == "MaxPool" and axis < -1
        if node.op_type in _HOMOGENEOUS or image or self._pads_with_zero(node) or self._clips_below_zero(node):
            return self._above(node.input[0], axis, channels)
        if node.op_type in ("Add", "Mul"):
            return self._through_arithmetic(node, axis, channels)
        if node.op_type == "MultiHeadAttention":
            return self._through_attention(node, axis, channels)
        return self._weighted(node, axis, channels, 0, channels)

    def _above(self, value: str, axis: int, channels: int) -> tuple[Fold, ...] | None:
        alone = len(self._graph.readers[value]) == 1 and value not in self._kept
        return self._way(value, axis, channels) if alone else None

    def _through_arithmetic(self, node: onnx.NodeProto, axis: int, channels: int) -> tuple[Fold, ...] | None:
        vectors = [
            Fold(node.name, place, axis) for place, name in enumerate(node.input) if self._vector(name, axis, channels)
        ]
        computed = [name for name in node.input if name not in self._graph.initializers]
        if node.op_type == "Mul":
            if vectors:
                return (vectors[0],)
            ways = (self._above(name, axis, channels) for name in computed if len(computed) == 2)
            return next((way for way in ways if way is not None), None)
        way = self._above(computed[0], axis, channels) if vectors and len(computed) == 1 else None
        return None if way is None else (*vectors, *way)

    def _through_attention(self, node: onnx.NodeProto, axis: int, channels: int) -> tuple[Fold, ...] | None:
        """Mixtures of values, channel by channel: what divides the values divides the mixtures."""
        inputs = [*node.input, "", "", "", ""]
        if len(node.output) > 1 or any(inputs[6:]) or not inputs[_VALUES]:
            return None
        values, bias = inputs[_VALUES], inputs[_ATTENTION_BIAS]
        biased = (Fold(node.name, _ATTENTION_BIAS, -1, 2 * channels),) if bias else ()
        if bias and not self._vector(bias, -1, 3 * channels):
            return None
        split = self._graph.producers.get(values)
        if split is not None and split.op_type == "Split" and len(self._graph.readers[values]) == 1:
            whole = split.input[0]
            product = self._graph.producers.get(whole)
            equal = attribute(split, "num_outputs", 0) == len(split.output) and attribute(split, "axis", 0) == -1
            if product is None or not equal or len(self._graph.readers[whole]) != 1:
                return None
            start = list(split.output).index(values) * channels
            way = self._weighted(product, axis, channels, start, len(split.output) * channels)
        else:
            way = self._above(values, axis, channels)
        return None if way is None else (*biased, *way)

    def _weighted(
        self, node: onnx.NodeProto, axis: int, channels: int, start: int, outputs: int
    ) -> tuple[Fold, ...] | None:
        """A node that has the scale of its outputs in its weights."""
        if node.op_type in _NORMALIZATIONS and axis == -1:
            places = [place for place in _NORMALIZATIONS[node.op_type] if [*node.input, "", ""][place]]
            last = attribute(node, "axis", -1) == -1
            if last and all(self._vector(node.input[place], -1, channels) for place in places):
                return tuple(Fold(node.name, place, -1) for place in places)
            return None
        tensor = self._weights(node) if node.op_type in PRODUCTS else None
        if tensor is None or (node.op_type == "Conv") != (axis < -1):
            return None
        rows = node.op_type == "Conv" or attribute(node, "transB", 0)
        if tensor.dims[0 if rows else 1] != outputs:
            return None
        folds = [Fold(node.name, 1, 0 if rows else 1, start)]
        if len(node.input) > 2 and node.input[2]:
            if not self._vector(node.input[2], -1, outputs):
                return None
            folds.append(Fold(node.name, 2, -1, start))
        return tuple(folds)

    def _clips_below_zero(self, node: onnx.NodeProto) -> bool:
        """Whether it is a Clip, from 0 on and without end."""
        low, high = [*node.input[1:], "", ""][:2]
        tensor = self._graph.initializers.get(low)
        return node.op_type == "Clip" and not high and tensor is not None and not numpy_helper.to_array(tensor).any()

    def _pads_with_zero(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Pad" or any(one.name == "mode" and one.s != b"constant" for one in node.attribute):
            return False
        filled = [*node.input, "", ""][2]
        tensor = self._graph.initializers.get(filled)
        return not filled or (tensor is not None and not numpy_helper.to_array(tensor).any())

    def _vector(self, name: str, axis: int, channels: int) -> bool:
        """Whether it is a constant with a number for each channel along `axis`."""
        tensor = self._graph.initializers.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < -axis:
            return False
        return bool(tensor.dims[axis] == channels == int(np.prod(tensor.dims)))


def _channel_axis(graph: Graph, node: onnx.NodeProto) -> int:
    return 1 - len(graph.initializers[node.input[1]].dims) if node.op_type == "Conv" else -1


def _inputs(graph: Graph, node: onnx.NodeProto) -> int:
    sizes = graph.initializers[node.input[1]].dims
    if node.op_type == "Conv":
        return int(sizes[1]) * attribute(node, "group", 1)
    return int(sizes[1 if attribute(node, "transB", 0) else 0])


class _Mover:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._nodes = {node.name: node for node in model.graph.node}
        self._arrays: dict[str, NDArray[np.float32]] = {}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in reads(node):
                self._uses[name] = self._uses.get(name, 0) + 1

    def move(self, seam: Seam, scale: NDArray[np.float64]) -> None:
        for fold in seam.folds:
            array = self._own(self._nodes[fold.node], fold.position)
            along = [1] * array.ndim
            along[fold.axis] = -1
            part = [slice(None)] * array.ndim
            part[fold.axis] = slice(fold.start, fold.start + len(scale))
            array[tuple(part)] /= scale.reshape(along)
        if not seam.folds:
            self._divide(seam, scale)
        for name in seam.readers:
            node = self._nodes[name]
            weights = by_input(self._own(node, 1), node)
            weights *= scale.reshape(weights.shape[0], 1, weights.shape[2], 1)

    def finish(self) -> None:
        for name, array in self._arrays.items():
            self._initializers[name].CopyFrom(numpy_helper.from_array(array, name))

    def _own(self, node: onnx.NodeProto, position: int) -> NDArray[np.float32]:
        """An input's array, to be changed; a copy where others read it too."""
        name = node.input[position]
        if name not in self._arrays:
            array = numpy_helper.to_array(self._initializers[name]).copy()
            if self._uses[name] > 1:
                self._uses[name] -= 1
                name = f"{name}_{node.name}"
                node.input[position] = name
                self._uses[name] = 1
                self._initializers[name] = self._model.graph.initializer.add(name=name)
            self._arrays[name] = array
        return self._arrays[name]

    def _divide(self, seam: Seam, scale: NDArray[np.float64]) -> None:
        divided, by = f"{seam.value}_migrated", f"{seam.value}_migration"
        self._model.graph.initializer.append(numpy_helper.from_array((1 / scale).astype(np.float32), by))
        for name in seam.readers:
            self._nodes[name].input[0] = divided
        place = min(i for i, node in enumerate(self._model.graph.node) if node.name in seam.readers)
        self._model.graph.node.insert(place, helper.make_node("Mul", [seam.value, by], [divided], name=divided))
        self._nodes = {node.name: node for node in self._model.graph.node}
