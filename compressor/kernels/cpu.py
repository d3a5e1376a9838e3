"""The distillation loss in C++: value and gradient in one pass over contiguous float32 rows on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressor import native
from compressor.kernels.reference import IGNORE_INDEX


class _DistillationRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [N, V] float32, contiguous
        teacher: Tensor,  # [N, V] float32, contiguous
        labels: Tensor | None,  # [N] int64, contiguous
        temperature: float,
        hard_weight: float,
    ) -> Tensor:
        loss = torch.empty(student.shape[0], dtype=torch.float32)
        gradient = torch.empty_like(student)
        native.load().distill_loss(
            student.detach().numpy(),
            teacher.detach().numpy(),
            None if labels is None else labels.numpy(),
            loss.numpy(),
            gradient.numpy(),
            temperature=temperature,
            hard_weight=hard_weight,
            ignore_index=IGNORE_INDEX,
            threads=torch.get_num_threads(),
        )
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.unsqueeze(1), None, None, None, None


def distillation_rows(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None, temperature: float, hard_weight: float
) -> Tensor:
    """The loss of each row [N], as `reference.distillation_rows` defines it, with the student's gradient.

    Logits are [N, V] float32, contiguous, on the CPU; labels [N] int64. Mass below the smallest normal float32 counts
    as none. Not twice differentiable. Raises MissingDependencyError when the native module is not built.
    """
    rows: Tensor = _DistillationRows.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        student_logits, teacher_logits, None if labels is None else labels.contiguous(), temperature, hard_weight
    )
    return rows
