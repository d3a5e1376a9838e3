"""What of a graph can be quantized, what is chosen for it, and what is refused before anything is written."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from compressor.errors import QuantizationError
from compressor.quantize.float_model import load_float_model
from compressor.quantize.int8 import to_dynamic_int8
from compressor.quantize.sites import Site, applies, assign, find_sites, settled
from compressor.quantize.weight_only import quantize_weights
from compressor.quantized_operators import QUANTIZED
from compressor.recipe_quantize import NodePrecision

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


TIED = [
    helper.make_node("Gather", ["table", "ids"], ["h"], name="embed"),
    helper.make_node("MatMul", ["h", "w"], ["a"], name="up"),
    helper.make_node("Transpose", ["table"], ["turned"], name="turn"),
    helper.make_node("MatMul", ["a", "turned"], ["y"], name="head"),
]


def tied(make_onnx: MakeOnnx, path: Path, width: int = 32) -> tuple[Site, ...]:
    """A table whose rows the output is compared with."""
    interface = {"ids": (INT64, ["n"])}, {"y": (FLOAT, ["n", 50])}
    arrays = {"table": np.ones((50, width), np.float32), "w": np.eye(width, dtype=np.float32)}
    return find_sites(load_float_model(make_onnx(path, TIED, *interface, arrays)))


@pytest.mark.parametrize(
    ("uniform", "shared"),
    [
        ("dynamic-int8", "weight-int8"),
        ("static-int8", "weight-int8"),
        ("static-int16", "float32"),
        ("weight-int4", "weight-int4"),
        ("float16", "float16"),
        ("float32", "float32"),
    ],
)
def test_those_that_share_a_weight_have_one_precision(
    make_onnx: MakeOnnx, tmp_path: Path, uniform: NodePrecision, shared: NodePrecision
) -> None:
    sites = tied(make_onnx, tmp_path / "m.onnx")
    assert assign(sites, uniform, {}) == {"embed": shared, "up": uniform, "head": shared}
    for node in ("embed", "head"):
        assert assign(sites, uniform, {node: "bfloat16"}) == {"embed": "bfloat16", "up": uniform, "head": "bfloat16"}
    assert assign(sites, uniform, {"MatMul": "weight-int4", "embed": "float32"}) == {
        "embed": "float32",
        "up": "weight-int4",
        "head": "float32",
    }


def test_a_table_that_has_no_blocks_stays_float32_with_its_product(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    sites = tied(make_onnx, tmp_path / "m.onnx", width=24)
    for uniform in ("dynamic-int8", "static-int8", "weight-int4"):
        chosen = assign(sites, uniform, {})  # type: ignore[arg-type]
        assert chosen == {"embed": "float32", "up": uniform, "head": "float32"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"head": "static-int8"},
            r"head: static-int8 does not apply to MatMul head, which has one weight with embed; .* {head: weight-int8}",
        ),
        ({"Gather": "dynamic-int8"}, "Gather: dynamic-int8 .* embed, which has one weight with head; .*{embed: weight"),
        (
            {"embed": "weight-int4", "head": "float32"},
            "embed: weight-int4 and head: float32, but both read the weight table: give them one precision",
        ),
        ({"Gather": "weight-int4", "MatMul": "float16"}, "embed: weight-int4 and head: float16, but both read"),
    ],
)
def test_an_override_that_a_shared_weight_cannot_have_is_refused(
    make_onnx: MakeOnnx, tmp_path: Path, overrides: dict[str, NodePrecision], message: str
) -> None:
    with pytest.raises(QuantizationError, match=message) as refused:
        assign(tied(make_onnx, tmp_path / "m.onnx"), "static-int8", overrides)
    assert "\n" not in str(refused.value)


def test_any_mixture_becomes_one_that_can_be_written(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    sites = tied(make_onnx, tmp_path / "m.onnx")
    mixture = settled(sites, {"embed": "weight-int4", "head": "static-int8"})
    assert mixture == {"embed": "weight-int8", "up": "float32", "head": "weight-int8"}
    assert settled(sites, {"embed": "weight-int4"}, {"embed": "float16"})["head"] == "float16"
    for wanted in itertools.product(("dynamic-int8", "static-int16", "weight-int4", "float32"), repeat=3):
        mixture = settled(sites, dict(zip(("embed", "up", "head"), wanted, strict=True)))  # type: ignore[arg-type]
        assert assign(sites, "float32", mixture) == mixture


@pytest.mark.parametrize(
    ("node", "shape", "possible"),
    [
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (4, 4), {"dynamic-int8", "static-int8", "weight-int4"}),
        (helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5), (4, 4), {"static-int8"}),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (4, 4), {"static-int8"}),
        (helper.make_node("Gather", ["w", "i"], ["y"]), (4, 32), {"dynamic-int8", "static-int8", "weight-int4"}),
        (helper.make_node("Gather", ["w", "i"], ["y"]), (4, 20), {"dynamic-int8", "static-int8"}),
        (helper.make_node("Gather", ["w", "i"], ["y"], axis=1), (4, 32), {"dynamic-int8", "static-int8"}),
        (helper.make_node("Conv", ["x", "w"], ["y"]), (4, 4, 3), {"static-int8"}),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 4, 4), None),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (4,), None),
        (helper.make_node("Gather", ["w", "i"], ["y"]), (2, 4, 16), None),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_what_a_node_can_have(node: onnx.NodeProto, shape: tuple[int, ...], possible: set[NodePrecision]) -> None:
    weight = numpy_helper.from_array(np.ones(shape, np.float32), "w")
    sites = find_sites(helper.make_model(helper.make_graph([node], "g", [], [], [weight])))
    if possible is None:
        assert not sites
    else:
        precisions: tuple[NodePrecision, ...] = ("dynamic-int8", "static-int8", "weight-int4")
        assert {one for one in precisions if applies(one, sites[0])} == possible


def test_a_table_that_is_read_transposed_alone_is_no_site() -> None:
    """Its rows would be other numbers."""
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("Gather", ["t", "i"], ["y"])]
    weight = numpy_helper.from_array(np.ones((16, 16), np.float32), "w")
    assert not find_sites(helper.make_model(helper.make_graph(nodes, "g", [], [], [weight])))


def test_constants_and_transposed_matrices_are_weights(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """As exporters leave them; what the model computes stays the same to the bit."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 5), (3, 5)))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(first)),
        helper.make_node("MatMul", ["x", "c"], ["h"]),
        helper.make_node("Transpose", ["second"], ["turned"]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    interface = {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 3])}
    path = make_onnx(tmp_path / "m.onnx", nodes, *interface, {"second": second})
    model = load_float_model(path)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "MatMul"]
    assert [(site.weight, site.shape) for site in find_sites(model)] == [("c", (4, 5)), ("turned", (5, 3))]
    assert not any(site.unfit for site in find_sites(model))
    x = rng.standard_normal((2, 4)).astype(np.float32)
    expected, got = (
        onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for one in (path, model.SerializeToString())
    )
    np.testing.assert_array_equal(got, expected)


