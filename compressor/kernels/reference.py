"""The distillation loss in plain PyTorch: short, for any dtype and device, and the specification of every other one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100


def distillation_rows(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None, temperature: float, hard_weight: float
) -> Tensor:
    """The loss of each row, differentiable in the student's logits.

    With T the temperature, w the hard weight, s and t the logits of a row and y its label:

        (1 - w) * T^2 * KL(softmax(t / T) || softmax(s / T)) + w * CE(softmax(s), y)

    from Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2; T^2 keeps the
    gradient of the soft part at the scale of the hard one. A row without a label, or with the label IGNORE_INDEX, has
    no hard part: its soft part keeps the weight 1 - w. A part whose weight is 0 is not evaluated, so with w = 1 an
    ignored row is 0 and the teacher is not read.

    The teacher is a constant. Where it has no mass (a logit of -inf) it contributes 0; where it has mass and the
    student has none, the loss is +inf. NaN propagates.

    Args:
        student_logits: [N, V], floating; half precisions are computed in float32.
        teacher_logits: [N, V], floating.
        labels: [N] int64, each in 0..V-1 or IGNORE_INDEX, or None.

    Returns:
        [N], in float32 or the student's wider dtype.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    loss = student.new_zeros(student.shape[0])
    if hard_weight < 1:
        log_student = F.log_softmax(student / temperature, dim=-1)
        log_teacher = F.log_softmax(teacher / temperature, dim=-1)
        mass = log_teacher.exp()
        terms = torch.where(mass == 0, 0.0, mass * (log_teacher - log_student))
        loss = loss + (1 - hard_weight) * temperature**2 * terms.sum(dim=-1)
    if hard_weight > 0 and labels is not None:
        loss = loss + hard_weight * F.cross_entropy(student, labels, ignore_index=IGNORE_INDEX, reduction="none")
    return loss
