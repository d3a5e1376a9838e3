"""Passes over a row in Triton, from its first block to its last or a part of it, and what a row's statistics amount to.

Where widths or strides are odd, rows start anywhere in memory, and no load could be wide. `variant.shifted` lets blocks
start at the last multiple of 16 bytes before the row, for tensors that all lie alike: then only the first and the last
block are masked, and all others are read 16 bytes at a time. Column numbers count from there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from compressor.kernels.triton_arguments import Numbers, Tensors
from compressor.kernels.triton_tiles import (
    LANES,
    LN2,
    gradient_tile,
    kl,
    load_tile,
    load_weights,
    seeds,
    together,
    update,
    values,
)


@triton.jit
def _row_start(pointer: tl.tensor, row: tl.tensor, stride: tl.tensor, variant: tl.constexpr) -> tl.tensor:
    """Where a row starts; of None a number that nobody uses, since functions cannot return None in a tuple."""
    start = 0
    if pointer is not None:
        offset = row * stride * variant.unit
        if variant.shifted:
            offset = offset // LANES * LANES
        start = pointer + offset
    return start


@triton.jit
def open_row(row: tl.tensor, tensors: Tensors, numbers: Numbers, variant: tl.constexpr) -> tl.tuple:
    """Where a row lies: its student, teacher and gradient, and its sizes: the first column, the end, and the end of the
    columns that the teacher has too.
    """
    first = 0
    if variant.shifted:
        first = (row * numbers.student_stride % LANES).to(tl.int32)
    sizes = first, first + numbers.width * variant.unit, first + numbers.common * variant.unit
    student_row = _row_start(tensors.student, row, numbers.student_stride, variant)
    teacher_row = _row_start(tensors.teacher, row, numbers.teacher_stride, variant)
    gradient_row = _row_start(tensors.gradient, row, numbers.gradient_stride, variant)
    return student_row, teacher_row, gradient_row, sizes


@triton.jit
def row_scale(row: tl.tensor, tensors: Tensors) -> tl.tuple:
    """What the loss of the row is multiplied by, and its gradient."""
    weight = 1.0
    if tensors.row_weights is not None:
        weight = tl.load(tensors.row_weights + row)
    scale = weight
    if tensors.gradient_scale is not None:
        scale = weight * tl.load(tensors.gradient_scale).to(tl.float32)
    return weight, scale


@triton.jit
def is_ignored(row: tl.tensor, tensors: Tensors, numbers: Numbers) -> tl.tensor:
    """Whether the row's label says that it does not count."""
    ignored = False
    if tensors.labels is not None:
        ignored = tl.load(tensors.labels + row) == numbers.ignore_index
    return ignored


@triton.jit
def finite(logit: tl.tensor) -> tl.tensor:
    """The logit, and 0 where it is infinite or NaN."""
    return tl.where(tl.abs(logit) < float("inf"), logit, 0.0)


@triton.jit
def label_terms(row: tl.tensor, lines: tl.tuple, tensors: Tensors, variant: tl.constexpr) -> tl.tuple:
    """The label's column, logit and class weight (NaN for a label that does not exist), and a finite logit near it."""
    column, logit, weight, near = 0, 0.0, 0.0, 0.0
    if variant.hard != "none":
        student_row, _, _, sizes = lines
        first, end = sizes[0], sizes[1]
        label = tl.load(tensors.labels + row)
        exists = (label >= 0) & (label < end - first)
        column = label.to(tl.int32) + first
        logit = tl.load(student_row + column, mask=exists, other=float("nan")).to(tl.float32)
        weight = tl.where(exists, 1.0, float("nan"))
        if tensors.class_weights is not None:
            weight = tl.load(tensors.class_weights + label, mask=exists, other=float("nan"))
        near = finite(logit)
    return column, logit, weight, near


