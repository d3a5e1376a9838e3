"""Reshapes, transpositions and expansions whose shape the graph works out at run time, though it is known before."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from compressor.export.rewrites.symbols import Dimension, constant, dimensions, spelled


def _reshape(op: Any, x: Any, shape: Any) -> Any:
    return op.Reshape(x, shape, _outputs=["reshaped"])


def _reshape_by_numbers(op: Any, x: ir.Value, shape: ir.Value, reshaped: ir.Value) -> Any:
    numbers = _numbers(x, reshaped, shape)
    assert numbers is not None
    return op.Reshape(x, op.initializer(ir.tensor(numbers, dtype=ir.DataType.INT64), f"{reshaped.name}_shape"))


def _numbers(x: ir.Value, reshaped: ir.Value, shape: ir.Value) -> list[int] | None:
    """0 for a size that stays where it is, else a number, -1 for at most one."""
    old, new, asked = dimensions(x), dimensions(reshaped), spelled(shape)
    if constant(shape) is not None or old is None or asked is None or 0 in asked:
        return None
    sizes: list[Dimension] = [
        new[place] if size == -1 and new is not None else size for place, size in enumerate(asked)
    ]
    numbers = [
        0 if place < len(old) and old[place] == size else size if isinstance(size, int) else -1
        for place, size in enumerate(sizes)
    ]
    return numbers if numbers.count(-1) <= 1 else None


# torch's attention transposes keys by way of three dimensions, so that it need not know how many there are.
def _transposed_in_three(op: Any, keys: Any, flat: Any, whole: Any) -> Any:
    return op.Reshape(op.Transpose(op.Reshape(keys, flat), perm=[0, 2, 1]), whole)


def _is_transposition(context: Any, keys: ir.Value, flat: ir.Value, whole: ir.Value) -> bool:  # noqa: ARG001
    sizes, inner, outer = dimensions(keys), spelled(flat), spelled(whole)
    if sizes is None or len(sizes) != 4 or inner is None or outer is None:
        return False
    batch, heads, length, width = sizes
    return inner == (-1, length, width) and outer == (batch, heads, width, length)


def _transposed(op: Any, keys: ir.Value, flat: ir.Value, whole: ir.Value) -> Any:  # noqa: ARG001
    return op.Transpose(keys, perm=[0, 1, 3, 2])


def _divided_by_expanded(op: Any, x: Any, y: Any, shape: Any) -> Any:
    return op.Div(x, op.Expand(y, shape))


def _division_expands(context: Any, x: ir.Value, y: ir.Value, shape: ir.Value) -> bool:  # noqa: ARG001
    sizes = dimensions(x)
    return sizes is not None and spelled(shape) == sizes and dimensions(y) is not None


def _divided(op: Any, x: ir.Value, y: ir.Value, shape: ir.Value) -> Any:  # noqa: ARG001
    return op.Div(x, y)


RULES = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_transposed_in_three, _transposed, _is_transposition, name="transposition"),
        pattern.RewriteRule(
            _reshape,
            _reshape_by_numbers,
            lambda context, x, shape, reshaped: _numbers(x, reshaped, shape) is not None,  # noqa: ARG005
            name="reshape",
        ),
        pattern.RewriteRule(_divided_by_expanded, _divided, _division_expands, name="expansion"),
    ]
)
