"""Whether a quantized graph's product was scaled before it was rounded, as migration does, found by its weights.

A scale that was moved between layers divides a product's inputs or outputs, channel by channel, and is multiplied into
its weights: where W is float32's and W' what the integers stand for, W'[o, i] = W[o, i] u[i] v[o] but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from compressor.quantize.blocks import Blocks, from_blocks
from compressor.quantize.products import ON_INTEGERS, Graph, zero_point_of
from compressor.quantize.seams import PRODUCTS, attribute, by_input

Array = NDArray[np.float64]
_IN_INTEGERS = (*ON_INTEGERS, "MatMulNBits")
_ROUNDS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Identity")
# A fit with more scales is taken where the one with fewer leaves so many times its error, each beside the numbers that
# are left to err; below the second, relative to the weights, nothing but float32's own rounding is left.
_BETTER, _EXACT = 1.5, 1e-10
# Weights that agree so far are not scaled, whatever scales could make of them.
_ALIKE = 0.05
_ROUNDS_OF_FIT = 30


@dataclass(frozen=True)
class Scales:
    """What float32's weights of a product are multiplied by to stand beside the quantized ones: `inputs` [groups,
    inputs of a group], `outputs` [groups, outputs of a group], which a bias is multiplied by too. `scaled`: not all 1.
    `adds_noise`: false of a scaled product whose weights differ by float32's rounding alone.
    """

    inputs: Array
    outputs: Array
    scaled: bool
    adds_noise: bool = True

    def weights(self, node: onnx.NodeProto, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """A product's weights, scaled."""
        made = weights.copy()
        view = by_input(made, node)
        view *= self.inputs[:, None, :, None] * self.outputs[:, :, None, None]
        return made

    def bias(self, bias: NDArray[np.float32]) -> NDArray[np.float32]:
        return (bias * self.outputs.reshape(-1)).astype(np.float32)


# Of any shape.
PLAIN = Scales(np.ones((1, 1)), np.ones((1, 1)), scaled=False)


def scales_of(node: onnx.NodeProto, source: Graph, quantized: Graph) -> Scales | None:
    """Those of a float32 product in `source`; None where the quantized graph's weights cannot be read, or do not tell:
    they are in a form that is not known here, or fewer than scales could explain.
    """
    stored = _stored(quantized, node)
    if stored is None:
        return None
    weights, got = by_input(source.array(node.input[1]), node).astype(np.float64), stored.weights
    if got.shape != weights.shape:
        return None
    groups, outputs, inputs, _ = weights.shape
    plain = Scales(np.ones((groups, inputs)), np.ones((groups, outputs)), scaled=False)
    if (energy := np.square(weights).sum()) == 0 or _error(got, weights, plain) <= _EXACT * energy:
        return plain
    gain = (got * weights).sum() / energy
    of_inputs = Scales(_ratio(got, weights, (1, 3)), plain.outputs, scaled=True)
    of_outputs = Scales(plain.inputs, _ratio(got, weights, (2, 3)), scaled=True)
    both = _of_both(got, weights)
    scales = groups * np.array([0, inputs, outputs, inputs + outputs])
    left = np.maximum(1 - scales / weights.size, 0)
    if left[3] < 0.5:
        alike = _error(got, weights, plain) < _ALIKE * energy
        return plain if alike else None
    # A gain of all weights is an error, not a scale that was moved: it counts for plain.
    tried = [Scales(plain.inputs * gain, plain.outputs, scaled=False), of_inputs, of_outputs, both]
    errors = np.array([_error(got, weights, one) for one in tried]) / left
    enough = errors <= _BETTER * errors[3] + _EXACT * np.square(got).sum()
    found = tried[int(np.argmax(enough))]
    if not found.scaled:
        return plain
    if not ((found.inputs > 0).all() and (found.outputs > 0).all()):
        return None
    if found is both and len(node.input) > 2 and node.input[2]:
        return _with_bias(found, node, source, stored)
    return _noted(found, got, weights)


@dataclass(frozen=True)
class _Stored:
    """A product's weights as a quantized graph has them [groups, outputs, inputs, places], and its bias, as read."""

    weights: Array
    bias: Array | None


