"""Which implementation of the distillation loss runs, and the public function."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from compressor import native
from compressor.errors import UsageError
from compressor.kernels import cpu, reference

Reduction = Literal["none", "sum", "mean"]
Implementation = Literal["reference", "cpu"]

OVERRIDE_VARIABLE = "COMPRESSOR_KERNEL"

_ROWS: dict[Implementation, Callable[[Tensor, Tensor, Tensor | None, float, float], Tensor]] = {
    "reference": reference.distillation_rows,
    "cpu": cpu.distillation_rows,
}


def selected_implementation(*logits: Tensor) -> Implementation:
    """The implementation that `distillation_loss` takes for these logits (student's, teacher's, or both).

    `cpu` for contiguous float32 tensors on the CPU where the native module is there, else `reference`. The environment
    variable COMPRESSOR_KERNEL forces one. Raises MissingDependencyError when it is not built, UsageError when it
    does not exist or does not take these tensors.
    """
    suits_cpu = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in logits)
    forced = os.environ.get(OVERRIDE_VARIABLE)
    if not forced:
        return "cpu" if suits_cpu and native.available() else "reference"
    if forced == "reference":
        return "reference"
    if forced != "cpu":
        choices = " or ".join(get_args(Implementation))
        raise UsageError(f"{OVERRIDE_VARIABLE} must be {choices}, got {forced!r}; unset it to choose by the tensors")
    native.load()
    if not suits_cpu:
        got = ", ".join(f"{t.dtype} on {t.device}" + ("" if t.is_contiguous() else ", strided") for t in logits)
        raise UsageError(f"{OVERRIDE_VARIABLE}=cpu takes contiguous torch.float32 logits on cpu, got {got}; unset it")
    return "cpu"


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    hard_weight: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Temperature-scaled KL to the teacher plus cross-entropy to the labels; see `reference.distillation_rows`.

    Args:
        student_logits: [N, V], floating. The gradient flows to these only.
        teacher_logits: [N, V], floating, on the same device.
        labels: [N] int64 in 0..V-1, or -100 for a row without a hard part. Needed when `hard_weight` is above 0.
        temperature: above 0, finite.
        hard_weight: the share of the cross-entropy, in 0..1.
        reduction: "none" gives [N]; "sum" and "mean" a scalar. "mean" divides by N, ignored rows included; of no rows
            it is NaN, as in PyTorch.

    Raises ValueError on arguments that do not fit, and what `selected_implementation` raises.
    """
    _check(student_logits, teacher_logits, labels, temperature, hard_weight, reduction)
    rows = _ROWS[selected_implementation(student_logits, teacher_logits)](
        student_logits, teacher_logits, labels, temperature, hard_weight
    )
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.mean()


def _check(
    student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float, hard_weight: float, reduction: str
) -> None:
    if student.ndim != 2 or student.shape[1] == 0:
        raise ValueError(f"student_logits must be [N, V] with V >= 1, got {list(student.shape)}; reshape them")
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher_logits must have the student's shape {list(student.shape)}, got {list(teacher.shape)}; "
            "give both the same classes"
        )
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be finite and above 0, got {temperature}; 2 to 4 are usual")
    if not 0 <= hard_weight <= 1:
        raise ValueError(f"hard_weight must be in 0..1, got {hard_weight}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be none, sum or mean, got {reduction!r}")
    if labels is None:
        if hard_weight > 0:
            raise ValueError(f"hard_weight {hard_weight} needs labels, got none; give them or set hard_weight to 0")
        return
    if labels.shape != student.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{student.shape[0]}], got {labels.dtype} {list(labels.shape)}")
    _check_label_range(labels, student.shape[1])


def _check_label_range(labels: Tensor, classes: int) -> None:
    if labels.device.type != "cpu":
        return  # looking would stall the device; PyTorch asserts there
    wrong = labels[(labels != reference.IGNORE_INDEX) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"labels must be in 0..{classes - 1} or {reference.IGNORE_INDEX} (ignored), got {int(wrong[0])}; "
            "check the label column"
        )
