"""Where scales were moved before rounding, layers are told of the float32 original as of the moved one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor.quantize.float_model import load_float_model
from compressor.quantize.int8 import to_dynamic_int8, to_static
from compressor.quantize.layer_errors import noises, restored, untold
from compressor.quantize.merged import merge_products
from compressor.quantize.seams import find_seams, move
from compressor.quantize.sites import assign, find_sites
from compressor.quantize.weight_only import quantize_weights
from compressor.recipe_quantize import NodePrecision

MakeOnnx = Callable[..., Path]
RNG = np.random.default_rng(11)
FEEDS = [{"x": RNG.standard_normal((1, 128)).astype(np.float32)} for _ in range(32)]


def numbers(*shape: int) -> NDArray[np.float32]:
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


@pytest.fixture
def source(make_onnx: MakeOnnx, tmp_path: Path) -> onnx.ModelProto:
    """A Gemm whose inputs and outputs are scaled, one behind a Tanh, where a Mul divides, and two beside them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="outputs"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w1", "b1"], ["c"], name="both", transB=1),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["e"], name="inputs"),
        helper.make_node("Tanh", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"], name="behind"),
    ]
    arrays = {f"w{number}": numbers(128, 128) for number in range(4)} | {"b1": numbers(128) * 8}
    interface = {"x": (TensorProto.FLOAT, ["n", 128])}, {"y": (TensorProto.FLOAT, ["n", 128])}
    return load_float_model(make_onnx(tmp_path / "m.onnx", nodes, *interface, arrays))


def scaled(source: onnx.ModelProto) -> onnx.ModelProto:
    seams = find_seams(source, {"both", "inputs", "behind"})
    assert [len(seam.folds) for seam in seams] == [1, 2, 0]
    return move(source, {seam: np.exp(np.random.default_rng(5).standard_normal(seam.channels)) for seam in seams})


def written(moved: onnx.ModelProto, precision: NodePrecision) -> onnx.ModelProto:
    sites = find_sites(moved)
    nodes = [site.node for site in sites]
    if precision == "dynamic-int8":
        return to_dynamic_int8(moved, nodes)
    if precision == "static-int8":
        values = [value for node in moved.graph.node for value in (*node.input, *node.output)]
        return to_static(moved, nodes, precision, dict.fromkeys(values, (-6.0, 6.0)))
    quantized = onnx.ModelProto()
    quantized.CopyFrom(moved)
    quantize_weights(quantized, sites, assign(sites, precision, {}), 32)
    return quantized


@pytest.mark.parametrize("precision", ["dynamic-int8", "static-int8", "weight-int8", "weight-int4"])
def test_layers_are_told_of_the_original_as_of_what_was_rounded(
    source: onnx.ModelProto, precision: NodePrecision
) -> None:
    moved = scaled(source)
    quantized = written(moved, precision)
    right = {one.site.node: one.snr_db for one in noises(moved, quantized, find_sites(moved), FEEDS)}
    sites = find_sites(source)
    assert untold(source, quantized, sites) == ()
    found = {one.site.node: one.snr_db for one in noises(source, quantized, sites, FEEDS)}
    # Of few numbers, scales that are fitted explain a part of the error.
    assert found == pytest.approx(right, abs=0.6 if precision == "weight-int4" else 0.3)
    assert len(found) == 4
    if precision == "weight-int8":  # all in float32 is what was moved
        again = noises(moved, restored(source, quantized, sites), sites, FEEDS)
        assert all(one.snr_db > 30 for one in again)


def with_bias_inside(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The dynamic product of this node merged, with the bias behind it too."""
    (add,) = (node for node in model.graph.node if node.op_type == "Add" and node.output[0] == name)
    model.graph.node.remove(add)
    merge_products(model)
    (product,) = (node for node in model.graph.node if add.input[0] in node.output)
    product.input.append(add.input[1])
    product.output[0] = name
    return model


def test_a_bias_is_read_where_it_is_an_input_of_the_product(source: onnx.ModelProto) -> None:
    """It tells by how much the inputs of a Gemm were scaled, and by how much its outputs."""
    sites, quantized = find_sites(source), written(scaled(source), "dynamic-int8")
    expected = {one.site.node: one.snr_db for one in noises(source, quantized, sites, FEEDS)}
    other = with_bias_inside(quantized, "c")
    assert [len(node.input) for node in other.graph.node if node.op_type == "MatMulIntegerToFloat"] == [6, 7, 6, 6]
    assert {one.site.node: one.snr_db for one in noises(source, other, sites, FEEDS)} == pytest.approx(expected)


def test_what_is_not_scaled_is_held_against_its_own_weights(source: onnx.ModelProto) -> None:
    """Also where a gain of all, or a channel that is lost, would explain its error."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(source)
    held = {tensor.name: tensor for tensor in wrong.graph.initializer}
    for name, factor in (("w0", np.full(128, 1.1)), ("w2", np.where(np.arange(128) == 3, 0, 1))):
        array = numpy_helper.to_array(held[name]) * factor.astype(np.float32)
        held[name].CopyFrom(numpy_helper.from_array(array, name))
    sites = find_sites(source)
    found = {one.site.node: one.snr_db for one in noises(source, wrong, sites, FEEDS)}
    assert found["outputs"] == pytest.approx(20.0, abs=0.1)
    assert 15 < found["inputs"] < 35, "the share of one of 128 channels"


def test_of_weights_that_cannot_be_read_nothing_is_told_where_others_are_scaled(source: onnx.ModelProto) -> None:
    sites = find_sites(source)
    for model, left_out in ((source, ()), (scaled(source), ("inputs",))):
        quantized = written(model, "weight-int8")
        (node,) = (node for node in quantized.graph.node if node.name == "inputs")
        quantized.graph.node.insert(0, helper.make_node("Identity", [node.input[2]], ["hidden"]))
        node.input[2] = "hidden"
        assert untold(source, quantized, sites) == left_out
        told = {one.site.node for one in noises(source, quantized, sites, FEEDS)}
        assert told == {site.node for site in sites}.difference(left_out)
