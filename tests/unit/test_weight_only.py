"""Weight-only precisions: what onnxruntime computes from the written graph is what the weights in blocks stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import QuantizationError
from compressor.quantize.blocks import from_blocks, to_blocks
from compressor.quantize.float_model import load_float_model
from compressor.quantize.sites import assign, find_sites
from compressor.quantize.weight_only import quantize_weights
from compressor.recipe_quantize import NodePrecision

MakeOnnx = Callable[..., Path]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def written(path: Path, precision: NodePrecision, block: int = 32, **overrides: NodePrecision) -> onnx.ModelProto:
    model = load_float_model(path)
    sites = find_sites(model)
    quantize_weights(model, sites, assign(sites, precision, overrides), block)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, **feed: NDArray[Any]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, feed)
    return found


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def stored_bytes(model: onnx.ModelProto) -> int:
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


PRODUCTS = {
    "MatMul": (helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), False),
    "Gemm": (helper.make_node("Gemm", ["x", "w", "bias"], ["y"], name="product"), False),
    "Gemm, transposed": (helper.make_node("Gemm", ["x", "w", "bias"], ["y"], name="product", transB=1), True),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("width", [64, 50])
def test_a_product(make_onnx: MakeOnnx, tmp_path: Path, kind: str, bits: int, width: int) -> None:
    """One-hot rows, which int8 holds exactly, read the weights back one by one."""
    node, rows_first = PRODUCTS[kind]
    weight, bias = numbers(width, 24), numbers(24)
    arrays = {"w": weight.T.copy() if rows_first else weight} | ({"bias": bias} if len(node.input) == 3 else {})
    interface = {"x": (FLOAT, ["n", width])}, {"y": (FLOAT, ["n", 24])}
    model = written(make_onnx(tmp_path / "m.onnx", [node], *interface, arrays), f"weight-int{bits}")  # type: ignore[arg-type]
    assert operators(model) == ["MatMulNBits"] + (["Add"] if "bias" in arrays else [])
    expected = from_blocks(to_blocks(np.ascontiguousarray(weight.T), bits, 32), width).T
    (got,) = run(model, x=np.eye(width, dtype=np.float32))
    np.testing.assert_allclose(got, expected + (bias if "bias" in arrays else 0), atol=2e-5)
    x = numbers(7, width)
    (got,) = run(model, x=x)
    exact = x.astype(np.float64) @ expected + (bias if "bias" in arrays else 0)
    assert np.linalg.norm(got - exact) < 0.01 * np.linalg.norm(exact), "activations are int8 within a block"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [64, 48])
def test_a_table(make_onnx: MakeOnnx, tmp_path: Path, bits: int, width: int) -> None:
    table = numbers(30, width)
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    interface = {"ids": (INT64, ["n", "s"])}, {"y": (FLOAT, ["n", "s", width])}
    model = written(make_onnx(tmp_path / "m.onnx", [node], *interface, {"table": table}), f"weight-int{bits}")  # type: ignore[arg-type]
    assert operators(model) == ["GatherBlockQuantized"]
    ids = np.arange(30, dtype=np.int64).reshape(5, 6)
    block = 32 if width == 64 else 16
    np.testing.assert_allclose(
        run(model, ids=ids)[0], from_blocks(to_blocks(table, bits, block), width)[ids], atol=1e-6
    )


@pytest.fixture
def tied(make_onnx: MakeOnnx, tmp_path: Path) -> Path:
    """A decoder in small: a table that tokens are read from, and that the output is compared with."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"], name="embed"),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["logits"], name="head"),
    ]
    interface = {"ids": (INT64, ["n", "s"])}, {"logits": (FLOAT, ["n", "s", 500])}
    return make_onnx(tmp_path / "tied.onnx", nodes, *interface, {"table": numbers(500, 48)})


@pytest.mark.parametrize(("precision", "share"), [("weight-int8", 0.35), ("weight-int4", 0.23), ("float16", 0.51)])
def test_tied_weights_stay_one(tied: Path, precision: NodePrecision, share: float) -> None:
    model = written(tied, precision)
    assert stored_bytes(model) < share * 500 * 48 * 4
    ids = np.arange(12, dtype=np.int64)[None]
    (expected,), (got,) = run(onnx.load(tied), ids=ids), run(model, ids=ids)
    assert np.linalg.norm(got - expected) < 0.12 * np.linalg.norm(expected)


def test_a_tie_that_is_cut_keeps_what_is_still_read(tied: Path) -> None:
    model = load_float_model(tied)
    quantize_weights(model, find_sites(model), {"embed": "weight-int4", "head": "float32"}, 32)
    assert operators(model) == ["GatherBlockQuantized", "Transpose", "MatMul"]
    assert {"table"} < {tensor.name for tensor in model.graph.initializer}
    run(model, ids=np.zeros((1, 2), np.int64))


