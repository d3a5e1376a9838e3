"""What lies between integer products: computed in integers, as onnxruntime's optimized graph shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from test_migration import answers, drawn, model_of, node, products_of

from compressor.quantize.calibration import calibrate
from compressor.quantize.carried import carried
from compressor.quantize.int8 import observed, to_static
from compressor.quantize.thresholds import ranges


def residual() -> onnx.ModelProto:
    """Convolutions with a ReLU6, a sum, a mean over height and width, a classifier: a small MobileNet v2."""
    arrays = {
        "w1": drawn(32, 3, 3, 3), "w2": drawn(32, 1, 3, 3), "w3": drawn(32, 32, 1, 1), "w4": drawn(48, 32, 1, 1),
        "w5": drawn(48, 10), "b": drawn(32), "b4": drawn(48), "b5": drawn(10), "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32), "axes": np.array([-1, -2]), "flat": np.array([0, -1]),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "w1", "b"], ["c1"]),
        node("Clip", ["c1", "zero", "six"], ["a1"]),
        node("Conv", ["a1", "w2", "b"], ["c2"], group=32, pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["a2"]),
        node("Conv", ["a2", "w3", "b"], ["c3"]),
        node("Add", ["c3", "a1"], ["sum"]),
        node("Conv", ["sum", "w4", "b4"], ["c4"]),
        node("Clip", ["c4", "zero", "six"], ["a4"]),
        node("ReduceMean", ["a4", "axes"], ["mean"]),
        node("Reshape", ["mean", "flat"], ["rows"]),
        node("Gemm", ["rows", "w5", "b5"], ["out"]),
    ]
    return model_of(nodes, ("n", 3, 12, 12), arrays)


def static(model: onnx.ModelProto, products: list[str], x: NDArray[np.float32]) -> onnx.ModelProto:
    found = ranges(calibrate(model, [{"x": x}], observed(model, products)), "minmax")
    return to_static(model, products, "static-int8", found)


def operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Those of the graph as onnxruntime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(one.op_type for one in onnx.load(options.optimized_model_filepath).graph.node)


def test_no_value_of_an_image_network_turns_float_on_the_way(tmp_path: Path) -> None:
    model = residual()
    products = products_of(model)
    assert [one.name for one in carried(model, products)] == ["a1", "a2", "sum", "a4", "mean", "rows"]
    x = drawn(8, 3, 12, 12, seed=1)
    quantized = static(model, products, x)
    ran = operators(quantized, tmp_path)
    assert (ran["QLinearConv"], ran["QLinearAdd"], ran["QLinearGlobalAveragePool"], ran["QGemm"]) == (4, 1, 1, 1)
    assert ran["QuantizeLinear"] == 1, "the input's"
    assert ran["DequantizeLinear"] == ran["Clip"] == ran["Relu"] == 0, "and the classifier gives float32"
    (expected,), (got,) = answers(model, x), answers(quantized, x)
    assert np.linalg.norm(got - expected) < 0.06 * np.linalg.norm(expected)


def test_an_activation_is_carried_though_what_follows_is_not_quantized() -> None:
    """Else the convolution's own range, far beyond the ReLU6, would be cut into 255 steps."""
    model = residual()
    assert [one.name for one in carried(model, ["c1"])] == ["a1"]
    x = drawn(8, 3, 12, 12, seed=1)
    (expected,), (got,) = answers(model, x), answers(static(model, ["c1"], x), x)
    assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)


def feed_forward(x: tuple[int | str, ...]) -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w1"], ["m1"]),
        node("Relu", ["m1"], ["r"]),
        node("MatMul", ["r", "w2"], ["m2"]),
        node("Add", ["m2", "x"], ["sum"]),
        node("MatMul", ["sum", "w3"], ["out"]),
    ]
    return model_of(nodes, x, {"w1": drawn(64, 32), "w2": drawn(32, 64), "w3": drawn(64, 16)})


def test_a_transformers_sums_stay_float(tmp_path: Path) -> None:
    model = feed_forward(("n", "t", 64))
    assert carried(model, products_of(model)) == []
    ran = operators(static(model, products_of(model), drawn(4, 9, 64)), tmp_path)
    assert (ran["QLinearMatMul"], ran["MatMulIntegerToFloat"], ran["Add"]) == (1, 2, 1)
    assert ran["MatMul"] == ran["Gemm"] == ran["DequantizeLinear"] == 0, "the sum reads x before it is rounded"


def test_a_product_before_a_sum_of_two_dimensions_is_one_of_integers(tmp_path: Path) -> None:
    """Else onnxruntime makes one Gemm of both, in float32."""
    model = feed_forward(("n", 64))
    ran = operators(static(model, products_of(model), drawn(50, 64)), tmp_path)
    assert (ran["QLinearMatMul"], ran["MatMul"], ran["Gemm"]) == (3, 0, 0)


@pytest.mark.parametrize("axes", [[1, 2], [2], [1, 2, 3]])
def test_another_mean_is_no_pool(axes: list[int]) -> None:
    arrays = {"w1": drawn(4, 3, 1, 1), "w2": drawn(4, 4, 1, 1), "axes": np.array(axes)}
    nodes = [
        node("Conv", ["x", "w1"], ["c"]),
        node("ReduceMean", ["c", "axes"], ["mean"]),
        node("Conv", ["mean", "w2"], ["out"]),
    ]
    model = model_of(nodes, ("n", 3, 4, 4), arrays)
    assert carried(model, ["c", "out"]) == []
