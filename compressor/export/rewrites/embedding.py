"""The sum of token, position and segment embeddings, and the layer normalization after it, in two steps.

1. `segments`: where every token is of one segment, that segment's row is added to the table of positions, once for all.
2. `whole`: the look-ups, their sum and the normalization become one operator, where positions count from the first
   token. It would take others too, but onnxruntime's quantizer (1.31) loses them. That of static int8 does not know it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from compressor.export.rewrites.symbols import Dimension, constant, dimensions, known, maker, spelled
from compressor.onnx_file import CONTRIB


def _three_tables(op: Any, word: Any, ids: Any, segment: Any, segment_ids: Any, position: Any, places: Any) -> Any:
    words = op.Gather(word, ids, axis=0, _outputs=["words"])
    return op.Add(
        op.Add(words, op.Gather(segment, segment_ids, axis=0, _outputs=["segments"])),
        op.Gather(position, places, axis=0),
    )


def _one_segment(
    context: Any,  # noqa: ARG001
    segment: ir.Value,
    segment_ids: ir.Value,
    position: ir.Value,
    words: ir.Value,
    segments: ir.Value,
    **_: Any,
) -> bool:
    tables = [constant(segment), constant(position)]
    if any(table is None or table.ndim != 2 for table in tables) or len(position.uses()) > 1:
        return False
    return _only_number(segment_ids) is not None and dimensions(words) == dimensions(segments) is not None


def _only_number(value: ir.Value | None) -> int | None:
    """The number that all elements are equal to, whatever the inputs; None if there is none."""
    if (array := constant(value)) is not None:
        return int(array.flat[0]) if array.size and (array == array.flat[0]).all() else None
    node = maker(value)
    if node is not None and node.op_type in ("Expand", "GatherElements"):
        return _only_number(node.inputs[0])
    return None


def _segment_in_positions(
    op: Any,
    segment: ir.Value,
    segment_ids: ir.Value,
    position: ir.Value,
    places: ir.Value,
    words: ir.Value,
    **_: Any,
) -> Any:
    row = known(segment)[_only_number(segment_ids)]
    summed = op.initializer(ir.tensor(known(position) + row), f"{position.name}_with_segment")
    return op.Add(words, op.Gather(summed, places, axis=0))


SEGMENTS = pattern.RewriteRuleSet(
    [pattern.RewriteRule(_three_tables, _segment_in_positions, _one_segment, name="segments", remove_nodes=False)]
)


def _looked_up(op: Any, word: Any, ids: Any, position: Any, places: Any, gamma: Any, beta: Any) -> Any:
    total = op.Add(op.Gather(word, ids, axis=0), op.Gather(position, places, axis=0))
    return op.LayerNormalization(total, gamma, beta, axis=-1, _outputs=["normalized"])


def _is_embedding(
    context: Any,  # noqa: ARG001
    word: ir.Value,
    ids: ir.Value,
    position: ir.Value,
    places: ir.Value,
    gamma: ir.Value,
    beta: ir.Value,
    normalized: ir.Value,
) -> bool:
    tables, vectors = [constant(word), constant(position)], [constant(gamma), constant(beta)]
    if any(array is None for array in (*tables, *vectors)):
        return False
    sizes, node = dimensions(ids), normalized.producer()
    if sizes is None or len(sizes) != 2 or node is None or node.attributes.get_int("stash_type", 1) != 1:
        return False
    return _from_the_first(places, sizes[1])


def _from_the_first(places: ir.Value, length: Dimension) -> bool:
    """Whether these are 0, 1, 2, ... for so many tokens."""
    node = places.producer()
    if node is None or node.op_type != "Slice" or len(node.inputs) < 5:
        return False
    array = constant(node.inputs[0])
    if array is None or array.shape[:1] != (1,) or not np.array_equal(array[0], np.arange(array.shape[1])):
        return False
    start, end, axes, step = (spelled(value) for value in node.inputs[1:5])
    return (start, end, axes, step) == ((0,), (length,), (1,), (1,))


def _whole(
    op: Any,
    word: ir.Value,
    ids: ir.Value,
    position: ir.Value,
    gamma: ir.Value,
    beta: ir.Value,
    normalized: ir.Value,
    **_: Any,
) -> Any:
    node = normalized.producer()
    assert node is not None
    inputs = [op.Cast(ids, to=ir.DataType.INT32), None, word, position, None, gamma, beta]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return op.EmbedLayerNormalization(*inputs, epsilon=epsilon, _domain=CONTRIB, _outputs=2)[0]


WHOLE = pattern.RewriteRuleSet([pattern.RewriteRule(_looked_up, _whole, _is_embedding, name="embedding")])