def _stored(graph: Graph, node: onnx.NodeProto) -> _Stored | None:
    """What stands for a float32 node in the quantized graph, beside what that node reads."""
    found, bias = _product_behind(graph, node.output[0])
    if found is None:
        return None
    if found.op_type in ON_INTEGERS:
        matrix = _on_integers(graph, found)
        weights = None if matrix is None else matrix.T[None, :, :, None]
        if len(found.input) > 6 and found.input[6]:
            bias = _array(graph, found.input[6])
    elif found.op_type == "MatMulNBits":
        weights = _blocks(graph, found)
    else:
        array = _array(graph, found.input[1])
        plain = array is not None and (found.op_type == "Conv" or array.ndim == 2)
        weights = by_input(array, found) if plain and array is not None else None
        if len(found.input) > 2 and found.input[2]:
            bias = _array(graph, found.input[2])
    by = _divided_by(graph, found.input[0], node.input[0])
    if weights is None or by is None or by.size not in (1, weights.shape[0] * weights.shape[2]):
        return None
    per_input = np.broadcast_to(by, (weights.shape[0] * weights.shape[2],)).reshape(weights.shape[0], 1, -1, 1)
    return _Stored(weights.astype(np.float64) * per_input, bias)


def _product_behind(graph: Graph, value: str) -> tuple[onnx.NodeProto | None, Array | None]:
    """The product whose result `value` is, through the scales and the bias of one in integers; that bias."""
    bias = None
    node = graph.producers.get(value)
    while node is not None and node.op_type in ("Add", "Mul", "Cast"):
        constants = [name for name in node.input if name in graph.initializers]
        if node.op_type == "Add" and constants:
            bias = graph.array(constants[0]).astype(np.float64)
        made = [graph.producers[name] for name in node.input if name in graph.producers]
        integers = [one for one in made if one.op_type in ("Mul", "Cast", *_IN_INTEGERS)]
        node = next((one for one in integers if one.op_type != "Mul" or node.op_type == "Add"), None)
    known = node is not None and node.op_type in (*PRODUCTS, *_IN_INTEGERS)
    return (node if known else None), bias


def _on_integers(graph: Graph, node: onnx.NodeProto) -> Array | None:
    """[inputs, outputs]"""
    scale = next((name for name in _scales_behind(graph, node) if name in graph.initializers), None)
    offset = zero_point_of(node)
    if scale is None or not graph.integers(node.input[1]) or (offset and offset not in graph.initializers):
        return None
    codes, zero = graph.array(node.input[1]).astype(np.float64), graph.array(offset) if offset else np.zeros(1)
    made: Array = (codes - zero.astype(np.float64)) * graph.array(scale).astype(np.float64)
    return made if made.ndim == 2 else None


