"""What is said of fewer bits that are not faster: by profiles written by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from compressor.benchmark.result import OperatorShare
from compressor.benchmark.slower import products_in_float32, why_not_faster

OLD_X86, NEW_X86 = {"sse2", "avx2"}, {"sse2", "avx2", "avx_vnni"}
OLD_ARM, NEW_ARM = {"asimd"}, {"asimd", "asimddp"}
INFERENCES = 100


def profile(**operators: tuple[int, float]) -> list[OperatorShare]:
    """Of each operator the nodes and their milliseconds in one inference."""
    total = sum(ms for _, ms in operators.values())
    return [
        OperatorShare(name, nodes, nodes * INFERENCES, ms * INFERENCES, ms / total)
        for name, (nodes, ms) in operators.items()
    ]


FLOAT32 = profile(Conv=(4, 2.0), Relu=(4, 0.4))


def test_integer_products_that_are_slower_and_what_the_processor_lacks() -> None:
    found = profile(ConvInteger=(3, 2.5), Conv=(1, 0.5), Relu=(4, 0.4))
    slower = "ConvInteger: 2.5 ms an inference, the same products in float32 1.5 ms"
    assert why_not_faster(found, FLOAT32, NEW_X86, 0) == slower
    assert why_not_faster(found, FLOAT32, OLD_X86, 0) == f"{slower}, and this processor has no VNNI"
    assert why_not_faster(found, FLOAT32, NEW_ARM, 0) == slower
    assert why_not_faster(found, FLOAT32, OLD_ARM, 0) == f"{slower}, and this processor has no dot product instructions"
    assert why_not_faster(found, FLOAT32, (), 0) == slower, "what it has is not known"


def test_rounding_takes_what_products_gain() -> None:
    found = profile(DynamicQuantizeLinear=(4, 1.2), MatMulInteger=(4, 1.0), Relu=(4, 0.4))
    before = profile(MatMul=(4, 2.0), Relu=(4, 0.4))
    assert why_not_faster(found, before, OLD_X86, 0) == "46.2% of its time rounds numbers: 4 DynamicQuantizeLinear"


def test_products_that_were_not_fused() -> None:
    found = profile(MatMul=(2, 2.0), DequantizeLinear=(4, 0.1), QuantizeLinear=(2, 0.1))
    before = profile(MatMul=(2, 2.0))
    assert why_not_faster(found, before, NEW_X86, 0) == "2 MatMul run in float32, behind DequantizeLinear"


def test_what_is_meant_to_be_float32_is_no_evidence() -> None:
    """A table in int8 gives by way of DequantizeLinear; attention and a product stay float32."""
    found = profile(
        MatMulIntegerToFloat=(2, 1.0), MultiHeadAttention=(2, 1.0), MatMul=(1, 1.0), DequantizeLinear=(1, 0.1)
    )
    before = profile(MatMul=(3, 2.5), MultiHeadAttention=(2, 1.0))
    assert why_not_faster(found, before, NEW_X86, 1) == ""
    found = profile(MatMul=(3, 1.5), Gemm=(1, 0.5), DequantizeLinear=(4, 0.1), QuantizeLinear=(2, 0.1))
    before = profile(MatMul=(3, 1.5), Gemm=(1, 0.5))
    left = "3 of 3 MatMul, 1 Gemm run in float32, behind DequantizeLinear"
    assert why_not_faster(found, before, NEW_X86, 1).startswith(left)


def test_products_between_dequantize_linear_are_not_meant_in_float32(tmp_path: Path) -> None:
    rounded = [
        helper.make_node("DequantizeLinear", [f"{name}.codes", "scale"], [name]) for name in ("rows", "first", "second")
    ]
    nodes = [
        *rounded,
        helper.make_node("Gather", ["rows", "ids"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "scale"], ["h.codes"]),
        helper.make_node("DequantizeLinear", ["h.codes", "scale"], ["h.read"]),
        helper.make_node("MatMul", ["h.read", "first"], ["a"]),
        helper.make_node("MatMul", ["a", "second"], ["b"]),  # of weights alone
        helper.make_node("MatMul", ["b", "float"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert products_in_float32(tmp_path / "m.onnx") == 2


def test_more_nodes_where_nodes_are_short() -> None:
    found = profile(QGemm=(2, 0.004), QuantizeLinear=(1, 0.0004), Relu=(2, 0.003))
    before = profile(Gemm=(2, 0.005), Relu=(2, 0.003))
    assert why_not_faster(found, before, NEW_X86, 0) == "5 nodes of 1.5 us each, 4 in float32"


def test_nothing_is_said_without_evidence() -> None:
    assert why_not_faster(FLOAT32, FLOAT32, OLD_X86, 4) == ""
    faster = profile(QLinearConv=(4, 1.0), Relu=(4, 0.4))
    assert why_not_faster(faster, FLOAT32, OLD_X86, 0) == "", "lacking VNNI is no reason where products are faster"
