"""Where a quantized model's error comes from: each layer's own noise, the model without it, the cheapest remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compressor.artifacts import OnnxModel
from compressor.attributing import asked_for, attribution, attributions
from compressor.error_attribution import Closeness
from compressor.metrics import mean_cosine, snr_between_db, snr_db
from compressor.onnx_file import describe_onnx
from compressor.preprocess import Feed
from compressor.quantize import Mixer
from compressor.quantize.layer_errors import noises, restored
from compressor.recipe_quantize import NodePrecision, Quantization
from compressor.searching import Judging

RNG = np.random.default_rng(3)
FEEDS: tuple[Feed, ...] = tuple({"ids": RNG.integers(0, 500, (1, 7))} for _ in range(6))
TABLE = RNG.standard_normal((500, 64)).astype(np.float32)
# Four bits hold sixteenths from -7 to 8 as they are, and the second product's weights not.
FIRST = (RNG.integers(-7, 9, (64, 64)) / 32).astype(np.float32)
SECOND = RNG.standard_normal((64, 64)).astype(np.float32) / 8


class Rows:
    def encode(self, inputs: Any) -> list[NDArray[Any]]:
        return list(inputs)

    def collate(self, examples: Any) -> Feed:
        return {"ids": np.stack(examples)}


@pytest.fixture
def student(make_onnx: Callable[..., Path], tmp_path: Path) -> OnnxModel:
    """A table and two products, something else between each two."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["tokens"], name="table"),
        helper.make_node("Tanh", ["tokens"], ["read"], name="read"),
        helper.make_node("MatMul", ["read", "first"], ["middle"], name="first"),
        helper.make_node("Tanh", ["middle"], ["bent"], name="bend"),
        helper.make_node("MatMul", ["bent", "second"], ["out"], name="second"),
    ]
    arrays = {"table": TABLE, "first": FIRST, "second": SECOND}
    interface = {"ids": (TensorProto.INT64, ["batch", "n"])}, {"out": (TensorProto.FLOAT, ["batch", "n", 64])}
    return describe_onnx(make_onnx(tmp_path / "student.onnx", nodes, *interface, arrays), "student", "float32")


def mixer_of(student: OnnxModel, *precisions: str, **overrides: str) -> Mixer:
    settings = Quantization.model_validate(
        {"precisions": precisions, "block": 64, "same_everywhere": False, "overrides": overrides}
    )
    return Mixer.of(student, [feed["ids"][0] for feed in FEEDS], Rows(), settings)


def written(
    mixer: Mixer, path: Path, *, otherwise: NodePrecision = "float32", **chosen: NodePrecision
) -> onnx.ModelProto:
    mixer.write({site.node: chosen.get(site.node, otherwise) for site in mixer.sites}, path)
    return onnx.load(path)


def answers(model: Path | bytes) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0].reshape(-1, 64) for feed in FEEDS])


def judging_of(student: OnnxModel) -> Judging:
    expected = answers(student.path)

    def closeness(path: Path) -> Closeness:
        got = answers(path)
        return Closeness(mean_cosine(got, expected), snr_between_db(got, expected), path.stat().st_size)

    return Judging(closeness, "", FEEDS, threads=1)


@pytest.mark.parametrize("precision", ["dynamic-int8", "static-int8", "static-int16", "weight-int8", "weight-int4"])
def test_the_noise_of_the_last_layer_alone_is_the_output_s(
    student: OnnxModel, precision: NodePrecision, tmp_path: Path
) -> None:
    mixer = mixer_of(student, precision)
    quantized = written(mixer, tmp_path / "q.onnx", second=precision)
    (found,) = noises(mixer.source, quantized, mixer.sites, FEEDS)
    got, expected = answers(tmp_path / "q.onnx").astype(np.float64), answers(student.path)
    assert found.site.node == "second"
    by_hand = 10 * np.log10((expected.astype(np.float64) ** 2).sum() / ((got - expected) ** 2).sum())
    assert found.snr_db == pytest.approx(by_hand, abs=0.05)


def test_the_noise_of_a_table_is_that_of_the_rows_it_gives(student: OnnxModel, tmp_path: Path) -> None:
    """int8 with one scale for the table, as onnxruntime's dynamic quantizer stores it."""
    mixer = mixer_of(student, "dynamic-int8")
    quantized = written(mixer, tmp_path / "q.onnx", otherwise="dynamic-int8")
    found = {one.site.node: one.snr_db for one in noises(mixer.source, quantized, mixer.sites, FEEDS)}
    assert found.keys() == {"table", "first", "second"}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    codes, scale, zero = (stored[f"table_{part}"] for part in ("quantized", "scale", "zero_point"))
    rounded = (codes.astype(np.float64) - zero) * scale
    rows = np.concatenate([feed["ids"].ravel() for feed in FEEDS])
    by_hand = 10 * np.log10((TABLE[rows] ** 2).sum() / ((rounded - TABLE)[rows] ** 2).sum())
    assert found["table"] == pytest.approx(by_hand, abs=0.05)


