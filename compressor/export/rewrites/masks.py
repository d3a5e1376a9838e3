"""Which attention masks only say which keys are padding, by proof from the graph.

transformers builds its masks from index ranges: `mask[b, 0, q, k]` is a conjunction of comparisons of q and k with each
other (a causal model, a window) or with constants, and of the attention mask's own element [b, k].
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from compressor.export.rewrites.symbols import constant, dimensions, maker, scalar, spelled


@dataclass(frozen=True)
class KeyMask:
    """`keys` [batch, keys]: not zero where a key may be attended to, whoever asks; None: every key may be."""

    keys: ir.Value | None


def key_mask(mask: ir.Value | None) -> KeyMask | None:
    """What a boolean mask [batch or 1, 1, queries or 1, keys] says of the keys; None unless it is the same for every
    query.
    """
    if always_true(mask):
        return KeyMask(None)
    node = maker(mask)
    if node is None:
        return None
    if node.op_type == "Expand":
        return key_mask(node.inputs[0]) if _is_4d(node.inputs[0]) else None
    if node.op_type == "And":
        return _both(*(key_mask(value) for value in node.inputs))
    if node.op_type == "GatherND":
        return _gathered(node)
    return None


def _both(first: KeyMask | None, second: KeyMask | None) -> KeyMask | None:
    if first is None or second is None:
        return None
    if first.keys is None or second.keys is None or first.keys is second.keys:
        return KeyMask(first.keys or second.keys)
    return None


def always_true(value: ir.Value | None) -> bool:
    """Whether every element of a boolean value is true, whatever the inputs."""
    if (array := constant(value)) is not None:
        return bool(array.all())
    node = maker(value)
    if node is None:
        return False
    if node.op_type in ("Expand", "Unsqueeze"):
        return always_true(node.inputs[0])
    if node.op_type == "And":
        return all(always_true(operand) for operand in node.inputs)
    if node.op_type == "GreaterOrEqual":
        least, bound = _least(node.inputs[0]), scalar(node.inputs[1])
        return least is not None and bound is not None and least >= bound
    return False


def _least(value: ir.Value | None) -> float | None:
    """A lower bound of the elements of a range of ascending numbers."""
    source = _range(value)
    if source is None or (scalar(source.inputs[2]) or 0) <= 0:
        return None
    return scalar(source.inputs[0])


def _gathered(node: ir.Node) -> KeyMask | None:
    """GatherND of [batch, keys] at (b, k) for every b along the first dimension and every k along the last."""
    table, indices = node.inputs
    joined = maker(indices)
    sizes = dimensions(table)
    if joined is None or joined.op_type != "Concat" or sizes is None or len(sizes) != 2:
        return None
    if node.attributes.get_int("batch_dims", 0) != 0 or len(joined.inputs) != 2:
        return None
    if joined.attributes.get_int("axis") not in (-1, 4):
        return None
    batch, keys = (_counted(part) for part in joined.inputs)
    if batch == (sizes[0], 1, 1, 1) and keys == (1, 1, 1, sizes[1]):
        return KeyMask(table)
    return None


def _counted(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """The dimensions of the numbers 0, 1, 2, ... that were expanded to one index of a GatherND [..., 1]."""
    unsqueezed = maker(value)
    if unsqueezed is None or unsqueezed.op_type != "Unsqueeze" or spelled(unsqueezed.inputs[1]) not in ((-1,), (4,)):
        return None
    expanded = maker(unsqueezed.inputs[0])
    if expanded is None or expanded.op_type != "Expand":
        return None
    counted = expanded.inputs[0]
    source = _range(counted)
    if source is None or scalar(source.inputs[0]) != 0 or scalar(source.inputs[2]) != 1:
        return None
    return dimensions(counted)


def _range(value: ir.Value | None) -> ir.Node | None:
    """The Range that this is, but for dimensions of size 1."""
    while (node := maker(value)) is not None and node.op_type == "Unsqueeze":
        value = node.inputs[0]
    return node if node is not None and node.op_type == "Range" else None


def _is_4d(value: ir.Value | None) -> bool:
    sizes = dimensions(value)
    return sizes is not None and len(sizes) == 4