def test_functions_are_inlined(tmp_path: Path) -> None:
    product = helper.make_node("MatMul", ["a", "b"], ["c"], name="product")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Product", ["a", "b"], ["c"], [product], opsets[:1])
    path = save(tmp_path / "m.onnx", 20, helper.make_node("Product", ["x", "w"], ["y"], domain="own"))
    model = onnx.load(path)
    model.functions.append(function)
    model.opset_import.append(opsets[1])
    onnx.save(model, path)
    (site,) = find_sites(load_float_model(path))
    assert (site.operator, site.weight) == ("MatMul", "w")
    model.functions[0].node[0].op_type = "MatMulInteger"
    onnx.save(model, path)
    with pytest.raises(QuantizationError, match=r"is quantized already \(MatMulInteger\)"):
        load_float_model(path)


def test_quantized_in_a_body(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("b", TensorProto.INT32, None)
    body = helper.make_graph([helper.make_node("MatMulInteger", ["q", "v"], ["b"])], "body", [], [out])
    nodes = [
        helper.make_node("If", ["yes"], ["integers"], then_branch=body, else_branch=body),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    with pytest.raises(QuantizationError, match=r"is quantized already \(MatMulInteger\)"):
        load_float_model(save(tmp_path / "m.onnx", 20, *nodes))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(make_onnx: MakeOnnx, tmp_path: Path, number: float) -> None:
    arrays = {"w": np.eye(4, dtype=np.float32), "mask": np.full(4, -np.inf, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Max", ["a", "mask"], ["y"]),
    ]
    interface = {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}
    load_float_model(make_onnx(tmp_path / "m.onnx", nodes, *interface, arrays))
    arrays["w"][1, 2] = number
    with pytest.raises(QuantizationError, match="w, the weight of product: 1 of its 16 numbers are NaN or infinite;"):
        load_float_model(make_onnx(tmp_path / "m.onnx", nodes, *interface, arrays))


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


@pytest.mark.parametrize("operator", ["QGemm", "QAttention", "QEmbedLayerNormalization", "QMoE", "MatMulBnb4"])
def test_quantized_already_and_fused(operator: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node(operator, ["x"], ["q"], domain="com.microsoft"),
        helper.make_node("MatMul", ["q", "w"], ["y"]),
    ]
    with pytest.raises(QuantizationError, match=rf"is quantized already \({operator}\); give the float32"):
        load_float_model(save(tmp_path / "m.onnx", 20, *nodes))


def test_all_that_onnxruntime_has_in_few_bits_is_known() -> None:
    named = re.compile("^Q[A-Z]|[Qq]uantize|Integer|NBits|Bnb|FpQ|BFP|WithOrder")
    few_bits = {one.name for one in get_all_operator_schema() if re.search(named, one.name)}
    assert few_bits <= QUANTIZED
    assert {"QGemm", "QLinearConv", "MatMulNBits"} <= few_bits


def test_an_override_where_nothing_can_be_quantized() -> None:
    with pytest.raises(
        QuantizationError, match=r"'p3' .* is in this graph; nothing in it can be: leave out quantize.ov"
    ):
        assign((), "float32", {"p3": "weight-int8"})


def test_a_node_named_as_what_is_made_of_a_gemm(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="p"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="p_MatMul"),
    ]
    arrays = {"w": np.eye(32, dtype=np.float32), "v": np.eye(32, dtype=np.float32)}
    interface = {"x": (FLOAT, ["n", 32])}, {"y": (FLOAT, ["n", 32])}
    model = load_float_model(make_onnx(tmp_path / "m.onnx", nodes, *interface, arrays))
    for asked, integers in ((["p"], 1), (["p_MatMul"], 1), (["p", "p_MatMul"], 2)):
        made = to_dynamic_int8(model, asked)
        onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        assert [node.op_type for node in made.graph.node].count("MatMulIntegerToFloat") == integers


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


@pytest.mark.parametrize("precision", ["dynamic-int8", "weight-int8", "weight-int4", "float16"])
def test_a_weight_without_numbers_stays_as_it_is(make_onnx: MakeOnnx, precision: NodePrecision, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="some"),
        helper.make_node("MatMul", ["x", "none"], ["b"], name="none"),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    arrays = {"w": np.eye(32, dtype=np.float32), "none": np.zeros((32, 0), np.float32)}
    interface = {"x": (FLOAT, ["n", 32])}, {"y": (FLOAT, ["n", 32])}
    model = load_float_model(make_onnx(tmp_path / "m.onnx", nodes, *interface, arrays))
    sites = find_sites(model)
    assert [site.node for site in sites] == ["some"]
    chosen = assign(sites, precision, {})
    if precision == "dynamic-int8":
        model = to_dynamic_int8(model, list(chosen))
    else:
        quantize_weights(model, sites, chosen, 32)
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x, atol=0.05)
