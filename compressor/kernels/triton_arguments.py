"""What every Triton kernel of the distillation loss is given: tensors, numbers, and what it is compiled for."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compressor.kernels.settings import LossInputs, LossSettings, SparseTeacher

UNIT = 8  # elements: 16 bytes of half-precision logits, what a thread loads at once
LOG2E = math.log2(math.e)

Pointer = Any  # outside a kernel a tensor
Scalar = Any


class Tensors(NamedTuple):
    """What a kernel reads and writes; None for what there is not."""

    student: Pointer  # [N, V] logits, row stride
    teacher: Pointer  # [N, V'] logits, row stride; None without a soft part
    gradient: Pointer  # [N, V] of the student's dtype, row stride; may be the student's memory; None: loss alone
    loss: Pointer  # [N] float32
    labels: Pointer  # [N] int64
    row_weights: Pointer  # [N] float32
    class_weights: Pointer  # [V] float32
    class_total: Pointer  # their sum, float32
    gradient_scale: Pointer  # scalar


class Numbers(NamedTuple):
    """Sizes and settings. Widths and strides are given in units of `Variant.unit` elements."""

    width: Scalar  # V
    common: Scalar  # columns that the teacher has too
    student_stride: Scalar
    teacher_stride: Scalar
    gradient_stride: Scalar
    ignore_index: Scalar
    student_factor: Scalar  # student_scale / T * log2(e)
    teacher_factor: Scalar  # teacher_scale / T * log2(e)
    hard_factor: Scalar  # student_scale * log2(e)
    beta: Scalar  # these four: jsd
    other_beta: Scalar  # 1 - beta
    per_beta: Scalar  # 1 / beta
    per_other_beta: Scalar  # 1 / (1 - beta)
    soft_weight: Scalar
    hard_weight: Scalar
    smoothing: Scalar


class Variant(NamedTuple):
    """What a kernel is compiled for."""

    divergence: str  # `settings.Divergence`; "none" without a soft part; of a sparse teacher "known" or "ghost"
    hard: str  # the softmax of CE: "none", "same" as the student's at T, "squared" (T = 2), or "own" for any T
    smoothed: bool  # label smoothing above 0
    truncated: bool  # columns that only the student has count for CE alone
    shifted: bool  # blocks start where memory is aligned, a few columns before the row
    unit: int  # the widths and strides given are multiples of this many elements: UNIT, else 1
    block: int  # columns of a tile
    masked: bool  # row-resident only: whether the tile is wider than the row


class Known(NamedTuple):
    """A SparseTeacher, and room for the student's logits at its classes. A tuple has its own `values` and `count`."""

    classes: Pointer  # [N, K] int64, negative: no entry
    given: Pointer  # [N, K], the teacher's values
    logits: Pointer  # [N, K] float32, written and read by the kernel
    entries: Scalar  # K


def arguments(
    inputs: LossInputs,
    settings: LossSettings,
    gradient: Tensor | None,
    gradient_scale: Tensor | None,
    loss: Tensor,
    block: int,
    resident: bool,
) -> tuple[Tensors, Numbers, Variant]:
    """The arguments of a kernel with tiles of `block` columns; columns of a row must lie side by side everywhere."""
    student = inputs.student
    width = student.shape[1]
    divergence = _divergence(inputs.teacher, settings)
    teacher = _second_tensor(inputs, divergence)
    common = width if teacher is None or divergence == "ghost" else min(width, teacher.shape[1])
    truncated = settings.vocabulary == "truncate" and common < width
    hard = _hard(settings, divergence, truncated)
    smoothed = hard != "none" and settings.label_smoothing > 0
    class_weights = inputs.class_weights if hard != "none" else None
    total = class_weights.sum() if class_weights is not None and smoothed else None
    labels = None if inputs.labels is None else inputs.labels.contiguous()
    tensors = Tensors(
        student, teacher, gradient, loss, labels, inputs.row_weights, class_weights, total, gradient_scale
    )
    strides = [0 if rows is None else rows.stride(0) for rows in (student, teacher, gradient)]
    logits = (student, gradient) if divergence == "ghost" else (student, teacher, gradient)
    alike = len({rows.stride(0) for rows in logits if rows is not None}) == 1
    unit = 1 if any(count % UNIT for count in (width, common, *strides)) else UNIT
    beta = settings.beta if divergence == "jsd" else 0.5
    teacher_scale = settings.student_scale if divergence == "ghost" else settings.teacher_scale
    numbers = Numbers(
        width=width // unit,
        common=common // unit,
        student_stride=strides[0] // unit,
        teacher_stride=strides[1] // unit,
        gradient_stride=strides[2] // unit,
        ignore_index=settings.ignore_index,
        student_factor=settings.student_scale / settings.temperature * LOG2E,
        teacher_factor=teacher_scale / settings.temperature * LOG2E,
        hard_factor=settings.student_scale * LOG2E,
        beta=beta,
        other_beta=1 - beta,
        per_beta=1 / beta,
        per_other_beta=1 / (1 - beta),
        soft_weight=settings.soft_weight,
        hard_weight=settings.hard_weight,
        smoothing=settings.label_smoothing,
    )
    variant = Variant(
        divergence=divergence,
        hard=hard,
        smoothed=smoothed,
        truncated=truncated,
        shifted=alike and unit == 1 and not resident,
        unit=unit,
        block=block,
        masked=not width == common == block,
    )
    return tensors, numbers, variant


def _divergence(teacher: Tensor | SparseTeacher, settings: LossSettings) -> str:
    if settings.soft_weight == 0:
        return "none"
    if isinstance(teacher, SparseTeacher):
        return "ghost" if teacher.mode == "ghost" else "known"
    return settings.divergence


def _second_tensor(inputs: LossInputs, divergence: str) -> Tensor | None:
    """The teacher's logits, or for a ghost room for a bit a column, or nothing."""
    if divergence == "ghost":
        bits = inputs.student.shape[1] + UNIT - 1  # a shifted row ends up to 7 columns later
        words = -(-bits // (32 * UNIT)) * UNIT
        return inputs.student.new_zeros((len(inputs.student), words), dtype=torch.int32)
    return inputs.teacher if isinstance(inputs.teacher, Tensor) and divergence != "none" else None


def _hard(settings: LossSettings, divergence: str, truncated: bool) -> str:
    """Where the softmax of the cross-entropy comes from; T = 1 and 2 cost no exponential of their own."""
    if settings.hard_weight == 0:
        return "none"
    if divergence == "none" or truncated:
        return "own"
    return {1.0: "same", 2.0: "squared"}.get(settings.temperature, "own")
