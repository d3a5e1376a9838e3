"""int8 candidates: smaller, loadable, close; refused where int8 gains nothing."""

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

from compressor.artifacts import OnnxModel, QuantizedModels
from compressor.errors import QuantizationError
from compressor.onnx_file import describe_onnx
from compressor.preprocess import Feed
from compressor.progress import SILENT
from compressor.quantize import Mixer
from compressor.quantize import quantize as quantize_model
from compressor.recipe_quantize import Quantization
from compressor.xray import by_role, xray

MakeOnnx = Callable[..., Path]


class Rows:
    """Examples are rows of ids; a feed is a batch of them."""

    def encode(self, inputs: Any) -> list[NDArray[Any]]:
        return list(inputs)

    def collate(self, examples: Any) -> Feed:
        return {"ids": np.stack(examples)}


class Images(Rows):
    def collate(self, examples: Any) -> Feed:
        return {"image": np.stack(examples)}


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def text_model(make_onnx: MakeOnnx, tmp_path: Path) -> OnnxModel:
    """ids -> a table of 500 by 64, a mean, a product."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["tokens"]),
        helper.make_node("ReduceMean", ["tokens", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["out"]),
    ]
    arrays = {"table": weights(500, 64), "weight": weights(64, 32), "axis": np.array([1], np.int64)}
    interface = {"ids": (TensorProto.INT64, ["batch", "sequence"])}, {"out": (TensorProto.FLOAT, ["batch", 32])}
    return describe_onnx(make_onnx(tmp_path / "text.onnx", nodes, *interface, arrays), "student", "float32")


@pytest.fixture
def image_model(make_cnn: Callable[..., Path]) -> OnnxModel:
    return describe_onnx(make_cnn(weights), "student", "float32")


def ids(count: int = 16) -> list[NDArray[Any]]:
    return list(np.random.default_rng(0).integers(0, 500, (count, 7)))


def images(count: int = 16) -> list[NDArray[Any]]:
    return list(np.random.default_rng(0).standard_normal((count, 16, 8, 8)).astype(np.float32))


def run(path: Path, feed: Feed) -> NDArray[np.float32]:
    output: NDArray[np.float32] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, feed
    )[0]
    return output


def quantize(
    student: OnnxModel, examples: list[NDArray[Any]], preprocessor: Any, wanted: Quantization, folder: Path
) -> QuantizedModels:
    return quantize_model(student, Mixer.of(student, examples, preprocessor, wanted), folder, SILENT)


def settings(*precisions: str) -> Quantization:
    return Quantization.model_validate({"precisions": precisions, "calibration_samples": 12})


def test_text_candidates_are_small_close_and_named(text_model: OnnxModel, tmp_path: Path) -> None:
    found = quantize(text_model, ids(), Rows(), settings("dynamic-int8", "static-int8"), tmp_path)
    assert [(m.name, m.precision) for m in found.models] == [
        ("student-int8", "dynamic-int8"),
        ("student-static-int8", "static-int8"),
    ]
    assert not found.refused
    feed = Rows().collate(ids())
    expected = run(text_model.path, feed)
    for model in found.models:
        got = run(model.path, feed)
        assert model.bytes == model.path.stat().st_size < text_model.bytes / 3
        assert model.parameters == text_model.parameters, "int8 has as many, each a quarter of the size"
        assert model.inputs == text_model.inputs
        # 5.3% where the processor has no VNNI: sums of two products saturate there.
        assert np.linalg.norm(got - expected) < 0.06 * np.linalg.norm(expected)
        assert onnx.load(model.path).opset_import


def test_the_embedding_table_is_int8_too(text_model: OnnxModel, tmp_path: Path) -> None:
    for model in quantize(text_model, ids(), Rows(), settings("dynamic-int8", "static-int8"), tmp_path).models:
        tables = [t for t in onnx.load(model.path).graph.initializer if tuple(t.dims) == (500, 64)]
        assert [t.data_type in (TensorProto.INT8, TensorProto.UINT8) for t in tables] == [True]
        parts = by_role(xray(model.path))
        assert parts["embedding tables"] == pytest.approx(500 * 64, rel=0.05)
        assert sum(parts.values()) == model.bytes


def test_a_convolution_is_calibrated_per_channel(image_model: OnnxModel, tmp_path: Path) -> None:
    found = quantize(image_model, images(), Images(), settings("static-int8"), tmp_path)
    (model,) = found.models
    feed = Images().collate(images())
    expected, got = run(image_model.path, feed), run(model.path, feed)
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)
    scales = [t for t in onnx.load(model.path).graph.initializer if tuple(t.dims) == (64,)]
    assert scales, "one scale per output channel"


def test_a_gemm_is_a_product_of_integers_in_dynamic_int8(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["out"], transB=1)
    interface = {"x": (TensorProto.FLOAT, ["batch", 64])}, {"out": (TensorProto.FLOAT, ["batch", 32])}
    path = make_onnx(tmp_path / "s.onnx", [gemm], *interface, {"w": weights(32, 64), "b": weights(32)})
    rows = list(weights(16, 64))
    (made,) = quantize(
        describe_onnx(path, "student", "float32"), rows, Vectors(), settings("dynamic-int8"), tmp_path
    ).models
    assert "MatMulInteger" in {node.op_type for node in onnx.load(made.path).graph.node}
    expected, got = (run(one, {"x": rows[0][None]}) for one in (path, made.path))
    assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("other", ["weight-int8", "weight-int4", "float16", "bfloat16", "static-int8", "float32"])
def test_gemms_of_two_precisions(make_onnx: MakeOnnx, tmp_path: Path, other: str) -> None:
    """onnxruntime's quantizer gives every Gemm of a model another name, also those that it leaves in float32."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["hidden"], name="first", transB=1),
        helper.make_node("Gemm", ["hidden", "v", "c"], ["out"], name="second", transB=1),
    ]
    arrays = {"w": weights(48, 64), "b": weights(48), "v": weights(32, 48), "c": weights(32)}
    interface = {"x": (TensorProto.FLOAT, ["batch", 64])}, {"out": (TensorProto.FLOAT, ["batch", 32])}
    path = make_onnx(tmp_path / "s.onnx", nodes, *interface, arrays)
    rows = list(weights(16, 64))
    wanted = Quantization.model_validate(
        {"precisions": ["dynamic-int8"], "overrides": {"second": other}, "calibration_samples": 12, "block": 16}
    )
    (made,) = quantize(describe_onnx(path, "student", "float32"), rows, Vectors(), wanted, tmp_path).models
    assert "MatMulInteger" in {node.op_type for node in onnx.load(made.path).graph.node}
    expected, got = (run(one, {"x": rows[0][None]}) for one in (path, made.path))
    assert np.linalg.norm(got - expected) < (0.2 if other == "weight-int4" else 0.03) * np.linalg.norm(expected)


