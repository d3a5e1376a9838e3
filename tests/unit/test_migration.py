"""Scales moved between layers: what is computed stays, int8 errs less, and what gains nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compressor.artifacts import OnnxModel
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed
from compressor.progress import SILENT
from compressor.quantize import Mixer, quantize
from compressor.quantize.channels import Channels, channels
from compressor.quantize.float_model import load_float_model
from compressor.quantize.scales import choose_scales, expected_error
from compressor.quantize.seams import Seam, find_seams, move
from compressor.recipe_quantize import Quantization

MICROSOFT = "com.microsoft"
node = helper.make_node


def drawn(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    x: tuple[int | str, ...],
    arrays: dict[str, NDArray[Any]],
    outputs: tuple[str, ...] = ("out",),
) -> onnx.ModelProto:
    """x -> nodes -> outputs, of unknown shapes; each node is named after its first output."""
    for one in nodes:
        one.name = one.output[0]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def answers(model: onnx.ModelProto, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return run_one(open_session(model.SerializeToString()), {"x": x})


def convolutions() -> onnx.ModelProto:
    """A convolution, a depthwise one behind zeros, one of two groups, each behind what is homogeneous."""
    arrays = {"w1": drawn(8, 3, 3, 3), "b1": drawn(8), "w2": drawn(8, 1, 3, 3), "b2": drawn(8), "w3": drawn(6, 4, 1, 1)}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"]),
        node("Relu", ["c1"], ["r1"]),
        node("Pad", ["r1", "pads"], ["p1"]),
        node("Conv", ["p1", "w2", "b2"], ["c2"], group=8),
        node("LeakyRelu", ["c2"], ["r2"], alpha=0.1),
        node("MaxPool", ["r2"], ["m2"], kernel_shape=[2, 2]),
        node("Conv", ["m2", "w3"], ["out"], group=2),
    ]
    return model_of(nodes, ("n", 3, 9, 9), {**arrays, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])})


def perceptron() -> onnx.ModelProto:
    """Two Gemm, a gate of two products, a last one."""
    arrays = {
        "w1": drawn(8, 6),
        "b1": drawn(8),
        "w2": drawn(8, 5),
        "up": drawn(5, 7),
        "gate": drawn(5, 7),
        "w4": drawn(7, 3),
    }
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["g1"], transB=1),
        node("Clip", ["g1", "zero"], ["r1"]),
        node("Gemm", ["r1", "w2"], ["g2"]),
        node("Tanh", ["g2"], ["t2"]),
        node("MatMul", ["t2", "up"], ["u"]),
        node("MatMul", ["t2", "gate"], ["g"]),
        node("Sigmoid", ["g"], ["s"]),
        node("Mul", ["s", "u"], ["gated"]),
        node("MatMul", ["gated", "w4"], ["out"]),
    ]
    return model_of(nodes, ("n", 6), {**arrays, "w4": drawn(7, 3), "zero": np.array(0, np.float32)})


def encoder() -> onnx.ModelProto:
    """Normalization first and after, attention over one product for query, key and value; `shift` is shared."""
    arrays = {
        "gamma": drawn(8), "shift": drawn(8), "qkv": drawn(8, 24), "qkv_bias": drawn(24), "o": drawn(8, 8),
        "gamma2": drawn(8), "o_bias": drawn(8), "w1": drawn(8, 12), "w1_bias": drawn(12), "w2": drawn(12, 8),
    }  # fmt: skip
    nodes = [
        node("LayerNormalization", ["x", "gamma", "shift"], ["n1"], axis=-1),
        node("MatMul", ["n1", "qkv"], ["qkv_product"]),
        node("Split", ["qkv_product"], ["query", "key", "value"], axis=-1, num_outputs=3),
        node("MultiHeadAttention", ["query", "key", "value", "qkv_bias"], ["a"], num_heads=2, domain=MICROSOFT),
        node("MatMul", ["a", "o"], ["o_product"]),
        node("SkipLayerNormalization", ["o_product", "x", "gamma2", "shift", "o_bias"], ["n2"], domain=MICROSOFT),
        node("MatMul", ["n2", "w1"], ["w1_product"]),
        node("BiasGelu", ["w1_product", "w1_bias"], ["gelu"], domain=MICROSOFT),
        node("MatMul", ["gelu", "w2"], ["w2_product"]),
        node("Add", ["w2_product", "n2"], ["out"]),
    ]
    return model_of(nodes, ("n", "t", 8), arrays)


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...], dict[str, int]]] = {
    # of each seam how many places divide it: none is a Mul
    "convolutions": (convolutions, (2, 3, 9, 9), {"p1": 2, "m2": 2}),
    "perceptron": (perceptron, (5, 6), {"r1": 2, "t2": 0, "gated": 1}),
    "encoder": (encoder, (2, 5, 8), {"n1": 2, "a": 2, "n2": 0, "gelu": 0}),
}


def products_of(model: onnx.ModelProto) -> list[str]:
    return [one.name for one in model.graph.node if one.op_type in ("Conv", "MatMul", "Gemm")]


@pytest.mark.parametrize("case", CASES)
def test_any_scales_leave_what_is_computed(case: str) -> None:
    make, shape, found = CASES[case]
    model = make()
    seams = find_seams(model, products_of(model))
    assert {seam.value: len(seam.folds) for seam in seams} == found
    scales = {seam: np.exp(drawn(seam.channels, seed=1).astype(np.float64)) for seam in seams}
    moved = move(model, scales)
    x = drawn(*shape, seed=2)
    (expected,), (got,) = answers(model, x), answers(moved, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    # What the products read is divided.
    for seam, scale in scales.items():
        value = f"{seam.value}_migrated" if not seam.folds else seam.value
        before, after = (channels(m, {v: seam.axis}, [{"x": x}])[v] for m, v in ((model, seam.value), (moved, value)))
        np.testing.assert_allclose(after.high, before.high / scale, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(after.low, before.low / scale, rtol=1e-4, atol=1e-6)


def test_what_is_shared_keeps_its_numbers_for_the_others() -> None:
    model = encoder()
    (seam,) = find_seams(model, ["qkv_product"])
    moved = move(model, {seam: np.full(8, 2.0)})
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in moved.graph.initializer}
    np.testing.assert_array_equal(arrays["shift"], drawn(8))
    np.testing.assert_array_equal(arrays["gamma"], drawn(8) / 2)


@pytest.mark.parametrize(
    ("between", "why"),
    [
        ([node("Clip", ["c1", "zero", "six"], ["r1"])], "each channel would need a bound of its own"),
        ([node("Sigmoid", ["c1"], ["r1"])], "not homogeneous"),
        ([node("Pad", ["c1", "pads", "six"], ["r1"])], "what is padded is not divided"),
        ([node("Relu", ["c1"], ["r1"]), node("Neg", ["r1"], ["second"])], "read by another"),
        ([node("Relu", ["c1"], ["r1"]), node("Neg", ["c1"], ["second"])], "read by another on the way"),
    ],
)
def test_where_nothing_can_be_moved(between: list[onnx.NodeProto], why: str) -> None:
    first, last = node("Conv", ["x", "w1"], ["c1"]), node("Conv", ["r1", "w2"], ["out"])
    arrays: dict[str, NDArray[Any]] = {"w1": drawn(4, 3, 1, 1), "w2": drawn(2, 4, 1, 1)}
    arrays |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    arrays |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    outputs = ("out", "second") if any("second" in one.output for one in between) else ("out",)
    model = model_of([first, *between, last], ("n", 3, 4, 4), arrays, outputs)
    assert not find_seams(model, products_of(model)), why


def test_weights_that_are_tied_stay_tied() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w"], ["out"]),
    ]
    assert not find_seams(model_of(nodes, ("n", 4), {"w": drawn(4, 4)}), ["h", "out"])


def test_equalization_makes_ranges_equal_as_nagel_has_it() -> None:
    """Equation 11: afterwards r1 = r2 for each channel, both sqrt(r1 r2)."""
    model = convolutions()
    seam = find_seams(model, products_of(model))[0]
    w1, w2 = (np.abs(drawn(*shape)).reshape(8, -1).max(1) for shape in ((8, 3, 3, 3), (8, 1, 3, 3)))
    moved = move(model, {seam: np.sqrt(w1.astype(np.float64) / w2)})
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in moved.graph.initializer}
    for name in ("w1", "w2"):
        np.testing.assert_allclose(np.abs(arrays[name]).reshape(8, -1).max(1), np.sqrt(w1 * w2), rtol=1e-5)


def rounded_product(x: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Activations in 256 steps of their range, weights [in, out] in 254 of each output channel's."""
    step = (x.max() - x.min()) / 255
    steps = 2 * np.abs(w).max(0) / 254
    return (np.rint(x / step) * step) @ (np.rint(w / steps) * steps)


