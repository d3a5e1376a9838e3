"""What of a graph can be quantized, what is chosen for it, and what is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import QuantizationError
from compressor.quantize.sites import Site, assign, find_sites, load_float_model

MakeOnnx = Callable[..., Path]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SITES = (
    Site("embed", "Gather", "table", (50, 16)),
    Site("up", "MatMul", "w", (16, 32)),
    Site("conv", "Conv", "k", (8, 3)),
)


def save(path: Path, opset: int = 20, *nodes: onnx.NodeProto, **kwargs: object) -> Path:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path, **kwargs)
    return path


def test_sites_are_what_has_a_constant_float_weight(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "a"], ["b"]),  # no weight
        helper.make_node("Gather", ["counts", "ids"], ["c"]),  # integers
        helper.make_node("Transpose", ["table"], ["turned"]),
        helper.make_node("MatMul", ["b", "turned"], ["y"]),  # the table once more
    ]
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.standard_normal((16, 16)).astype(np.float32),
        "w": rng.standard_normal((16, 16)).astype(np.float32),
        "counts": np.arange(16),
    }
    interface = {"ids": (INT64, [16])}, {"y": (FLOAT, [16, 16]), "c": (INT64, [16])}
    found = find_sites(load_float_model(make_onnx(tmp_path / "m.onnx", nodes, *interface, arrays)))
    assert [(site.operator, site.weight) for site in found] == [
        ("Gather", "table"),
        ("MatMul", "w"),
        ("MatMul", "table"),
    ]
    assert len({site.node for site in found}) == 3


def test_a_precision_goes_where_it_applies_and_overrides_before_it() -> None:
    assert assign(SITES, "dynamic-int8", {}) == {"embed": "dynamic-int8", "up": "dynamic-int8", "conv": "float32"}
    chosen = assign(SITES, "static-int8", {"Gather": "weight-int4", "up": "float32", "MatMul": "weight-int8"})
    assert chosen == {"embed": "weight-int4", "up": "float32", "conv": "static-int8"}


@pytest.mark.parametrize(
    ("key", "precision", "message"),
    [
        ("Gater", "float32", "no operator or node 'Gater' .* did you mean Gather"),
        ("node_7", "float32", "no operator or node 'node_7' .* it has Conv, Gather, MatMul, embed"),
        ("Gemm", "float32", "no operator or node 'Gemm'"),
        ("conv", "dynamic-int8", "conv: dynamic-int8 does not apply to Conv; expected float32 or one of static-int8"),
        ("Conv", "weight-int4", "Conv: weight-int4 does not apply to Conv"),
    ],
)
def test_an_override_that_means_nothing_is_refused(key: str, precision: str, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        assign(SITES, "static-int8", {key: precision})  # type: ignore[dict-item]


def test_names_are_given_where_they_are_missing_or_taken(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="MatMul_0"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="MatMul_0"),
    ]
    found = find_sites(load_float_model(save(tmp_path / "m.onnx", 20, *nodes)))
    assert len({site.node for site in found}) == 3


def test_an_old_opset(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="opset 11; quantization per channel needs 13 or newer: export"):
        load_float_model(save(tmp_path / "m.onnx", 11))


def test_quantized_already(tmp_path: Path) -> None:
    quantized = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    with pytest.raises(QuantizationError, match=r"is quantized already \(DynamicQuantizeLinear\); give the float32"):
        load_float_model(save(tmp_path / "m.onnx", 20, quantized))


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model, \xff\xff\xff")
    with pytest.raises(QuantizationError, match=r"m\.onnx: expected an ONNX model"):
        load_float_model(tmp_path / "m.onnx")
    with pytest.raises(QuantizationError, match=r"absent\.onnx: expected an ONNX model"):
        load_float_model(tmp_path / "absent.onnx")


def test_external_data_is_read_and_a_missing_file_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (site,) = find_sites(load_float_model(path))
    assert site.shape == (4, 4)
    (tmp_path / "m.data").unlink()
    with pytest.raises(QuantizationError, match="expected an ONNX model"):
        load_float_model(path)