def test_calibration_takes_no_more_than_it_is_asked_for(text_model: OnnxModel, tmp_path: Path) -> None:
    class Counting(Rows):
        def collate(self, examples: Any) -> Feed:
            seen.update(example.tobytes() for example in examples)
            return super().collate(examples)

    seen: set[bytes] = set()

    quantize(text_model, ids(40), Counting(), settings("static-int8"), tmp_path)
    assert seen == {example.tobytes() for example in ids(40)[: 12 + 3]}, "a quarter more, to judge on"


def tiny(make_onnx: MakeOnnx, path: Path, node: onnx.NodeProto, **arrays: NDArray[Any]) -> OnnxModel:
    interface = {"x": (TensorProto.FLOAT, ["batch", 4])}, {"out": (TensorProto.FLOAT, ["batch", 4])}
    return describe_onnx(make_onnx(path, [node], *interface, arrays), "student", "float32")


class Vectors(Rows):
    def collate(self, examples: Any) -> Feed:
        return {"x": np.stack(examples)}


VECTORS = [np.ones(4, np.float32) * i for i in range(1, 9)]


def test_what_grows_is_refused_and_says_by_how_much(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """The extra nodes of int8 weigh more than sixteen weights."""
    model = tiny(make_onnx, tmp_path / "s.onnx", helper.make_node("MatMul", ["x", "w"], ["out"]), w=weights(4, 4))
    found = quantize(model, VECTORS, Vectors(), settings("dynamic-int8", "static-int8"), tmp_path)
    assert not found.models
    assert [r.name for r in found.refused] == ["student-int8", "student-static-int8"]
    assert all(f"bytes against {model.bytes:,}" in r.reason for r in found.refused)


def test_a_graph_without_anything_to_quantize(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    model = tiny(make_onnx, tmp_path / "s.onnx", helper.make_node("Relu", ["x"], ["out"]))
    found = quantize(model, VECTORS, Vectors(), settings("dynamic-int8", "static-int8"), tmp_path)
    assert [r.name for r in found.refused] == ["student-int8", "student-static-int8"]
    assert found.refused[1].reason == (
        "static-int8 applies to MatMul, Gemm, Gather, Conv with constant weights; there are none"
    )


def test_what_this_graph_cannot_be_is_refused_and_the_others_are_made(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """A table with rows of 24 numbers has no blocks of 16."""
    table = helper.make_node("Gather", ["w", "ids"], ["out"], name="table")
    interface = {"ids": (TensorProto.INT64, ["batch", 7])}, {"out": (TensorProto.FLOAT, ["batch", 7, 24])}
    path = make_onnx(tmp_path / "s.onnx", [table], *interface, {"w": weights(500, 24)})
    model = describe_onnx(path, "student", "float32")
    found = quantize(model, ids(), Rows(), settings("weight-int4", "dynamic-int8"), tmp_path)
    assert [one.name for one in found.models] == ["student-dynamic-int8"]
    (refused,) = found.refused
    assert refused.name == "student-weight-int4"
    assert "whole blocks of 16" in refused.reason
    asked = settings("dynamic-int8").model_copy(update={"overrides": {"table": "weight-int4"}})
    with pytest.raises(QuantizationError, match="whole blocks of 16"):
        quantize(model, ids(), Rows(), asked, tmp_path)


def test_no_candidates_asked_for(text_model: OnnxModel, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    found = quantize(text_model, ids(), Rows(), settings(), tmp_path)
    assert found.models == found.refused == ()
    assert sorted(tmp_path.iterdir()) == before


def test_only_candidates_and_certificates_are_left_in_the_folder(text_model: OnnxModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    quantize(text_model, ids(), Rows(), settings("dynamic-int8", "static-int8"), out)
    names = [f"student-{name}.{part}" for name in ("int8", "static-int8") for part in ("certificate.json", "onnx")]
    assert sorted(p.name for p in out.iterdir()) == names


def test_nothing_is_printed(text_model: OnnxModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantize(text_model, ids(), Rows(), settings("dynamic-int8", "static-int8"), tmp_path)
    assert capfd.readouterr() == ("", "")
