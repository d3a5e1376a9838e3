"""The distillation loss in C++: value and gradient in one call, by the instruction sets of this processor."""

from __future__ import annotations

from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor

from compressor import native
from compressor.kernels.settings import LossInputs, LossSettings, SparseTeacher

InstructionSet = Literal["baseline", "avx2", "avx512", "neon"]
Implementation = Literal["cpu-baseline", "cpu-avx2", "cpu-avx512", "cpu-neon"]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def missing(instruction_set: str) -> str | None:
    """Why the instruction set cannot run on this machine, with the remedy; None where it can."""
    if not native.available():
        return "the native module is not built; run: pip install ."
    found = native.load().instruction_sets()
    if instruction_set in found:
        return None
    return f"this processor or build has only {', '.join(found)}; take one of these"


@cache
def best() -> Implementation | None:
    """The implementation for this processor; None where the native module is not built."""
    if not native.available():
        return None
    return cast(Implementation, "cpu-" + native.load().instruction_sets()[-1])


def _matrix(logits: Tensor) -> native.Matrix:
    matrix: native.Matrix = native.load().Matrix(logits.data_ptr(), logits.stride(0), _DTYPES[logits.dtype])
    return matrix


def _dense_rows(logits: Tensor) -> Tensor:
    """Rows may lie apart; the elements of a row may not."""
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def row_losses(
    inputs: LossInputs,
    settings: LossSettings,
    gradient: Tensor | None,
    gradient_scale: Tensor | None,
    instruction_set: InstructionSet,
) -> Tensor:
    """The losses of the rows [N] float32; see `dispatch.fused`.

    Logits are [N, V] float32, bfloat16 or float16 on the CPU, a sparse teacher's values float32. Exponentials below
    2^-126 of a row's largest count as no mass.
    """
    # Whatever is made here stays referenced until the call has returned: the problem holds addresses only.
    student = _dense_rows(inputs.student)
    loss = torch.empty(len(student), dtype=torch.float32)
    labels = None if inputs.labels is None else inputs.labels.contiguous()
    written = gradient if gradient is None or gradient.stride(1) == 1 else torch.empty_like(student)
    problem = native.load().DistillProblem()
    problem.rows, problem.width = student.shape
    problem.student, problem.loss = _matrix(student), loss.data_ptr()
    problem.soft_width = problem.teacher_width = student.shape[1]
    if isinstance(inputs.teacher, SparseTeacher):
        indices, values = inputs.teacher.indices, inputs.teacher.values.float()
        problem.indices, problem.values = indices.data_ptr(), values.data_ptr()
        problem.known, problem.sparse_mode = indices.shape[1], inputs.teacher.mode
    else:
        teacher = _dense_rows(inputs.teacher)
        problem.teacher = _matrix(teacher)
        problem.teacher_width = min(student.shape[1], teacher.shape[1])
        if settings.vocabulary == "truncate":
            problem.soft_width = problem.teacher_width
    if labels is not None:
        problem.labels = labels.data_ptr()
    if inputs.row_weights is not None:
        problem.row_weights = inputs.row_weights.data_ptr()
    if inputs.class_weights is not None:
        problem.class_weights = inputs.class_weights.data_ptr()
    if written is not None:
        problem.gradient = _matrix(written)
    if gradient_scale is not None:
        problem.gradient_scale = gradient_scale.item()
    problem.divergence, problem.beta, problem.soft_weight = settings.divergence, settings.beta, settings.soft_weight
    for name in ("temperature", "student_scale", "teacher_scale", "hard_weight", "label_smoothing", "ignore_index"):
        setattr(problem, name, getattr(settings, name))
    native.load().distill_loss(problem, instruction_set, torch.get_num_threads())
    if gradient is not None and written is not gradient:
        gradient.copy_(written)  # type: ignore[arg-type]
    return loss
