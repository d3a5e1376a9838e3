"""A residual connection, with the bias of the product before it, and the layer normalization after it as one operator.

Its fourth output is the sum itself, where the next residual connection starts from that (normalization first).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from compressor.export.rewrites.symbols import constant, dimensions
from compressor.onnx_file import CONTRIB


def _residual(biased: bool, shared: bool) -> Any:
    def target(op: Any, x: Any, skip: Any, gamma: Any, beta: Any, bias: Any) -> Any:
        branch = op.Add(x, bias) if biased else x
        total = pattern.OrValue([op.Add(branch, skip), op.Add(skip, branch)], name="total")
        normalized = op.LayerNormalization(total, gamma, beta, axis=-1, _outputs=["normalized"])
        return (normalized, total) if shared else normalized

    return target


def _is_residual(
    context: Any,  # noqa: ARG001
    x: ir.Value,
    skip: ir.Value,
    gamma: ir.Value,
    beta: ir.Value,
    normalized: ir.Value,
    bias: ir.Value | None = None,
    **_: Any,
) -> bool:
    sizes = dimensions(x)
    if sizes is None or len(sizes) != 3 or dimensions(skip) != sizes:
        return False
    node = normalized.producer()
    if node is None or node.attributes.get_int("stash_type", 1) != 1:
        return False
    vectors = [gamma, beta, *([bias] if bias is not None else [])]
    return all((array := constant(vector)) is not None and array.shape == sizes[2:] for vector in vectors)


def _fused(shared: bool) -> Any:
    def replacement(
        op: Any,
        x: ir.Value,
        skip: ir.Value,
        gamma: ir.Value,
        beta: ir.Value,
        normalized: ir.Value,
        bias: ir.Value | None = None,
        **_: Any,
    ) -> Any:
        node = normalized.producer()
        assert node is not None
        found = op.SkipLayerNormalization(
            x,
            skip,
            gamma,
            beta,
            bias,
            epsilon=node.attributes.get_float("epsilon", 1e-5),
            _domain=CONTRIB,
            _outputs=4 if shared else 1,
        )
        return (found[0], found[3]) if shared else found

    return replacement


RULES = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_residual(biased, shared), _fused(shared), _is_residual, name="skip-layer-norm")
        for shared in (False, True)
        for biased in (True, False)
    ]
)
