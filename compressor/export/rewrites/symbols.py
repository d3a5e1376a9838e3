"""What can be proven of a value from the graph alone: its dimensions, the shape that it spells out, its constant."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

Dimension = int | str
_KEEPS_NUMBERS = ("Cast", "Identity", "Squeeze", "Unsqueeze")


def dimensions(value: ir.Value | None) -> tuple[Dimension, ...] | None:
    """The size of each dimension, as a number or by the name under which it is the same everywhere; None if unknown."""
    if value is None or value.shape is None:
        return None
    found = tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return None if None in found else found  # type: ignore[return-value]


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What a weight or constant holds; None for what is computed or given."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def known(value: ir.Value | None) -> NDArray[Any]:
    """The same where a rule has found that it is one."""
    array = constant(value)
    assert array is not None
    return array


def maker(value: ir.Value | None) -> ir.Node | None:
    """The node whose output this is; None for a weight, an input, or nothing."""
    return None if value is None else value.producer()


def scalar(value: ir.Value | None) -> float | None:
    """The one number that a constant holds."""
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def spelled(value: ir.Value | None) -> tuple[Dimension, ...] | None:
    """The numbers in an integer vector (or scalar) made of constants and of sizes of values; None if unknown."""
    if (array := constant(value)) is not None:
        return tuple(int(number) for number in array.reshape(-1))
    node = maker(value)
    if node is None:
        return None
    if node.op_type == "Shape":
        sizes = dimensions(node.inputs[0])
        end = node.attributes.get_int("end", None)
        return None if sizes is None else sizes[node.attributes.get_int("start", 0) : end]
    if node.op_type == "Concat":
        parts = [spelled(part) for part in node.inputs]
        return None if None in parts else tuple(size for part in parts if part is not None for size in part)
    if node.op_type == "Slice":
        return _sliced(node)
    if node.op_type in _KEEPS_NUMBERS or (node.op_type == "Reshape" and spelled(node.inputs[1]) == (-1,)):
        return spelled(node.inputs[0])
    return None


def _sliced(node: ir.Node) -> tuple[Dimension, ...] | None:
    whole = spelled(node.inputs[0])
    start, end = (spelled(value) for value in node.inputs[1:3])
    step = spelled(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    if whole is None or start is None or end is None or step != (1,):
        return None
    if not isinstance(start[0], int) or not isinstance(end[0], int):
        return None
    return whole[start[0] : end[0]]