@triton.jit
def _full_blocks(blocks: tl.tuple, sizes: tl.tuple, variant: tl.constexpr) -> tl.tuple:
    """Of the blocks from, to (not included), those that lie within the row and the teacher's columns: from, to; and how
    many others there are.
    """
    first_block, last_block = blocks
    begin = first_block
    if variant.shifted:
        begin = tl.maximum(first_block, tl.minimum(1, last_block))
    end = tl.maximum(begin, tl.minimum(last_block, sizes[2] // variant.block))
    return begin, end, last_block - first_block - (end - begin)


@triton.jit
def _edge_block(number: tl.tensor, blocks: tl.tuple, begin: tl.tensor, end: tl.tensor) -> tl.tensor:
    """The block of that number among those that are not full, before and after the full ones."""
    before = begin - blocks[0]
    return tl.where(number < before, blocks[0] + number, end + number - before)


@triton.jit
def _columns(block: tl.tensor, variant: tl.constexpr) -> tl.tensor:
    groups: tl.constexpr = variant.block // LANES
    within = tl.arange(0, groups)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    return block * variant.block + within


@triton.jit
def _load_block(block: tl.tensor, lines: tl.tuple, masked: tl.constexpr, variant: tl.constexpr) -> tl.tuple:
    student_row, teacher_row, _, sizes = lines
    return load_tile(student_row, teacher_row, _columns(block, variant), sizes, masked, variant)


@triton.jit
def _update_block(
    state: tl.tuple,
    block: tl.tensor,
    lines: tl.tuple,
    anchor: tl.tensor,
    tensors: Tensors,
    numbers: Numbers,
    masked: tl.constexpr,
    variant: tl.constexpr,
) -> tl.tuple:
    tile = _load_block(block, lines, masked, variant)
    weights = load_weights(tensors.class_weights, _columns(block, variant) - lines[3][0], tile[3], masked)
    return update(state, tile, weights, anchor, numbers, masked, variant)


@triton.jit
def statistics_pass(
    blocks: tl.tuple,
    lines: tl.tuple,
    anchor: tl.tensor,
    tensors: Tensors,
    numbers: Numbers,
    variant: tl.constexpr,
) -> tl.tuple:
    """The statistics of blocks from, to (not included): eight scalars, see `triton_tiles.together`."""
    begin, end, edges = _full_blocks(blocks, lines[3], variant)
    state = seeds(variant.block // LANES)
    for number in range(edges):
        block = _edge_block(number, blocks, begin, end)
        state = _update_block(state, block, lines, anchor, tensors, numbers, True, variant)
    for block in range(begin, end):
        state = _update_block(state, block, lines, anchor, tensors, numbers, False, variant)
    return together(state, numbers, variant)


@triton.jit
def values_pass(
    blocks: tl.tuple,
    lines: tl.tuple,
    statistics: tl.tuple,
    numbers: Numbers,
    variant: tl.constexpr,
) -> tl.tuple:
    """jsd and total variation: D and sum q g of blocks from, to (not included), last to first: see `gradient_pass`."""
    begin, end, edges = _full_blocks(blocks, lines[3], variant)
    zero = tl.zeros([variant.block // LANES], tl.float32)
    sums = zero, zero
    for number in range(end - begin):
        tile = _load_block(end - 1 - number, lines, False, variant)
        sums = values(sums, tile, statistics, numbers, variant)
    for number in range(edges):
        tile = _load_block(_edge_block(number, blocks, begin, end), lines, True, variant)
        sums = values(sums, tile, statistics, numbers, variant)
    return tl.sum(sums[0], axis=0), tl.sum(sums[1], axis=0)


@triton.jit
def _write_block(
    block: tl.tensor,
    lines: tl.tuple,
    statistics: tl.tuple,
    soft_terms: tl.tuple,
    hard_terms: tl.tuple,
    tensors: Tensors,
    numbers: Numbers,
    masked: tl.constexpr,
    variant: tl.constexpr,
) -> None:
    columns = _columns(block, variant)
    tile = _load_block(block, lines, masked, variant)
    weights = load_weights(tensors.class_weights, columns - lines[3][0], tile[3], masked)
    gradient = gradient_tile(tile, columns, weights, statistics, soft_terms, hard_terms, numbers, variant)
    store_gradient(lines[2] + columns, gradient, tile[3], masked)


@triton.jit
def store_gradient(pointers: tl.tensor, gradient: tl.tensor, inside: tl.tensor, masked: tl.constexpr) -> None:
    """Rounds once, and writes."""
    rounded = gradient.to(pointers.dtype.element_ty)
    if masked:
        tl.store(pointers, rounded, mask=inside)
    else:
        tl.store(pointers, rounded)


@triton.jit
def gradient_pass(
    blocks: tl.tuple,
    lines: tl.tuple,
    statistics: tl.tuple,
    soft_terms: tl.tuple,
    hard_terms: tl.tuple,
    forward: tl.constexpr,
    tensors: Tensors,
    numbers: Numbers,
    variant: tl.constexpr,
) -> None:
    """Writes the gradient of blocks from, to (not included); last to first, while what was read last is in the L2."""
    begin, end, edges = _full_blocks(blocks, lines[3], variant)
    for number in range(end - begin):
        block = end - 1 - number
        if forward:
            block = begin + number
        _write_block(block, lines, statistics, soft_terms, hard_terms, tensors, numbers, False, variant)
    for number in range(edges):
        block = _edge_block(number, blocks, begin, end)
        _write_block(block, lines, statistics, soft_terms, hard_terms, tensors, numbers, True, variant)


@triton.jit
def zero_pass(blocks: tl.tuple, lines: tl.tuple, variant: tl.constexpr) -> None:
    """Writes 0 as the gradient of blocks from, to (not included)."""
    for block in range(blocks[0], blocks[1]):
        columns = _columns(block, variant)
        inside = (columns >= lines[3][0]) & (columns < lines[3][1])
        store_gradient(lines[2] + columns, tl.zeros(columns.shape, tl.float32), inside, True)


@triton.jit
def outcome(
    statistics: tl.tuple,
    sums: tl.tuple,
    label_terms: tl.tuple,
    scales: tl.tuple,
    tensors: Tensors,
    numbers: Numbers,
    variant: tl.constexpr,
) -> tl.tuple:
    """The loss of a row, and what `triton_tiles.gradient_tile` needs: the terms of the soft part and of the hard one.

    `sums`: D and sum q g, where the statistics do not tell. `scales`: what the loss and the gradient are multiplied by.
    CE and its smoothing are those of `torch.nn.functional.cross_entropy`.
    """
    value, mean = sums
    loss_scale, gradient_scale = scales
    if variant.divergence == "forward_kl" or variant.divergence == "reverse_kl":
        value = kl(statistics, variant)
    if variant.divergence == "jsd":
        mean += value * 0.0  # NaN stays NaN: ratios are clamped, which loses it
    loss = 0.0
    soft_scale = 0.0
    if variant.divergence != "none":
        loss = numbers.soft_weight * value
        soft_scale = gradient_scale * numbers.soft_weight * (numbers.student_factor * LN2)
    hard_scale, spread, at_label = 0.0, 0.0, 0.0
    label, logit, weight, anchor = label_terms
    if variant.hard != "none":
        _, _, _, _, _, h_max, h_sum, smooth = statistics
        student_scale = numbers.hard_factor * LN2
        log_sum = tl.log(h_sum)
        pull = weight
        if variant.smoothed:
            pull = weight * (1.0 - numbers.smoothing)
        hard = pull * (log_sum - (logit - h_max) * student_scale)
        push = pull
        if variant.smoothed:
            width = (numbers.width * variant.unit).to(tl.float32)
            total = width
            if tensors.class_total is not None:
                total = tl.load(tensors.class_total)
            spread = numbers.smoothing / width
            hard += spread * (total * (log_sum - (anchor - h_max) * student_scale) - smooth * student_scale)
            push = pull + spread * total
        scale = gradient_scale * numbers.hard_weight * student_scale
        loss += numbers.hard_weight * hard
        hard_scale, spread, at_label = scale * push / h_sum, scale * spread, scale * pull
    return loss * loss_scale, (soft_scale, value, mean), (hard_scale, spread, at_label, label)
