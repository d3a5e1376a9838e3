"""Bias correction: what rounding adds to the mean of a product, against float64, and biases that take it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from test_migration import MICROSOFT, answers, drawn, mixer_of, model_of, node, products_of

from compressor.onnxrt import open_session, run_one
from compressor.progress import SILENT
from compressor.quantize import quantize
from compressor.quantize.bias import bias_errors, correct
from compressor.quantize.int8 import to_static
from compressor.quantize.prepared import Prepared, Trying, prepare

LOW, HIGH = -1.0, 1.55  # steps of 0.01, zero is 100


def products(bias: bool) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """A convolution and a Gemm of which each has a bias or none, and a product in front of an Add."""
    arrays = {"kernel": drawn(8, 3, 3, 3), "w1": drawn(6, 8), "w2": drawn(6, 4), "b2": drawn(4)}
    arrays |= {"bias": drawn(8), "b1": drawn(6)} if bias else {}
    nodes = [
        node("Conv", ["x", "kernel", *(["bias"] if bias else [])], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w1", *(["b1"] if bias else [])], ["g"], transB=1),
        node("Tanh", ["g"], ["t"]),
        node("MatMul", ["t", "w2"], ["m"]),
        node("Add", ["m", "b2"], ["out"]),
    ]
    return model_of(nodes, ("n", 3, 8, 8), arrays), arrays


def coarse(model: onnx.ModelProto) -> onnx.ModelProto:
    """In int8, in ranges that clip a lot: rounding then moves means."""
    ranges = dict.fromkeys(("x", "c", "r", "p", "f", "t", "m"), (LOW, HIGH))
    return to_static(model, products_of(model), "static-int8", ranges)


def rounded(values: NDArray[Any]) -> NDArray[np.float64]:
    """As QuantizeLinear to uint8 and back."""
    step, zero = np.float32((HIGH - LOW) / 255), 100
    return np.asarray((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step, np.float64)


def int8(weights: NDArray[Any], channel: int) -> NDArray[np.float64]:
    axes = tuple(axis for axis in range(weights.ndim) if axis != channel)
    step = np.abs(weights).max(axes, keepdims=True) / 127
    return np.asarray(np.rint(weights / step) * step, np.float64)


def test_the_errors_are_those_of_float64() -> None:
    model, arrays = products(bias=True)
    feeds = [{"x": drawn(2, 3, 8, 8, seed=seed)} for seed in range(4)]
    found = bias_errors(model, coarse(model), feeds)
    assert set(found) == {"c", "g", "m"}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("f", "t"))
    values = [np.concatenate(parts) for parts in zip(*(answers(shown, feed["x"]) for feed in feeds), strict=True)]
    for name, value, weights in (("g", values[1], arrays["w1"].T), ("m", values[2], arrays["w2"])):
        exact = value.astype(np.float64) @ weights
        want = (rounded(value) @ int8(weights, 1) - exact).mean(0)
        np.testing.assert_allclose(found[name], want, atol=1e-4 * np.abs(exact).max())
    images = np.concatenate([feed["x"] for feed in feeds])
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (2, 3))
    kernel = arrays["kernel"]
    exact = np.einsum("nchwij,ocij->nohw", windows, kernel, dtype=np.float64)
    got = np.einsum("nchwij,ocij->nohw", rounded(windows), int8(kernel, 0))
    np.testing.assert_allclose(found["c"], (got - exact).mean((0, 2, 3)), atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("bias", [True, False])
def test_a_correction_is_subtracted_where_a_bias_is_or_can_be(bias: bool) -> None:
    model, _ = products(bias)
    errors = {"c": drawn(8, seed=1), "g": drawn(6, seed=1), "m": drawn(4, seed=1)}
    corrected = correct(model, {name: error.astype(np.float64) for name, error in errors.items()})
    assert [one.op_type for one in corrected.graph.node] == [one.op_type for one in model.graph.node]
    for one, value in (("c", "c"), ("g", "g"), ("m", "out")):
        shown = [onnx.ModelProto(), onnx.ModelProto()]
        for target, source in zip(shown, (model, corrected), strict=True):
            # Each product alone, on the same values: what comes before it is corrected too.
            target.CopyFrom(source)
            del target.graph.output[:]
            target.graph.output.append(onnx.ValueInfoProto(name=value))
        only = correct(shown[0], {one: errors[one].astype(np.float64)})
        x = drawn(2, 3, 8, 8, seed=3)
        (before,), (after,) = answers(shown[0], x), answers(only, x)
        along = errors[one].reshape(-1, 1, 1) if one == "c" else errors[one]
        np.testing.assert_allclose(after, before - along, atol=1e-5)


@pytest.mark.parametrize(
    "reader",
    [
        node("BiasGelu", ["m", "b"], ["out"], domain=MICROSOFT),
        node("SkipLayerNormalization", ["x", "m", "gamma", "gamma", "b"], ["out"], domain=MICROSOFT),
    ],
)
def test_fused_operators_hold_the_bias(reader: onnx.NodeProto) -> None:
    arrays = {"w": drawn(8, 8), "b": drawn(8), "gamma": drawn(8, seed=1)}
    model = model_of([node("MatMul", ["x", "w"], ["m"]), reader], ("n", "t", 8), arrays)
    corrected = correct(model, {"m": np.arange(8.0)})
    by_hand_bias = arrays["b"] - np.arange(8, dtype=np.float32)
    by_hand = model_of(
        [node("MatMul", ["x", "w"], ["m"]), reader],
        ("n", "t", 8),
        arrays | {"b": by_hand_bias},
    )
    x = drawn(2, 3, 8)
    np.testing.assert_allclose(answers(corrected, x)[0], answers(by_hand, x)[0], atol=1e-6)


def test_the_bias_of_attention_is_that_of_one_product_for_three() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Split", ["m"], ["q", "k", "v"], axis=-1, num_outputs=3),
        node("MultiHeadAttention", ["q", "k", "v", "b"], ["out"], num_heads=2, domain=MICROSOFT),
    ]
    model = model_of(nodes, ("n", "t", 8), {"w": drawn(8, 24), "b": drawn(24)})
    corrected = correct(model, {"m": np.arange(24.0)})
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in corrected.graph.initializer}
    np.testing.assert_allclose(arrays[corrected.graph.node[2].input[3]], drawn(24) - np.arange(24), rtol=1e-6)


def test_a_product_without_a_place_for_it_is_left() -> None:
    model = model_of([node("MatMul", ["x", "w"], ["m"]), node("Tanh", ["m"], ["out"])], ("n", 8), {"w": drawn(8, 8)})
    assert correct(model, {"m": np.ones(8)}) == model


def test_a_product_whose_weights_are_a_table_turned_is_left() -> None:
    """They are no constant then: they are turned and quantized anew in every inference."""
    nodes = [
        node("Cast", ["x"], ["ids"], to=onnx.TensorProto.INT64),
        node("Gather", ["table", "ids"], ["h"]),
        node("MatMul", ["h", "w"], ["m"]),
        node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        node("MatMul", ["m", "turned"], ["out"]),
    ]
    model = model_of(nodes, ("n", "t"), {"table": drawn(6, 8), "w": drawn(8, 8)})
    ranges = dict.fromkeys(("h", "m", "turned", "out"), (-4.0, 4.0))
    quantized = to_static(model, ["h", "m", "out"], "static-int8", ranges)
    found = bias_errors(model, quantized, [{"x": np.array([[0, 3, 5]], np.float32)}])
    assert set(found) == {"m"}


def edges() -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """Filters whose weights add up to nothing, on inputs of which none is negative: rounding them gives a mean. Side by
    side, so that a processor without VNNI saturates."""
    kernel = drawn(128, 32, 1, 1)
    kernel -= kernel.mean(1, keepdims=True)
    kernel[:, :2] = np.array([9, 9])[None, :, None, None]
    kernel[:, 2:4] = np.array([-9, -9])[None, :, None, None]
    nodes = [
        node("Conv", ["x", "kernel"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w", "b"], ["out"]),
    ]
    model = model_of(nodes, ("n", 32, 6, 6), {"kernel": kernel, "w": drawn(128, 8), "b": drawn(8)})
    rows = np.abs(np.random.default_rng(0).standard_normal((200, 32, 6, 6))).astype(np.float32)
    rows[:, :4] = rows[:, :1]  # what the large weights read cancels out
    return model, rows + 2


@pytest.mark.parametrize("same_everywhere", [False, True])
def test_biases_are_corrected_for_the_weights_that_ship(same_everywhere: bool, tmp_path: Path) -> None:
    model, rows = edges()
    (expected,) = answers(model, rows[100:])
    errors, narrowed = {}, {}
    for correct_bias in ("off", "auto"):
        wanted = {"precisions": ["static-int8"], "migrate": "off", "correct_bias": correct_bias}
        student, mixer = mixer_of(model, rows, tmp_path, same_everywhere=same_everywhere, **wanted)
        (made,) = quantize(student, mixer, tmp_path, SILENT).models
        got = run_one(open_session(made.path), {"x": rows[100:]})[0]
        errors[correct_bias] = np.square(got - expected).mean()
        narrowed[correct_bias] = made.path.with_suffix("").with_suffix(".certificate.json").read_text()
    assert errors["auto"] < errors["off"] / 4
    assert all(
        ('"narrowed": 0' not in text or '"narrowed": 128' in text) == same_everywhere for text in narrowed.values()
    )


@pytest.mark.parametrize(("every_output", "told"), [(False, "20.0 to 40.0 dB, kept"), (True, "20.0 to 6.0 dB, undone")])
def test_the_worst_of_all_outputs_decides_where_each_is_judged(every_output: bool, told: str) -> None:
    """What is tried mends the first output, by a factor of ten, and spoils the second."""

    def scaled(first: float, second: float) -> onnx.ModelProto:
        arrays = {"first": np.array(first, np.float32), "second": np.array(second, np.float32)}
        nodes = [node("Mul", ["x", name], [f"{name}_out"]) for name in arrays]
        return model_of(nodes, ("n", 4), arrays, ("first_out", "second_out"))

    plain = Prepared(scaled(1, 1), {}, {})
    feeds = [{"x": drawn(1, 4)} for _ in range(8)]
    trying = Trying(
        feeds,
        feeds,
        ranges=lambda _: {},
        write=lambda prepared: scaled(1.1, 1) if prepared is plain else scaled(1.01, 1.5),
        every_output=every_output,
    )
    (said,) = prepare(plain, ["a product"], trying, migrate=False, correct_bias=True).said
    assert said == f"bias correction of 0 products: signal to error from {told}"
