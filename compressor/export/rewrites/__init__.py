"""The rewrites of an exported graph, each a set of rules in the order in which they build on each other."""

from __future__ import annotations

from dataclasses import dataclass

from onnxscript.rewriter.pattern import RewriteRuleSet

from compressor.export.rewrites import attention, embedding, gelu, normalization, shapes


@dataclass(frozen=True)
class Rewrite:
    """`closes`: afterwards weights lie in an operator that onnxruntime's quantizers do not open, or not as well."""

    name: str
    rules: RewriteRuleSet
    closes: bool = False


REWRITES = (
    Rewrite("shapes", shapes.RULES),
    Rewrite("attention heads", attention.HEADS),
    Rewrite("one product for query, key and value", attention.MERGED),
    Rewrite("bias-GELU", gelu.RULES),
    Rewrite("segment embedding", embedding.SEGMENTS),
    Rewrite("embedding layer-norm", embedding.WHOLE, closes=True),
    Rewrite("skip-layer-norm", normalization.RULES),
    Rewrite("attention", attention.WHOLE, closes=True),
)

__all__ = ["REWRITES", "Rewrite"]