def _scales_behind(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """What scales the result; of MatMulInteger Cast(product) * (scale of the activations * scale of the weights)."""
    if node.op_type == "MatMulIntegerToFloat":
        return [node.input[3]]
    cast = graph.readers.get(node.output[0], [])
    scaled = [one for reader in cast for one in graph.readers.get(reader.output[0], []) if one.op_type == "Mul"]
    made = [graph.producers[name] for one in scaled for name in one.input if name in graph.producers]
    return [name for one in made if one.op_type == "Mul" for name in one.input]


def _blocks(graph: Graph, node: onnx.NodeProto) -> Array | None:
    if len(node.input) != 4 or not all(name in graph.initializers for name in node.input[1:]):
        return None
    codes, scales, zeros = (graph.array(name) for name in node.input[1:])
    rows, columns, bits, block = (attribute(node, name, 0) for name in ("N", "K", "bits", "block_size"))
    if bits not in (4, 8) or zeros.dtype != np.uint8:
        return None
    count = -(-columns // block)
    blocks = Blocks(codes.reshape(rows, count, -1), scales.reshape(rows, count), zeros.reshape(rows, -1), bits, block)
    return from_blocks(blocks, columns).astype(np.float64)[None, :, :, None]


def _array(graph: Graph, value: str) -> Array | None:
    """A constant's numbers, behind DequantizeLinear or a cast too."""
    tensor, node = graph.initializers.get(value), graph.producers.get(value)
    if tensor is not None:
        if tensor.data_type == TensorProto.BFLOAT16:
            return numpy_helper.to_array(tensor).astype(np.float32).astype(np.float64)
        return numpy_helper.to_array(tensor).astype(np.float64)
    if node is None:
        return None
    if node.op_type == "Cast":
        return _array(graph, node.input[0])
    if node.op_type != "DequantizeLinear" or attribute(node, "block_size", 0):
        return None
    parts = [_array(graph, name) for name in node.input if name]
    if any(part is None for part in parts):
        return None
    codes, scale, *zero = (part for part in parts if part is not None)
    along = [1] * codes.ndim
    along[attribute(node, "axis", 1) if scale.size > 1 else 0] = -1
    offset = zero[0].reshape(along if zero[0].size > 1 else [1] * codes.ndim) if zero else 0.0
    return (codes - offset) * scale.reshape(along if scale.size > 1 else [1] * codes.ndim)


def _divided_by(graph: Graph, value: str, beside: str) -> Array | None:
    """What Muls by constants make of the value `beside`, before a product reads it as `value`; None where it reads
    another.
    """
    by: Array = np.ones(1)
    while value != beside:
        node = graph.producers.get(value)
        if node is not None and node.op_type == "Mul":
            constants = [name for name in node.input if name in graph.initializers]
            if len(constants) != 1:
                return None
            factor = graph.array(constants[0]).astype(np.float64).reshape(-1)
            if 1 not in (by.size, factor.size) and by.size != factor.size:
                return None
            by = by * factor
            value = next(name for name in node.input if name != constants[0])
        elif node is not None and node.op_type in _ROUNDS:
            value = node.input[0]
        else:
            return None
    return by


def _ratio(got: Array, weights: Array, axes: tuple[int, int]) -> Array:
    """The least squares of got = ratio * weights, for what is not summed over; 1 where there are no weights."""
    energy = np.square(weights).sum(axes)
    made: Array = np.divide((got * weights).sum(axes), energy, out=np.ones_like(energy), where=energy > 0)
    return made


def _of_both(got: Array, weights: Array) -> Scales:
    """By alternating least squares, from medians of ratios on."""
    ratios = np.abs(np.divide(got, weights, out=np.ones_like(got), where=weights != 0))
    inputs = np.median(ratios, axis=(1, 3))
    outputs = np.median(ratios / np.where(inputs > 0, inputs, 1)[:, None, :, None], axis=(2, 3))
    for _ in range(_ROUNDS_OF_FIT):
        inputs = _ratio(got, weights * outputs[:, :, None, None], (1, 3))
        outputs = _ratio(got, weights * inputs[:, None, :, None], (2, 3))
    return Scales(inputs, outputs, scaled=True)


def _error(got: Array, weights: Array, scales: Scales) -> float:
    made = weights * scales.inputs[:, None, :, None] * scales.outputs[:, :, None, None]
    return float(np.square(got - made).sum())


def _noted(found: Scales, got: Array, weights: Array) -> Scales:
    exact = _error(got, weights, found) <= _EXACT * np.square(got).sum()
    return Scales(found.inputs, found.outputs, scaled=True, adds_noise=not exact)


def _with_bias(found: Scales, node: onnx.NodeProto, source: Graph, stored: _Stored) -> Scales | None:
    """Of inputs times k and outputs over k, weights are the same, a bias is not: it tells k."""
    if stored.bias is None or node.input[2] not in source.initializers:
        return None
    scaled = source.array(node.input[2]).astype(np.float64).reshape(-1) * found.outputs.reshape(-1)
    if scaled.shape != stored.bias.reshape(-1).shape or not scaled.any():
        return None
    k = (stored.bias.reshape(-1) * scaled).sum() / np.square(scaled).sum()
    if k <= 0:
        return None
    weights = by_input(source.array(node.input[1]), node).astype(np.float64)
    return _noted(Scales(found.inputs / k, found.outputs * k, scaled=True), stored.weights, weights)