@pytest.mark.parametrize(("precision", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_halves(make_onnx: MakeOnnx, tmp_path: Path, precision: NodePrecision, dtype: Any) -> None:
    kernel = numbers(8, 3, 3, 3)
    node = helper.make_node("Conv", ["x", "k"], ["y"], kernel_shape=[3, 3])
    interface = {"x": (FLOAT, ["n", 3, 9, 9])}, {"y": (FLOAT, ["n", 8, 7, 7])}
    path = make_onnx(tmp_path / "m.onnx", [node], *interface, {"k": kernel})
    model = written(path, precision)
    assert stored_bytes(model) < 0.55 * kernel.nbytes
    rounded = make_onnx(tmp_path / "r.onnx", [node], *interface, {"k": kernel.astype(dtype).astype(np.float32)})
    x = numbers(2, 3, 9, 9)
    np.testing.assert_array_equal(run(model, x=x)[0], run(onnx.load(rounded), x=x)[0])


def test_half_that_would_overflow_is_refused(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    weight = numbers(32, 4)
    weight[3, 2] = 1e5
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    interface = {"x": (FLOAT, ["n", 32])}, {"y": (FLOAT, ["n", 4])}
    path = make_onnx(tmp_path / "m.onnx", [node], *interface, {"w": weight})
    with pytest.raises(QuantizationError, match=r"product: .* 1e\+05, beyond float16"):
        written(path, "float16")
    assert stored_bytes(written(path, "bfloat16")) < 0.6 * weight.nbytes


def test_a_product_reads_a_weight_both_ways(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """A Gemm that transposes what was transposed, and one that reads it as it is."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("Gemm", ["x", "turned"], ["a"], name="twice", transB=1),
        helper.make_node("MatMul", ["a", "turned"], ["b"], name="once"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="never"),
    ]
    interface = {"x": (FLOAT, ["n", 64])}, {"y": (FLOAT, ["n", 64])}
    path = make_onnx(tmp_path / "m.onnx", nodes, *interface, {"w": numbers(64, 64)})
    x = numbers(5, 64)
    (expected,) = run(onnx.load(path), x=x)
    for precision in ("weight-int8", "float16"):
        (got,) = run(written(path, precision), x=x)  # type: ignore[arg-type]
        assert 0 < np.linalg.norm(got - expected) < 0.03 * np.linalg.norm(expected), precision


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_that_scales_is_refused(make_onnx: MakeOnnx, tmp_path: Path, attributes: dict[str, Any]) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="scaled", **attributes)
    interface = {"x": (FLOAT, [32, 32])}, {"y": (FLOAT, [32, 32])}
    path = make_onnx(tmp_path / "m.onnx", [node], *interface, {"w": numbers(32, 32), "b": numbers(32)})
    with pytest.raises(QuantizationError, match=r"scaled: weight-int8 does not .* alpha, beta or transA; expected"):
        written(path, "weight-int8", scaled="weight-int8")
    model = load_float_model(path)
    with pytest.raises(QuantizationError, match="scaled: a Gemm with alpha, beta or transA"):
        quantize_weights(model, find_sites(model), {"scaled": "weight-int8"}, 32)
    assert operators(written(path, "weight-int8")) == ["Gemm"]


def test_a_table_of_ragged_rows_is_refused(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="ragged")
    interface = {"ids": (INT64, ["n"])}, {"y": (FLOAT, ["n", 20])}
    path = make_onnx(tmp_path / "m.onnx", [node], *interface, {"table": numbers(30, 20)})
    with pytest.raises(QuantizationError, match=r"Gather: weight-int4 does not .* ragged, a table \[30, 20\], not of"):
        written(path, "weight-int4", Gather="weight-int4")
    model = load_float_model(path)
    with pytest.raises(QuantizationError, match=r"ragged: expected .* whole blocks of 16, got \[30, 20\]"):
        quantize_weights(model, find_sites(model), {"ragged": "weight-int4"}, 32)
    assert operators(written(path, "weight-int4")) == ["Gather"]


def test_a_weight_that_a_branch_reads_is_kept(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """The bodies of If are not quantized; what they read of the graph around them stays."""
    out = helper.make_tensor_value_info("b", FLOAT, None)
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["b"])], "then", [], [out])
    other = helper.make_graph([helper.make_node("Neg", ["p"], ["b"])], "else", [], [out])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="outer"),
        helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
    ]
    interface = {"x": (FLOAT, ["n", 32]), "yes": (TensorProto.BOOL, [])}, {"y": (FLOAT, ["n", 32])}
    weight = numbers(32, 32)
    model = written(make_onnx(tmp_path / "m.onnx", nodes, *interface, {"w": weight}), "weight-int8")
    x = numbers(3, 32)
    np.testing.assert_allclose(run(model, x=x, yes=np.array(True))[0], x @ weight, atol=1e-4)
    (negated,) = run(model, x=x, yes=np.array(False))
    assert 0 < np.linalg.norm(negated + x @ weight) < 0.02 * np.linalg.norm(x @ weight)


def test_what_is_not_chosen_stays_as_it_is(tied: Path) -> None:
    assert numpy_helper.to_array(written(tied, "float32").graph.initializer[0]).shape == (500, 48)
    assert operators(written(tied, "float32")) == ["Gather", "Transpose", "MatMul"]
