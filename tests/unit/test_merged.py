"""Dynamic products in one node: the bits of onnxruntime's own form, as many nodes that run, and what stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from test_carried import operators

from compressor.onnxrt import open_session
from compressor.quantize.int8 import to_dynamic_int8, to_static
from compressor.quantize.merged import merge_products
from compressor.quantize.products import Graph, find_products
from compressor.quantize.saturation import can_narrow, same_everywhere

MakeOnnx = Callable[..., Path]
FLOAT = TensorProto.FLOAT


def drawn(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def written(make_onnx: MakeOnnx, tmp_path: Path) -> onnx.ModelProto:
    """As onnxruntime's quantizer writes it: two products of one input, as in attention, one behind, and a Gemm."""
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], name="key"),
        helper.make_node("Mul", ["q", "k"], ["both"]),
        helper.make_node("Relu", ["both"], ["r"]),
        helper.make_node("MatMul", ["r", "wo"], ["o"], name="behind"),
        helper.make_node("Tanh", ["o"], ["t"]),
        helper.make_node("Gemm", ["t", "wg", "bg"], ["y"], name="biased"),
    ]
    arrays = {"wq": drawn(64, 48), "wk": drawn(64, 48), "wo": drawn(48, 40), "wg": drawn(40, 24), "bg": drawn(24)}
    path = make_onnx(tmp_path / "float.onnx", nodes, {"x": (FLOAT, ["n", 64])}, {"y": (FLOAT, ["n", 24])}, arrays)
    options = {"MatMulConstBOnly": True, "DefaultTensorType": FLOAT}
    made = tmp_path / "dynamic.onnx"
    quantize_dynamic(path, made, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    return onnx.load(made)


def merged(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    merge_products(copy)
    onnx.checker.check_model(copy)  # the order of nodes, too
    return copy


def counted(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def answer(model: onnx.ModelProto, x: NDArray[np.float32], *, optimized: bool) -> NDArray[np.float32]:
    found: NDArray[np.float32] = open_session(model.SerializeToString(), optimized=optimized).run(None, {"x": x})[0]
    return found


def test_one_node_takes_the_place_of_four(written: onnx.ModelProto) -> None:
    before, found = counted(written), merged(written)
    assert (before["MatMulInteger"], before["Cast"], before["DynamicQuantizeLinear"]) == (4, 4, 3)
    after = counted(found)
    assert after["MatMulIntegerToFloat"] == 3
    assert sum(before.values()) - sum(after.values()) == 3 * 3
    assert after["DynamicQuantizeLinear"] == 3, "query and key read one"
    names = {node.name: node.output[0] for node in found.graph.node if node.op_type == "MatMulIntegerToFloat"}
    assert names == {"query_quant": "q", "key_quant": "k", "behind_quant": "o"}
    held = {node.name for node in written.graph.node if node.op_type == "MatMulInteger"}
    assert held == {*names, "biased_MatMul_quant"}
    assert [entry.version for entry in found.opset_import if entry.domain == "com.microsoft"] == [1]


def test_the_same_bits(written: onnx.ModelProto) -> None:
    found = merged(written)
    for rows in (1, 5):
        x = drawn(rows, 64)
        np.testing.assert_array_equal(*(answer(one, x, optimized=True) for one in (written, found)))
        np.testing.assert_allclose(*(answer(one, x, optimized=False) for one in (written, found)), rtol=1e-5, atol=1e-5)


def test_the_same_nodes_run(written: onnx.ModelProto, tmp_path: Path) -> None:
    """A bias would be added by a node of its own."""
    ran = operators(merged(written), tmp_path)
    assert ran == operators(written, tmp_path)
    assert (ran["DynamicQuantizeMatMul"], ran["MatMulIntegerToFloat"], ran["Add"]) == (2, 2, 0)


@pytest.mark.parametrize("left", [True, False])
def test_a_bias_on_either_side_stays_with_its_product(make_onnx: MakeOnnx, tmp_path: Path, left: bool) -> None:
    """torch's older exporter writes the bias first."""
    added = ["b", "product"] if left else ["product", "b"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"], name="p"), helper.make_node("Add", added, ["y"])]
    ends = {"x": (FLOAT, ["n", 5, 64])}, {"y": (FLOAT, ["n", 5, 48])}
    path = make_onnx(tmp_path / "float.onnx", nodes, *ends, {"w": drawn(64, 48), "b": drawn(48)})
    (tmp_path / "ran").mkdir()
    ran = operators(to_dynamic_int8(onnx.load(path), ["p"]), tmp_path / "ran")
    assert (ran["DynamicQuantizeMatMul"], ran["Add"]) == (1, 0)


@pytest.mark.parametrize("precision", ["dynamic", "static"])
def test_nodes_stand_behind_what_their_bodies_read(make_onnx: MakeOnnx, tmp_path: Path, precision: str) -> None:
    """onnxruntime's quantizers put an If first, whose condition is there from the beginning."""
    bodies = [
        helper.make_graph(
            [helper.make_node(operator, ["m"], [operator])],
            operator,
            [],
            [helper.make_tensor_value_info(operator, FLOAT, None)],
        )
        for operator in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="p"),
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    arrays = {"w": drawn(64, 48), "yes": np.array(True)}
    path = make_onnx(tmp_path / "if.onnx", nodes, {"x": (FLOAT, ["n", 64])}, {"y": (FLOAT, ["n", 48])}, arrays)
    model, x = onnx.load(path), drawn(3, 64)
    if precision == "dynamic":
        made = to_dynamic_int8(model, ["p"])
    else:
        made = to_static(model, ["p"], "static-int8", {"x": (-4.0, 4.0), "m": (-40.0, 40.0)})
    onnx.checker.check_model(made)
    expected = -(x @ arrays["w"])
    np.testing.assert_allclose(answer(made, x, optimized=True), expected, atol=0.05 * np.abs(expected).max())


def shown(model: onnx.ModelProto, value: str, kind: int) -> None:
    model.graph.output.append(helper.make_tensor_value_info(value, kind, ["some", "more"]))


def read_again(model: onnx.ModelProto, value: str, kind: int) -> None:
    model.graph.node.append(helper.make_node("Neg", [value], ["again"]))
    shown(model, "again", kind)


def read_in_a_body(model: onnx.ModelProto, value: str, kind: int) -> None:
    bodies = []
    for name in ("then", "else"):
        made = helper.make_tensor_value_info(name, kind, ["some", "more"])
        bodies.append(helper.make_graph([helper.make_node("Neg", [value], [name])], name, [], [made]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["again"], then_branch=bodies[0], else_branch=bodies[1], name="if")
    )
    shown(model, "again", kind)


@pytest.mark.parametrize("reads", [shown, read_again, read_in_a_body])
@pytest.mark.parametrize("part", ["sums", "sums in float", "scales"])
def test_what_is_read_by_others_too_is_left_alone(
    written: onnx.ModelProto, part: str, reads: Callable[[onnx.ModelProto, str, int], None]
) -> None:
    (product,) = (node for node in written.graph.node if node.name == "behind_quant")
    (last,) = (node for node in written.graph.node if node.output[0] == "o")
    value = {"sums": product.output[0], "sums in float": last.input[0], "scales": last.input[1]}[part]
    reads(written, value, TensorProto.INT32 if part == "sums" else FLOAT)
    found = merged(written)
    kept = {node.name for node in found.graph.node if node.op_type == "MatMulInteger"}
    assert kept == {"behind_quant", "biased_MatMul_quant"}
    assert counted(found)["MatMulIntegerToFloat"] == 2
    assert value in {output for node in found.graph.node for output in node.output}


def test_the_scale_of_other_activations_is_left_alone(written: onnx.ModelProto) -> None:
    """One a row, say, which the merged node does not have."""
    scale = next(node.output[1] for node in written.graph.node if node.op_type == "DynamicQuantizeLinear")
    for node in written.graph.node:
        if node.op_type == "Mul" and scale in node.input:
            node.input[list(node.input).index(scale)] = "rows"
    written.graph.input.append(helper.make_tensor_value_info("rows", FLOAT, ["n", 1]))
    assert counted(merged(written))["MatMulIntegerToFloat"] == 1


@pytest.fixture
def saturating(written: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of query and key such that two products exceed 16 bits."""
    for tensor in written.graph.initializer:
        if tensor.name in ("wq_quantized", "wk_quantized"):
            array = np.abs(numpy_helper.to_array(tensor).astype(np.int16)).clip(100, 127).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return written


def test_the_merged_are_certified_and_narrowed_as_the_others(saturating: onnx.ModelProto, tmp_path: Path) -> None:
    paths = tmp_path / "four.onnx", tmp_path / "one.onnx"
    feeds = [{"x": np.random.default_rng(seed).uniform(0.9, 1, (1, 64)).astype(np.float32)} for seed in range(3)]
    for path, model in zip(paths, (saturating, merged(saturating)), strict=True):
        onnx.save(model, path)
    for narrow in (False, True):
        four, one = (same_everywhere(path, feeds, narrow=narrow).layers for path in paths)
        assert {layer.operator for layer in one} == {"MatMulIntegerToFloat", "MatMulInteger"}
        assert [_numbers(layer) for layer in one] == [_numbers(layer) for layer in four]
        wrong = {layer.node for layer in one if layer.wrong}
        assert not wrong if narrow else {"query_quant", "key_quant"} <= wrong
    assert {layer.node: layer.narrowed for layer in one}["key_quant"] == 48
    x = drawn(4, 64)
    np.testing.assert_array_equal(*(answer(onnx.load(path), x, optimized=True) for path in paths))


def _numbers(layer: object) -> dict[str, object]:
    return {name: value for name, value in vars(layer).items() if name != "operator"}


def test_its_zero_point_and_scale_are_those_of_the_weights() -> None:
    """Of another's file: a zero point that is none, or a scale that is no constant, keep the weights from narrowing."""
    arrays = {
        "w": np.full((4, 3), 120, np.int8),
        "scale": np.full(3, 0.1, np.float32),
        "none": np.zeros(3, np.int8),
        "some": np.ones(3, np.int8),
        "bias": np.ones(3, np.float32),
    }
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    for ends, scale, zero_point, narrows in (
        (["scale", "z", "none", "bias"], "scale", "none", True),
        (["scale", "", "", "bias"], "scale", None, True),
        (["scale"], "scale", None, True),
        (["scale", "z", "some"], "scale", "some", False),
        (["given", "z", "none"], None, "none", False),
    ):
        node = helper.make_node("MatMulIntegerToFloat", ["a", "w", "s", *ends], ["y"], name="p", domain="com.microsoft")
        graph = Graph(helper.make_model(helper.make_graph([node], "g", [], [], held)))
        ((product,), others) = find_products(graph)
        assert (product.scale, product.zero_point, product.bias, others) == (scale, zero_point, None, [])
        assert can_narrow(graph, product) == narrows
