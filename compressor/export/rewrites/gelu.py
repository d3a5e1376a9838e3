"""A bias and the exact GELU after it as one operator. The approximation by tanh stays as it is."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from compressor.export.rewrites.symbols import constant
from compressor.onnx_file import CONTRIB


def _gelu(op: Any, x: Any, bias: Any) -> Any:
    return op.Gelu(pattern.OrValue([op.Add(x, bias), op.Add(bias, x)]), approximate="none")


# Before operator set 20: x (1 + erf(x / sqrt 2)) / 2, Hendrycks & Gimpel 2016.
def _gelu_by_erf(op: Any, x: Any, bias: Any) -> Any:
    added = op.Add(x, bias)
    return op.Mul(added, op.Mul(0.5, op.Add(op.Erf(op.Div(added, 2**0.5)), 1.0)))


def _bias_is_a_vector(context: Any, bias: ir.Value, **_: Any) -> bool:  # noqa: ARG001
    array = constant(bias)
    return array is not None and array.ndim == 1


def _bias_gelu(op: Any, x: ir.Value, bias: ir.Value) -> Any:
    return op.BiasGelu(x, bias, _domain=CONTRIB)


RULES = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_gelu, _bias_gelu, _bias_is_a_vector, name="gelu"),
        pattern.RewriteRule(_gelu_by_erf, _bias_gelu, _bias_is_a_vector, name="gelu by erf"),
    ],
)