def outliers() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two channels of 64 are forty times as large as the others."""
    x, w = drawn(4000, 64), drawn(64, 32)
    x[:, [3, 40]] *= 40
    return x, w


def test_the_expected_error_is_that_of_rounding_and_the_least_is_chosen() -> None:
    x, w = outliers()
    nodes = [node("MatMul", ["x", "one"], ["h"]), node("Tanh", ["h"], ["t"]), node("MatMul", ["x", "w"], ["out"])]
    model = model_of(nodes, ("n", 64), {"one": drawn(64, 2), "w": w}, ("out", "t"))
    seam = Seam("x", 64, -1, ("out",), ())
    seen = Channels(*(np.asarray(part, np.float64) for part in (x.min(0), x.max(0), np.square(x).mean(0))))
    chosen = choose_scales(model, (seam,), {"x": seen})[seam]
    exact = x.astype(np.float64) @ w
    found = {}
    for name, scale in (("plain", np.ones(64)), ("chosen", chosen)):
        error = np.square(rounded_product(x / scale, w * scale[:, None]) - exact).sum(1).mean()
        assert error == pytest.approx(expected_error([w.T[None, :, :, None]], seen, scale), rel=0.1)
        found[name] = error
    assert found["chosen"] < found["plain"] / 10


class Rows:
    def encode(self, inputs: Any) -> list[NDArray[Any]]:
        return list(inputs)

    def collate(self, examples: Any) -> Feed:
        return {"x": np.stack(examples)}


def mixer_of(model: onnx.ModelProto, rows: NDArray[np.float32], folder: Path, **wanted: Any) -> tuple[OnnxModel, Mixer]:
    path = folder / "source.onnx"
    onnx.save(model, path)
    student = describe_onnx(path, "student", "float32")
    settings = Quantization.model_validate({"calibration_samples": 64, **wanted})
    return student, Mixer.of(student, list(rows), Rows(), settings)


def two_layers() -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    x, w = outliers()
    nodes = [
        node("LayerNormalization", ["x", "gamma", "shift"], ["n"], axis=-1),
        node("MatMul", ["n", "w"], ["out"]),
    ]
    gamma = np.ones(64, np.float32)
    gamma[[3, 40]] = 40
    shift = np.zeros(64, np.float32)
    return model_of(nodes, ("n", 64), {"gamma": gamma, "shift": shift, "w": w}), x[:200]


@pytest.mark.parametrize("precision", ["static-int8", "dynamic-int8"])
def test_outliers_are_moved_into_the_weights(precision: str, tmp_path: Path) -> None:
    model, rows = two_layers()
    (expected,) = answers(model, rows[100:])
    errors = {}
    for migrate in ("off", "auto"):
        student, mixer = mixer_of(model, rows, tmp_path, precisions=[precision], migrate=migrate, correct_bias="off")
        (made,) = quantize(student, mixer, tmp_path, SILENT).models
        # One by one, as a device runs it.
        session = open_session(made.path)
        got = np.concatenate([run_one(session, {"x": row[None]})[0] for row in rows[100:]])
        errors[migrate] = np.square(got - expected).mean()
    assert errors["auto"] < errors["off"] / 4
    said = mixer.start(dict.fromkeys(["out"], precision)).said  # type: ignore[arg-type]
    assert [line.split(":")[0] for line in said] == ["migration at 1 of 1 places, 0 by a Mul"]
    assert said[0].endswith("kept")


def test_what_gains_nothing_stays_as_it_was(tmp_path: Path) -> None:
    """Channels of one size."""
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["out"])]
    equal = np.sign(drawn(16, 16))
    model = model_of(nodes, ("n", 16), {"w1": equal, "w2": equal.T.copy()})
    student, mixer = mixer_of(model, drawn(100, 16), tmp_path, precisions=["static-int8"], correct_bias="off")
    start = mixer.start({"h": "static-int8", "out": "static-int8"})
    assert start.model == load_float_model(student.path)
    assert all("none is expected to gain" in line or line.endswith("undone") for line in start.said)
    assert start.said


def test_off_looks_at_nothing(tmp_path: Path) -> None:
    model, rows = two_layers()
    off = {"migrate": "off", "correct_bias": "off"}
    _, mixer = mixer_of(model, rows, tmp_path, precisions=["static-int8"], **off)
    start = mixer.start({"out": "static-int8"})
    assert (start.said, start.errors) == ((), {})
    assert len(mixer.calibration) == 64
