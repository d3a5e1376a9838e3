"""The distillation loss against a teacher known at K classes in Triton: one program a row.

The student's softmax takes the whole row; the known classes are gathered before, in chunks. The gradient is written as
if no class were known, q times what it comes to, and then the known columns again, from float32.

Of a ghost, what the student puts on the unknown classes is added up over them, not taken off 1: else little of its
accuracy would be left for a confident student. A bit for each column tells them: `Tensors.teacher`, [N, words] int32, 0
before the call.
"""

from __future__ import annotations

import triton
import triton.language as tl

from compressor.kernels.settings import RESIDUAL_FLOOR
from compressor.kernels.triton_arguments import Known, Numbers, Tensors
from compressor.kernels.triton_rows import (
    gradient_pass,
    is_ignored,
    label_terms,
    open_row,
    outcome,
    row_scale,
    statistics_pass,
    store_gradient,
    zero_pass,
)
from compressor.kernels.triton_tiles import LN2, LOG2E, SEED, gradient_tile, load_weights

LEAST_REST = tl.constexpr(RESIDUAL_FLOOR)


@triton.jit
def _entries(start: tl.tensor, row: tl.tensor, known: Known, width: tl.tensor, chunk: tl.constexpr) -> tl.tuple:
    """Of a chunk of a row's entries: where they lie, their classes and whether they are there; and can be, [chunk]."""
    entry = start + tl.arange(0, chunk)
    inside = entry < known.entries
    place = row * known.entries + entry
    index = tl.load(known.classes + place, mask=inside, other=-1)
    return place, index, inside & (index >= 0), inside & (index >= 0) & (index < width)