@pytest.mark.parametrize("precision", ["dynamic-int8", "weight-int8"])
@pytest.mark.parametrize("node", ["table", "first", "second"])
def test_a_layer_restored_is_a_model_that_never_had_it_in_few_bits(
    student: OnnxModel, node: str, precision: NodePrecision, tmp_path: Path
) -> None:
    mixer = mixer_of(student, precision)
    quantized = written(mixer, tmp_path / "all.onnx", otherwise=precision)
    written(mixer, tmp_path / "others.onnx", otherwise=precision, **{node: "float32"})  # type: ignore[arg-type]
    (site,) = (site for site in mixer.sites if site.node == node)
    model = restored(mixer.source, quantized, [site]).SerializeToString()
    np.testing.assert_allclose(answers(model), answers(tmp_path / "others.onnx"), rtol=1e-5, atol=1e-5)
    assert len(model) == pytest.approx((tmp_path / "others.onnx").stat().st_size, rel=0.02), "what is unused is gone"


def test_the_worst_layer_and_the_cheapest_remedy(student: OnnxModel, tmp_path: Path) -> None:
    mixer, judging = mixer_of(student, "weight-int4", table="float32"), judging_of(student)
    path = tmp_path / "q.onnx"
    written(mixer, path, otherwise="weight-int4", table="float32")
    candidate = describe_onnx(path, "student-weight-int4", "weight-int4")
    (found,) = attributions(mixer, asked_for(mixer, [candidate]), judging)
    assert found.now == judging.closeness(path)
    assert [layer.node for layer in found.layers] == ["second", "first"]
    assert found.layers[0].snr_db < 30 < found.layers[1].snr_db
    assert found.remedy is not None
    assert (found.remedy.node, found.remedy.precision) == ("second", "weight-int8"), "the smallest file that does"
    written(mixer, path, otherwise="weight-int4", table="float32", second="weight-int8")
    assert found.remedy.then == judging.closeness(path)
    assert found.layers[0].in_float32 is not None
    assert found.now.bytes < found.remedy.then.bytes < found.layers[0].in_float32.bytes


def test_a_remedy_is_for_all_that_share_a_weight(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    """The worst layer's weight is that of another product too: float32, and what is cheaper, is so of both."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["tokens"], name="table"),
        helper.make_node("MatMul", ["tokens", "second"], ["middle"], name="inner"),
        helper.make_node("Tanh", ["middle"], ["bent"]),
        helper.make_node("MatMul", ["bent", "second"], ["out"], name="outer"),
    ]
    interface = {"ids": (TensorProto.INT64, ["batch", "n"])}, {"out": (TensorProto.FLOAT, ["batch", "n", 64])}
    path = make_onnx(tmp_path / "shared.onnx", nodes, *interface, {"table": TABLE, "second": SECOND})
    student = describe_onnx(path, "student", "float32")
    mixer, judging = mixer_of(student, "weight-int4", table="float32"), judging_of(student)
    quantized = written(mixer, tmp_path / "q.onnx", otherwise="weight-int4", table="float32")
    candidate = describe_onnx(tmp_path / "q.onnx", "student-weight-int4", "weight-int4")
    (found,) = attributions(mixer, asked_for(mixer, [candidate]), judging)
    assert {layer.node for layer in found.layers} == {"inner", "outer"}
    both = [site for site in mixer.sites if site.weight == "second"]
    model = restored(mixer.source, quantized, both).SerializeToString()
    np.testing.assert_array_equal(answers(model), answers(path))
    assert [layer.in_float32.snr_db for layer in found.layers if layer.in_float32] == [None, None]
    assert found.remedy is not None
    assert found.remedy.precision == "weight-int8"
    written(mixer, tmp_path / "q.onnx", table="float32", inner="weight-int8", outer="weight-int8")
    assert found.remedy.then == judging.closeness(tmp_path / "q.onnx")


def test_of_any_model_the_remedy_is_float32(student: OnnxModel, tmp_path: Path) -> None:
    mixer = mixer_of(student, "weight-int4")
    path = tmp_path / "q.onnx"
    written(mixer, path, otherwise="weight-int4", table="float32")
    found = attribution(mixer.source, mixer.sites, describe_onnx(path, "mine", "int4"), judging_of(student))
    assert found.remedy is not None
    assert (found.remedy.node, found.remedy.precision) == ("second", "float32")
    assert found.remedy.then == found.layers[0].in_float32


def test_a_model_without_error_has_no_layers(student: OnnxModel) -> None:
    mixer = mixer_of(student, "weight-int8")
    found = attribution(mixer.source, mixer.sites, student, judging_of(student))
    assert (found.now.snr_db, found.layers, found.remedy) == (None, (), None)


def test_a_ratio_in_decibels() -> None:
    assert snr_db(100.0, 1.0) == pytest.approx(20.0)
    assert snr_db(1.0, 0.0) is None
    assert snr_db(0.0, 1.0) == snr_db(1.0, float("nan")) == snr_db(1.0, float("inf")) == -100.0
