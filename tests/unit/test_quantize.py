"""int8 candidates: smaller, loadable, close; refused where int8 gains nothing."""

from __future__ import annotations

import warnings
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
from compressor.quantize.sites import assign
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


class Squares(Rows):
    def collate(self, examples: Any) -> Feed:
        return {"x": examples[0]}


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
        "static-int8 applies to MatMul, Gemm, Gather, Conv with constant float32 matrices; there are none"
    )


def test_weights_in_half_are_called_that(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["out"], to=TensorProto.FLOAT),
    ]
    interface = {"x": (TensorProto.FLOAT, ["batch", 4])}, {"out": (TensorProto.FLOAT, ["batch", 4])}
    path = make_onnx(tmp_path / "s.onnx", nodes, *interface, {"w": weights(4, 4).astype(np.float16)})
    found = quantize(describe_onnx(path, "student", "float32"), VECTORS, Vectors(), settings("static-int8"), tmp_path)
    assert [one.reason for one in found.refused] == ["the model's weights are in half already; give the float32 model"]


@pytest.mark.parametrize("precision", ["dynamic-int8", "static-int8", "static-int16", "weight-int8", "weight-int4"])
@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_that_scales_is_right_in_every_precision(
    make_onnx: MakeOnnx, tmp_path: Path, precision: str, attributes: dict[str, Any]
) -> None:
    """Where its precision does not apply, it is float32: another one stands beside it, so that there is a candidate."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="scaled", **attributes),
        helper.make_node("Gemm", ["h", "v", "b"], ["out"], name="plain"),
    ]
    arrays = {"w": weights(32, 32), "v": weights(32, 31 + 1) / 8, "b": weights(32) * 20}
    interface = {"x": (TensorProto.FLOAT, [32, 32])}, {"out": (TensorProto.FLOAT, [32, 32])}
    path = make_onnx(tmp_path / "s.onnx", nodes, *interface, arrays)
    square = list(np.random.default_rng(5).standard_normal((16, 32, 32)).astype(np.float32))
    mixer = Mixer.of(describe_onnx(path, "student", "float32"), square, Squares(), settings(precision))
    chosen = assign(mixer.sites, precision, {})  # type: ignore[arg-type]
    assert (chosen["scaled"] == "float32") == (not precision.startswith("static") or "beta" in attributes)
    mixer.write(chosen, tmp_path / "q.onnx")
    expected, got = (run(one, {"x": square[0]}) for one in (path, tmp_path / "q.onnx"))
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 0 < error < (0.15 if precision == "weight-int4" else 0.03)


@pytest.mark.parametrize("precision", ["dynamic-int8", "static-int8", "static-int16", "weight-int4", "float16"])
def test_two_products_of_one_weight(make_onnx: MakeOnnx, tmp_path: Path, precision: str) -> None:
    """It stays one in the file, of a quarter of the bytes or of half."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["out"], name="second"),
    ]
    interface = {"x": (TensorProto.FLOAT, ["batch", 64])}, {"out": (TensorProto.FLOAT, ["batch", 64])}
    path = make_onnx(tmp_path / "s.onnx", nodes, *interface, {"w": weights(64, 64)})
    rows = list(weights(16, 64))
    student = describe_onnx(path, "student", "float32")
    (made,) = quantize(student, rows, Vectors(), settings(precision), tmp_path).models
    held = [tensor for tensor in onnx.load(made.path).graph.initializer if np.prod(tensor.dims) >= 64 * 64 / 2]
    assert len(held) == 1
    assert made.bytes < (0.65 if precision == "float16" else 0.55) * student.bytes
    expected, got = (run(one, {"x": rows[0][None]}) for one in (path, made.path))
    assert 0 < np.linalg.norm(got - expected) < (0.3 if precision == "weight-int4" else 0.04) * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["dynamic-int8", "static-int8"])
def test_what_bodies_read_stays_float32(make_onnx: MakeOnnx, tmp_path: Path, precision: str) -> None:
    """The weight of a product is read in a Loop and in an If as well: of them the answers are float32's to the bit."""

    def value(name: str, kind: int, shape: list[Any] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    real, truth = TensorProto.FLOAT, TensorProto.BOOL
    step = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["g"], name="outer"), helper.make_node("Identity", ["on"], ["still"])],
        "step",
        [value("i", TensorProto.INT64, []), value("on", truth, []), value("h", real, ["batch", 64])],
        [value("still", truth, []), value("g", real, ["batch", 64])],
    )
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", real, None)])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "other", [], [value("e", real, None)])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["out"], name="outer"),
        helper.make_node("Loop", ["twice", "yes", "x"], ["looped"], body=step),
        helper.make_node("If", ["yes"], ["branched"], then_branch=then, else_branch=other),
    ]
    arrays = {"w": weights(64, 64) / 8, "twice": np.array(2), "yes": np.array(True)}
    outputs = {name: (real, ["batch", 64]) for name in ("out", "looped", "branched")}
    path = make_onnx(tmp_path / "s.onnx", nodes, {"x": (real, ["batch", 64])}, outputs, arrays)
    rows = list(weights(16, 64))
    mixer = Mixer.of(describe_onnx(path, "student", "float32"), rows, Vectors(), settings(precision))
    mixer.write(assign(mixer.sites, precision, {}), tmp_path / "q.onnx")  # type: ignore[arg-type]
    (out, *bodies), (got, *same) = (
        onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"]).run(None, {"x": rows[0][None]})
        for one in (path, tmp_path / "q.onnx")
    )
    assert 0 < np.linalg.norm(got - out) < 0.03 * np.linalg.norm(out)
    for one, exact in zip(same, bodies, strict=True):
        np.testing.assert_array_equal(one, exact)


def test_a_mixture_that_cannot_be_written_is_refused(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["out"], name="second"),
    ]
    interface = {"x": (TensorProto.FLOAT, ["batch", 4])}, {"out": (TensorProto.FLOAT, ["batch", 4])}
    path = make_onnx(tmp_path / "s.onnx", nodes, *interface, {"w": weights(4, 4)})
    mixer = Mixer.of(describe_onnx(path, "student", "float32"), VECTORS, Vectors(), settings())
    with pytest.raises(QuantizationError, match="first: static-int8 and second: float32, but both read the weight w"):
        mixer.write({"first": "static-int8", "second": "float32"}, tmp_path / "q.onnx")
    with pytest.raises(QuantizationError, match="no operator or node 'third'"):
        mixer.write({"third": "static-int8"}, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()
    mixer.write({"second": "static-int8"}, tmp_path / "q.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node].count("QuantizeLinear") == 2


def test_judging_large_numbers_overflows_nothing(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """Squares of 1e30 are no float32; migration and bias correction are judged all the same."""
    product = helper.make_node("MatMul", ["x", "w"], ["out"])
    model = tiny(make_onnx, tmp_path / "s.onnx", product, w=weights(4, 4) * 1e30)
    mixer = Mixer.of(model, [*VECTORS, *VECTORS, *VECTORS], Vectors(), settings("static-int8"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        said = mixer.start(assign(mixer.sites, "static-int8", {})).said
    assert said
    assert not any("nan" in line or "inf" in line for line in said)


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