@triton.jit
def _gather(
    row: tl.tensor,
    lines: tl.tuple,
    known: Known,
    numbers: Numbers,
    mode: tl.constexpr,
    chunk: tl.constexpr,
) -> tl.tuple:
    """Keeps the student's known logits (NaN for a class that does not exist), marks a ghost's known columns, and gives
    the maximum and the denominator of the known teacher's softmax.
    """
    student_row, words, _, sizes = lines
    width = sizes[1] - sizes[0]
    top = SEED
    total = 0.0
    for start in range(0, known.entries, chunk):
        place, index, there, exists = _entries(start, row, known, width, chunk)
        logit = tl.load(student_row + sizes[0] + index, mask=exists, other=float("nan")).to(tl.float32)
        tl.store(known.logits + place, logit, mask=there)
        if mode == "ghost":
            column = (index + sizes[0]).to(tl.int32)
            tl.atomic_or(words + column // 32, tl.full([chunk], 1, tl.int32) << (column % 32), mask=exists)
        if mode == "zero":
            value = tl.load(known.given + place, mask=there, other=-float("inf")).to(tl.float32)
            new = tl.maximum(top, tl.max(value, axis=0))
            kept = tl.exp2((top - new) * numbers.teacher_factor)
            total = total * kept + tl.sum(tl.exp2((value - new) * numbers.teacher_factor), axis=0)
            top = new
    return top, total


@triton.jit
def _teacher(
    place: tl.tensor, there: tl.tensor, softmax: tl.tuple, known: Known, numbers: Numbers, mode: tl.constexpr
) -> tl.tuple:
    """p and log p of a chunk; p is 0 where an entry is not there."""
    value = tl.load(known.given + place, mask=there, other=-float("inf")).to(tl.float32)
    if mode == "zero":
        top, total = softmax
        bits = (value - top) * numbers.teacher_factor
        p = tl.exp2(bits) / total
        log_p = bits * LN2 - tl.log(total)
    else:
        p = tl.exp2(value * LOG2E)
        log_p = value
    return tl.where(there, p, 0.0), log_p


@triton.jit
def _divergence(
    row: tl.tensor,
    lines: tl.tuple,
    statistics: tl.tuple,
    softmax: tl.tuple,
    known: Known,
    numbers: Numbers,
    mode: tl.constexpr,
    chunk: tl.constexpr,
) -> tl.tuple:
    """D, the teacher's mass on the known classes, and a ghost's on the others."""
    s_max, s_sum, t_max, t_sum = statistics[0], statistics[1], statistics[2], statistics[3]
    value = 0.0
    mass = 0.0
    for start in range(0, known.entries, chunk):
        entries = _entries(start, row, known, lines[3][1], chunk)
        place, there = entries[0], entries[2]
        p, log_p = _teacher(place, there, softmax, known, numbers, mode)
        logit = tl.load(known.logits + place, mask=there, other=0.0)
        log_q = (logit - s_max) * (numbers.student_factor * LN2) - tl.log(s_sum)
        log_ratio = log_p - log_q
        if mode == "sampled":
            log_ratio = -log_q
        value += tl.sum(tl.where(p == 0, 0.0, p * log_ratio), axis=0)
        mass += tl.sum(p, axis=0)
    rest = 0.0
    if mode == "ghost":
        rest = tl.where(1.0 - mass < LEAST_REST, 0.0, 1.0 - mass)
        log_q_rest = (t_max - s_max) * (numbers.student_factor * LN2) + tl.log(t_sum / s_sum)
        value += tl.where(rest == 0, 0.0, rest * (tl.log(tl.maximum(rest, LEAST_REST)) - log_q_rest))
    return value, mass, rest


@triton.jit
def _write_known(
    row: tl.tensor,
    lines: tl.tuple,
    statistics: tl.tuple,
    softmax: tl.tuple,
    soft_terms: tl.tuple,
    hard_terms: tl.tuple,
    known: Known,
    tensors: Tensors,
    numbers: Numbers,
    mode: tl.constexpr,
    chunk: tl.constexpr,
    variant: tl.constexpr,
) -> None:
    """The gradient at the known classes; a class that occurs twice gets what is due to all its entries, each time."""
    _, _, gradient_row, sizes = lines
    for start in range(0, known.entries, chunk):
        place, index, there, exists = _entries(start, row, known, sizes[1] - sizes[0], chunk)
        p = _teacher(place, there, softmax, known, numbers, mode)[0]
        if mode == "sampled":
            p = tl.zeros([chunk], tl.float32)
            for entry in range(known.entries):
                same = index == tl.load(known.classes + row * known.entries + entry)
                draw = tl.load(known.given + row * known.entries + entry).to(tl.float32)
                p += tl.where(same, tl.exp2(draw * LOG2E), 0.0)
        logit = tl.load(known.logits + place, mask=there, other=0.0)
        nothing = tl.full([chunk], -float("inf"), tl.float32)
        weights = load_weights(tensors.class_weights, index, exists, True)
        tile = logit, logit, nothing, exists
        columns = index + sizes[0]
        gradient = gradient_tile(tile, columns, weights, statistics, soft_terms, hard_terms, numbers, variant)
        store_gradient(gradient_row + columns, gradient - soft_terms[0] * p, exists, True)


@triton.jit(do_not_specialize=["numbers", "known"])
def sparse(
    tensors: Tensors,
    numbers: Numbers,
    known: Known,
    mode: tl.constexpr,
    chunk: tl.constexpr,
    variant: tl.constexpr,
) -> None:
    """One program a row, read twice. `mode` is that of the SparseTeacher, `chunk` how many entries go at a time."""
    row = tl.program_id(0).to(tl.int64)
    lines = open_row(row, tensors, numbers, variant)
    blocks = 0, tl.cdiv(lines[3][1], variant.block)
    if is_ignored(row, tensors, numbers):
        tl.store(tensors.loss + row, 0.0)
        if tensors.gradient is not None:
            zero_pass(blocks, lines, variant)
        return
    label = label_terms(row, lines, tensors, variant)
    softmax = _gather(row, lines, known, numbers, mode, chunk)
    tl.debug_barrier()  # the marks of all threads are there
    found = statistics_pass(blocks, lines, label[3], tensors, numbers, variant)
    value, mass, rest = _divergence(row, lines, found, softmax, known, numbers, mode, chunk)
    s_max, s_sum, t_max, t_sum, cross, h_max, h_sum, smooth = found
    rest = tl.where(t_sum == 0, 0.0, rest)  # no class is unknown: the loss may be infinite, the gradient is not
    t_sum = tl.where(t_sum == 0, 1.0, t_sum)
    statistics = s_max, s_sum, t_max, t_sum, cross, h_max, h_sum, smooth
    scales = row_scale(row, tensors)
    sums = value, mass + rest
    loss, soft_terms, hard_terms = outcome(statistics, sums, label, scales, tensors, numbers, variant)
    tl.store(tensors.loss + row, loss)
    if tensors.gradient is not None:
        soft_terms = soft_terms[0], rest, mass + rest
        gradient_pass(blocks, lines, statistics, soft_terms, hard_terms, False, tensors, numbers, variant)
        tl.debug_barrier()  # what lies at the known columns is overwritten, not to be written later
        _write_known(
            row, lines, statistics, softmax, soft_terms, hard_terms, known, tensors, numbers, mode, chunk, variant
        )
