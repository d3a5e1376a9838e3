"""The Triton kernels of the distillation loss against a dense teacher: one program a row, or several for a long row.

Arguments are those of `triton_arguments`. A row whose label is to be ignored is not read. In place, every kernel has
read what it overwrites: a program writes its own row, or its part of a row when the kernel before has read all of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from compressor.kernels.triton_arguments import Numbers, Tensors
from compressor.kernels.triton_rows import (
    gradient_pass,
    is_ignored,
    label_terms,
    open_row,
    outcome,
    row_scale,
    statistics_pass,
    store_gradient,
    values_pass,
    zero_pass,
)
from compressor.kernels.triton_tiles import (
    gradient_tile,
    load_tile,
    load_weights,
    seeds,
    together,
    update,
    values,
)


@triton.jit(do_not_specialize=["numbers"])
def resident(tensors: Tensors, numbers: Numbers, variant: tl.constexpr) -> None:
    """One program a row, which it holds in registers: every logit is read once."""
    row = tl.program_id(0).to(tl.int64)
    lines = open_row(row, tensors, numbers, variant)
    student_row, teacher_row, gradient_row, sizes = lines
    if is_ignored(row, tensors, numbers):
        tl.store(tensors.loss + row, 0.0)
        if tensors.gradient is not None:
            zero_pass((0, 1), lines, variant)
        return
    label = label_terms(row, lines, tensors, variant)
    columns = tl.arange(0, variant.block)[None, :]
    tile = load_tile(student_row, teacher_row, columns, sizes, variant.masked, variant)
    weights = load_weights(tensors.class_weights, columns, tile[3], variant.masked)
    statistics = together(update(seeds(1), tile, weights, label[3], numbers, variant.masked, variant), numbers, variant)
    sums = 0.0, 0.0
    if variant.divergence == "jsd" or variant.divergence == "total_variation":
        zero = tl.zeros([1], tl.float32)
        value, mean = values((zero, zero), tile, statistics, numbers, variant)
        sums = tl.sum(value, axis=0), tl.sum(mean, axis=0)
    scales = row_scale(row, tensors)
    loss, soft_terms, hard_terms = outcome(statistics, sums, label, scales, tensors, numbers, variant)
    tl.store(tensors.loss + row, loss)
    if tensors.gradient is not None:
        gradient = gradient_tile(tile, columns, weights, statistics, soft_terms, hard_terms, numbers, variant)
        store_gradient(gradient_row + columns, gradient, tile[3], variant.masked)


@triton.jit(do_not_specialize=["numbers"])
def looped(tensors: Tensors, numbers: Numbers, variant: tl.constexpr) -> None:
    """One program a row, read two or three times: statistics, for some divergences their value, the gradient."""
    row = tl.program_id(0).to(tl.int64)
    lines = open_row(row, tensors, numbers, variant)
    blocks = 0, tl.cdiv(lines[3][1], variant.block)
    if is_ignored(row, tensors, numbers):
        tl.store(tensors.loss + row, 0.0)
        if tensors.gradient is not None:
            zero_pass(blocks, lines, variant)
        return
    label = label_terms(row, lines, tensors, variant)
    statistics = statistics_pass(blocks, lines, label[3], tensors, numbers, variant)
    sums = 0.0, 0.0
    backwards: tl.constexpr = variant.divergence != "jsd" and variant.divergence != "total_variation"
    if not backwards:
        sums = values_pass(blocks, lines, statistics, numbers, variant)
    scales = row_scale(row, tensors)
    loss, soft_terms, hard_terms = outcome(statistics, sums, label, scales, tensors, numbers, variant)
    tl.store(tensors.loss + row, loss)
    if tensors.gradient is not None:
        gradient_pass(blocks, lines, statistics, soft_terms, hard_terms, not backwards, tensors, numbers, variant)


@triton.jit(do_not_specialize=["factor_stride", "width", "source_stride", "target_stride"])
def scale(
    source: tl.tensor,  # [N, V], row stride
    target: tl.tensor,  # [N, V] of the same dtype, row stride; the source itself in place
    factors: tl.tensor,  # [N], stride factor_stride, which is 0 for one factor
    factor_stride: tl.tensor,
    width: tl.tensor,
    source_stride: tl.tensor,
    target_stride: tl.tensor,
    in_place: tl.constexpr,
    unit: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """target = source times the row's factor; programs (row, i) take every block i modulo their number in the row."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors + row * factor_stride).to(tl.float32)
    if (factor == 1.0) & in_place:
        return
    for number in range(tl.program_id(1), tl.cdiv(width * unit, block), tl.num_programs(1)):
        columns = number * block + tl.arange(0, block)
        inside = columns < width * unit
        product = tl.load(source + row * source_stride * unit + columns, mask=inside).to(tl.float32) * factor
        tl.store(target + row * target_stride * unit + columns, product.to(target.dtype.element_ty), mask=inside)
