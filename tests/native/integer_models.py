"""A model of many integer products whose answers show their accumulators, and what the emulator says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import runner_cases
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compressor import native
from compressor.quantize.products import Graph, adds_in_pairs, columns_of, find_products, rows_of

Feed = dict[str, NDArray[Any]]
Arithmetic = Literal["exact", "saturating"]

# Rows, depth, columns: one row (kernels of their own) and several, depths that no vector divides, blocks of both.
SHAPES = ((1, 4, 16), (1, 7, 3), (1, 64, 64), (1, 130, 48), (2, 33, 17), (5, 130, 40), (9, 515, 33))
# Channels in and out, kernel, groups, stride, padding.
CONVOLUTIONS = (
    (3, 8, 3, 1, 1, 1),
    (16, 16, 1, 1, 1, 0),
    (64, 32, 3, 1, 1, 1),
    (8, 12, 3, 4, 2, 1),
    (5, 7, 3, 1, 2, 0),
    (16, 16, 3, 16, 1, 1),
    (3, 3, 5, 3, 1, 2),
)
# Accumulators are shown in steps of this: within 8 bits, and yet saturation is seen.
_STEP = 4096.0


@dataclass(frozen=True)
class Products:
    """The model, an input for it, and how many of its answers are accumulators themselves."""

    path: Path
    feed: Feed


def extremes(generator: np.random.Generator, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    """Integers of the type, half of them at one end of its range or the other; -128 is left out."""
    low, high = (0, 255) if dtype is np.uint8 else (-127, 127)
    ends = generator.choice([low, high, high], shape)
    return np.where(generator.random(shape) < 0.5, ends, generator.integers(low, high + 1, shape)).astype(dtype)


def products(folder: Path, name: str = "products") -> Products:
    """MatMulInteger with and without a zero point, MatMulIntegerToFloat; between (de)quantizers MatMul, Gemm, Conv."""
    generator = np.random.default_rng(7)
    nodes: list[Any] = []
    weights: dict[str, NDArray[Any]] = {"one": np.float32(1), "step": np.float32(_STEP), "middle": np.uint8(128)}
    weights |= {f"zero{zero}": np.uint8(zero) for zero in (0, 3)}
    feed: Feed = {}
    outputs: list[tuple[str, int, list[None]]] = []

    def weighted(where: str, shape: tuple[int, ...], axis: int, dtype: type = np.int8) -> None:
        channels = shape[axis]
        weights[f"{where}.w"] = extremes(generator, shape, dtype)
        weights[f"{where}.scale"], weights[f"{where}.none"] = np.ones(channels, np.float32), np.zeros(channels, np.int8)

    for number, (rows, depth, columns) in enumerate(SHAPES):
        feed[f"a{number}"] = extremes(generator, (rows, depth), np.uint8)
        for zero in (0, 3):
            where = f"integer{number}.{zero}"
            weighted(where, (depth, columns), 1)
            nodes += _dynamic(where, f"a{number}", zero)
            outputs.append((where, TensorProto.INT32, [None] * 2))
        where = f"unsigned{number}"
        weighted(where, (depth, columns), 1, np.uint8)
        nodes += _dynamic(where, f"a{number}", 3)
        outputs.append((where, TensorProto.INT32, [None] * 2))
        where = f"float{number}"
        weighted(where, (depth, columns), 1)
        scaled = [f"a{number}", f"{where}.w", "one", f"{where}.scale", "zero3", f"{where}.none"]
        nodes.append(helper.make_node("MatMulIntegerToFloat", scaled, [where], domain="com.microsoft"))
        outputs.append((where, TensorProto.FLOAT, [None] * 2))
        for operator in ("MatMul", "Gemm"):
            where = f"{operator}{number}"
            weighted(where, (depth, columns), 1)
            nodes += _between(where, operator, f"a{number}", 1, {})
            outputs.append((where, TensorProto.UINT8, [None] * 2))
    for number, (inputs, channels, kernel, groups, stride, padding) in enumerate(CONVOLUTIONS):
        where = f"Conv{number}"
        feed[f"x{number}"] = extremes(generator, (2, inputs, 9, 8), np.uint8)
        weighted(where, (channels, inputs // groups, kernel, kernel), 0)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "group": groups}
        nodes += _between(where, "Conv", f"x{number}", 0, attributes)
        outputs.append((where, TensorProto.UINT8, [None] * 4))
    interface = [(key, TensorProto.UINT8, list(array.shape)) for key, array in feed.items()]
    path = runner_cases.save(
        folder / f"{name}.onnx",
        nodes,
        interface,
        outputs,
        [(key, np.asarray(array)) for key, array in weights.items()],
    )
    return Products(path, feed)


def _dynamic(where: str, value: str, zero: int) -> Iterator[Any]:
    """MatMulInteger, and how a dynamic model goes on, so that the scale of the weights is seen."""
    yield helper.make_node("MatMulInteger", [value, f"{where}.w", f"zero{zero}"], [where])
    yield helper.make_node("Cast", [where], [f"{where}.cast"], to=TensorProto.FLOAT)
    yield helper.make_node("Identity", ["one"], [f"{where}.step"])  # of the activations: no constant in such a model
    yield helper.make_node("Mul", [f"{where}.step", f"{where}.scale"], [f"{where}.scales"])
    yield helper.make_node("Mul", [f"{where}.cast", f"{where}.scales"], [f"{where}.y"])


def _between(where: str, operator: str, value: str, axis: int, attributes: dict[str, Any]) -> Iterator[Any]:
    quantized = [f"{where}.{part}" for part in ("w", "scale", "none")]
    yield helper.make_node("DequantizeLinear", [value, "one", "zero3"], [f"{where}.a"])
    yield helper.make_node("DequantizeLinear", quantized, [f"{where}.b"], axis=axis)
    yield helper.make_node(operator, [f"{where}.a", f"{where}.b"], [f"{where}.y"], **attributes)
    yield helper.make_node("QuantizeLinear", [f"{where}.y", "step", "middle"], [where])


def expected(found: Products, arithmetic: Arithmetic) -> list[NDArray[Any]]:
    """The model's outputs, computed by the emulator: every product's accumulators, and of those between quantizers the
    nearest step."""
    model = onnx.load(found.path)
    graph = Graph(model)
    answers: dict[str, NDArray[Any]] = {}
    for product in find_products(graph)[0]:
        weights, activations = graph.array(product.weights), found.feed[product.activations]
        zero = _zero_point(graph, product.node)
        paired = adds_in_pairs(product, weights)
        sums = []
        for rows, columns in zip(rows_of(product, activations), columns_of(product, weights), strict=True):
            wide = columns.astype(np.int32)
            exact = rows.astype(np.int32) @ wide - zero * wide.sum(axis=0)
            saturates = arithmetic == "saturating" and paired
            sums.append(exact + native.load().saturation(rows, columns)[0] if saturates else exact)
        answers[product.node.output[0]] = _laid_out(product.node, np.stack(sums), activations)
        if product.node.op_type == "MatMulIntegerToFloat":
            answers[product.node.output[0]] = sums[0].astype(np.float32) * graph.array(product.node.input[3])
    outputs = []
    for value in model.graph.output:
        if value.name in answers:
            outputs.append(answers[value.name])
            continue
        sums = answers[f"{value.name}.y"]
        scale = graph.array(f"{value.name}.scale") / np.float32(_STEP)  # as onnxruntime multiplies: once, in float32
        steps = np.rint(sums.astype(np.float32) * scale.reshape(-1, *[1] * (sums.ndim - 2)))
        outputs.append(np.clip(steps + 128, 0, 255).astype(np.uint8))
    return outputs


def _zero_point(graph: Graph, node: onnx.NodeProto) -> int:
    position = {"MatMulInteger": 2, "MatMulIntegerToFloat": 4}.get(node.op_type)
    offset = graph.producers[node.input[0]].input[2] if position is None else node.input[position]
    return int(graph.array(offset))


def _laid_out(node: onnx.NodeProto, sums: NDArray[np.int32], activations: NDArray[Any]) -> NDArray[np.int32]:
    """From [groups, rows, outputs of a group] to the operator's own layout."""
    if node.op_type != "Conv":
        return sums[0]
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    sizes = zip(activations.shape[2:], attributes["kernel_shape"], attributes["strides"], strict=True)
    places = [(size + 2 * attributes["pads"][0] - kernel) // stride + 1 for size, kernel, stride in sizes]
    split = sums.reshape(len(sums), len(activations), *places, -1)
    return np.moveaxis(split, (1, 0, 4), (0, 1, 2)).reshape(len(activations), -1, *places)
