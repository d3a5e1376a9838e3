"""The distillation loss of few but long rows in Triton: several programs a row, in two kernels or three.

Each program takes `part_blocks` blocks of its row. What it finds goes into its record in `workspace`, float32 of shape
[N, parts, RECORD]: its part's statistics in 0..7, the label's logit, which may be overwritten later, in 8, the sums of
D and of q g in 9 and 10. The next kernel puts a row's records together, in each of its programs; `padded` is `parts`
rounded up to a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from compressor.kernels.triton_arguments import Numbers, Tensors
from compressor.kernels.triton_rows import (
    finite,
    gradient_pass,
    is_ignored,
    label_terms,
    open_row,
    outcome,
    row_scale,
    statistics_pass,
    values_pass,
    zero_pass,
)
from compressor.kernels.triton_tiles import SEED, together

RECORD = tl.constexpr(16)


@triton.jit
def _part(lines: tl.tuple, part_blocks: tl.tensor, variant: tl.constexpr) -> tl.tuple:
    """The blocks of this program: from, to (not included)."""
    first = tl.program_id(1) * part_blocks
    return first, tl.minimum(first + part_blocks, tl.cdiv(lines[3][1], variant.block))


@triton.jit
def _column(
    workspace: tl.tensor, row: tl.tensor, place: tl.constexpr, parts: tl.tensor, padded: tl.constexpr
) -> tl.tensor:
    """One number of all records of a row, [padded]."""
    part = tl.arange(0, padded)
    empty = SEED if place == 0 or place == 2 or place == 5 else 0.0
    return tl.load(workspace + (row * parts + part) * RECORD + place, mask=part < parts, other=empty)


@triton.jit
def _row_statistics(
    workspace: tl.tensor,
    row: tl.tensor,
    parts: tl.tensor,
    padded: tl.constexpr,
    numbers: Numbers,
    variant: tl.constexpr,
) -> tl.tuple:
    state = (
        _column(workspace, row, 0, parts, padded),
        _column(workspace, row, 1, parts, padded),
        _column(workspace, row, 2, parts, padded),
        _column(workspace, row, 3, parts, padded),
        _column(workspace, row, 4, parts, padded),
        _column(workspace, row, 5, parts, padded),
        _column(workspace, row, 6, parts, padded),
        _column(workspace, row, 7, parts, padded),
    )
    return together(state, numbers, variant)


@triton.jit(do_not_specialize=["numbers", "parts", "part_blocks"])
def split_statistics(
    tensors: Tensors,
    numbers: Numbers,
    workspace: tl.tensor,
    parts: tl.tensor,
    part_blocks: tl.tensor,
    variant: tl.constexpr,
) -> None:
    """Fills 0..8 of the records; grid (N, parts)."""
    row = tl.program_id(0).to(tl.int64)
    if is_ignored(row, tensors, numbers):
        return
    lines = open_row(row, tensors, numbers, variant)
    _, logit, _, near = label_terms(row, lines, tensors, variant)
    blocks = _part(lines, part_blocks, variant)
    found = statistics_pass(blocks, lines, near, tensors, numbers, variant)
    record = workspace + (row * parts + tl.program_id(1)) * RECORD
    for place in tl.static_range(8):
        tl.store(record + place, found[place])
    tl.store(record + 8, logit)


@triton.jit(do_not_specialize=["numbers", "parts", "part_blocks"])
def split_values(
    tensors: Tensors,
    numbers: Numbers,
    workspace: tl.tensor,
    parts: tl.tensor,
    part_blocks: tl.tensor,
    padded: tl.constexpr,
    variant: tl.constexpr,
) -> None:
    """jsd and total variation: fills 9 and 10 of the records; grid (N, parts)."""
    row = tl.program_id(0).to(tl.int64)
    if is_ignored(row, tensors, numbers):
        return
    lines = open_row(row, tensors, numbers, variant)
    statistics = _row_statistics(workspace, row, parts, padded, numbers, variant)
    value, mean = values_pass(_part(lines, part_blocks, variant), lines, statistics, numbers, variant)
    record = workspace + (row * parts + tl.program_id(1)) * RECORD
    tl.store(record + 9, value)
    tl.store(record + 10, mean)


@triton.jit(do_not_specialize=["numbers", "parts", "part_blocks"])
def split_gradient(
    tensors: Tensors,
    numbers: Numbers,
    workspace: tl.tensor,
    parts: tl.tensor,
    part_blocks: tl.tensor,
    padded: tl.constexpr,
    variant: tl.constexpr,
) -> None:
    """The loss, by the first program of each row, and the gradient; grid (N, parts), (N, 1) without a gradient."""
    row = tl.program_id(0).to(tl.int64)
    lines = open_row(row, tensors, numbers, variant)
    blocks = _part(lines, part_blocks, variant)
    if is_ignored(row, tensors, numbers):
        tl.store(tensors.loss + row, 0.0, mask=tl.program_id(1) == 0)
        if tensors.gradient is not None:
            zero_pass(blocks, lines, variant)
        return
    statistics = _row_statistics(workspace, row, parts, padded, numbers, variant)
    sums = 0.0, 0.0
    if variant.divergence == "jsd" or variant.divergence == "total_variation":
        value = _column(workspace, row, 9, parts, padded)
        sums = tl.sum(value, axis=0), tl.sum(_column(workspace, row, 10, parts, padded), axis=0)
    column, _, weight, _ = label_terms(row, lines, tensors, variant)
    logit = tl.load(workspace + row * parts * RECORD + 8)
    label = column, logit, weight, finite(logit)
    loss, soft_terms, hard_terms = outcome(statistics, sums, label, row_scale(row, tensors), tensors, numbers, variant)
    tl.store(tensors.loss + row, loss, mask=tl.program_id(1) == 0)
    if tensors.gradient is not None:
        gradient_pass(blocks, lines, statistics, soft_terms, hard_terms, False, tensors, numbers, variant)
