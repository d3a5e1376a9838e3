"""Every byte of a model file has a place, and what could be saved is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compressor.errors import BundleError
from compressor.quantize.float_model import load_float_model
from compressor.quantize.sites import assign, find_sites
from compressor.quantize.weight_only import quantize_weights
from compressor.xray import by_role, xray

MakeOnnx = Callable[..., Path]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


NODES = [
    helper.make_node("Gather", ["table", "ids"], ["h"], name="embed"),
    helper.make_node("MatMul", ["h", "w"], ["a"], name="up"),
    helper.make_node("Add", ["a", "bias"], ["b"], name="shift"),
    helper.make_node("MatMul", ["b", "head"], ["y"], name="head"),
]
INTERFACE = {"ids": (INT64, ["n"])}, {"y": (FLOAT, ["n", 200])}


@pytest.fixture
def model(make_onnx: MakeOnnx, tmp_path: Path) -> Path:
    """A table that the head holds once more, transposed."""
    table = numbers(200, 32)
    arrays = {"table": table, "w": numbers(32, 32), "bias": numbers(32), "head": table.T.copy(), "stray": numbers(500)}
    return make_onnx(tmp_path / "m.onnx", NODES, *INTERFACE, arrays)


def test_the_bytes_add_up_and_nothing_much_is_left_unnamed(model: Path) -> None:
    found = xray(model)
    assert sum(found.parts.values()) == found.bytes == model.stat().st_size
    assert 0 <= found.parts["framing"] < 64
    assert found.parts["embedding tables, float"] == pytest.approx(200 * 32 * 4, abs=40)
    assert found.parts["linear weights, float"] == pytest.approx(32 * 32 * 4, abs=40)
    assert found.parts["repeated tensors"] == pytest.approx(200 * 32 * 4, abs=40)
    assert found.parts["tensors that nothing reads"] == pytest.approx(500 * 4, abs=40)
    assert found.parts["biases and constants"] == pytest.approx(32 * 4, abs=40)


def test_remedies_are_named_largest_first(model: Path) -> None:
    words = [remedy.words for remedy in xray(model).remedies]
    assert words == [
        "storing head once: it holds the numbers of table",
        "weight-int8 for Gather embed: table is float32",
        "weight-int8 for MatMul up: w is float32",
        "leaving out stray",
    ]


def test_in_blocks(model: Path, tmp_path: Path) -> None:
    graph = load_float_model(model)
    sites = find_sites(graph)
    quantize_weights(graph, sites, assign(sites, "weight-int4", {"up": "weight-int8"}), 32)
    onnx.save(graph, tmp_path / "q.onnx")
    found = xray(tmp_path / "q.onnx")
    assert sum(found.parts.values()) == (tmp_path / "q.onnx").stat().st_size
    assert found.parts["embedding tables, 4 bits in blocks"] == pytest.approx(200 * 16, abs=60)
    assert found.parts["linear weights, 8 bits in blocks"] == pytest.approx(32 * 32, abs=60)
    # Scales of four bytes for 200 rows, twice, and for 32; with zero points of one.
    assert found.parts["scales and zero points"] == pytest.approx((2 * 200 + 32) * 5, abs=400)
    assert by_role(found)["graph"] > found.parts["nodes"] > 0


def test_of_external_data_the_bytes_are_counted_too(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "apart"
    folder.mkdir()
    onnx.save(onnx.load(model), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    found = xray(folder / "m.onnx")
    assert found.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert sum(found.parts.values()) == found.bytes
    assert found.parts["embedding tables, float"] >= 200 * 32 * 4


def test_metadata_is_a_part(model: Path, tmp_path: Path) -> None:
    told = onnx.load(model)
    told.metadata_props.add(key="history", value="x" * 5000)
    onnx.save(told, tmp_path / "told.onnx")
    found = xray(tmp_path / "told.onnx")
    assert found.parts["metadata"] == 5007
    assert any(remedy.words == "leaving out the metadata" for remedy in found.remedies)


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x0a\xff\xff\xff")
    with pytest.raises(BundleError, match="expected an ONNX model"):
        xray(tmp_path / "m.onnx")
