"""Why fewer bits are not faster, from the profiles of a model and of its float32 original: what was seen, no guess."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from compressor.benchmark.result import OperatorShare
from compressor.quantized_operators import PRODUCTS, ROUNDING

_FUSED = frozenset(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv"))
_IN_FLOAT32 = _FUSED | {"Attention", "MultiHeadAttention"}
# Of a processor of the first kind, the second multiplies 8-bit integers with sums of 32 bits.
_DOT_PRODUCTS = (("sse2", ("avx512_vnni", "avx_vnni"), "VNNI"), ("asimd", ("asimddp",), "dot product instructions"))
# Rounding is worth a word from this share of the time on, and what nodes cost where they take so little each.
_MUCH, _SHORT_US = 0.1, 10.0


def why_not_faster(
    profile: Sequence[OperatorShare],
    float32: Sequence[OperatorShare],
    instruction_sets: Collection[str],
    meant_in_float32: int,
) -> str:
    """One line; empty where the profiles show nothing. `instruction_sets` are those of the processor that ran them;
    `meant_in_float32` is what `products_in_float32` says of the model.
    """
    seen = (
        _products(profile, float32, instruction_sets),
        _rounding(profile),
        _not_fused(profile, meant_in_float32),
        _nodes(profile, float32),
    )
    return "; ".join(one for one in seen if one)


def _products(
    profile: Sequence[OperatorShare], float32: Sequence[OperatorShare], instruction_sets: Collection[str]
) -> str:
    """Whether products take longer in few bits than those in float32 that they stand for."""
    few = _of(profile, PRODUCTS)
    before_ms = _ms(_of(float32, _IN_FLOAT32)) - _ms(_of(profile, _IN_FLOAT32))
    if not few or before_ms <= 0 or _ms(few) < before_ms:
        return ""
    names = ", ".join(one.operator for one in few)
    lacks = [
        f", and this processor has no {name}"
        for kind, needed, name in _DOT_PRODUCTS
        if kind in instruction_sets and not set(needed) & set(instruction_sets)
    ]
    return f"{names}: {_ms(few):.3g} ms an inference, the same products in float32 {before_ms:.3g} ms{''.join(lacks)}"


def _rounding(profile: Sequence[OperatorShare]) -> str:
    found = _of(profile, ROUNDING)
    share = sum(one.share for one in found)
    if share < _MUCH:
        return ""
    return f"{share:.1%} of its time rounds numbers: {', '.join(f'{one.nodes} {one.operator}' for one in found)}"


def products_in_float32(model: Path) -> int:
    """How many products and convolutions of an ONNX file are not between DequantizeLinear nodes: float32 as it is
    written. Needs the package `onnx`.
    """
    import onnx

    from compressor.onnx_file import nodes_in

    nodes = list(nodes_in(onnx.load(model, load_external_data=False).graph.node))
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    return sum(node.op_type in _FUSED and not dequantized.issuperset(node.input[:2]) for node in nodes)


def _not_fused(profile: Sequence[OperatorShare], meant_in_float32: int) -> str:
    """Products behind DequantizeLinear that the runtime has made no integer product of."""
    left = _of(profile, _FUSED)
    count = sum(one.nodes for one in left)
    if count <= meant_in_float32 or not any(one.operator == "DequantizeLinear" for one in profile):
        return ""
    some = f"{count - meant_in_float32} of " if meant_in_float32 else ""
    return f"{some}{', '.join(f'{one.nodes} {one.operator}' for one in left)} run in float32, behind DequantizeLinear"


def _nodes(profile: Sequence[OperatorShare], float32: Sequence[OperatorShare]) -> str:
    """Where nodes are short, more of them cost more than what they compute."""
    count, before = (sum(one.nodes for one in found) for found in (profile, float32))
    if count <= before or (each_us := 1e3 * _ms(profile) / count) >= _SHORT_US:
        return ""
    return f"{count} nodes of {each_us:.2g} us each, {before} in float32"


def _of(profile: Sequence[OperatorShare], operators: Collection[str]) -> list[OperatorShare]:
    return [one for one in profile if one.operator in operators]


def _ms(profile: Sequence[OperatorShare]) -> float:
    """Of one inference."""
    return sum(one.total_ms * one.nodes / one.calls for one in profile)
