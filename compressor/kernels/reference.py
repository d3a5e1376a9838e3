"""The distillation loss in plain PyTorch: short, for any dtype and device, and the specification of every other one.

For one row, with T the temperature, s and t the student's and the teacher's logits times their scales, q = softmax(s/T)
and p = softmax(t/T):

    loss = row_weight * ((1 - hard_weight) * T^2 * D(p, q) + hard_weight * CE(softmax(s), label))

T^2 keeps the gradient of the soft part at the scale of the hard one (Hinton, Vinyals and Dean, "Distilling the
Knowledge in a Neural Network", 2015, section 2); it may be switched off. A part whose weight is 0 is not evaluated.
CE is `torch.nn.functional.cross_entropy`, with its label smoothing and class weights. D is one of

    forward_kl         sum p log(p / q)
    reverse_kl         sum q log(q / p)
    jsd                sum p log(p / m) / (1 - beta) + q log(q / m) / beta,  m = beta p + (1 - beta) q
    total_variation    sum |p - q| / 2

jsd is the generalised Jensen-Shannon divergence of Agarwal et al. ("On-Policy Distillation of Language Models", 2023)
divided by beta (1 - beta): so it is continuous, forward KL at beta 0 and reverse KL at beta 1, and near p = q equal to
KL for every beta. The textbook's divergence at beta 1/2 is a quarter of it.

The teacher is a constant. Where it has no mass (a logit of -inf) it contributes 0; where it has mass and the student
has none, forward KL is +inf. NaN propagates within its row. A row whose label is `ignore_index` is not read: its loss
and its gradient are 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.kernels.settings import RESIDUAL_FLOOR, LossInputs, LossSettings, SparseTeacher


def distillation_rows(inputs: LossInputs, settings: LossSettings) -> Tensor:
    """The loss of each row, [N], in float32 or the student's wider dtype; differentiable in the student's logits."""
    dtype = torch.promote_types(inputs.student.dtype, torch.float32)
    kept = torch.arange(len(inputs.student), device=inputs.student.device)
    if inputs.labels is not None:
        kept = kept[inputs.labels != settings.ignore_index]
    student = inputs.student[kept].to(dtype) * settings.student_scale
    loss = student.new_zeros(len(kept))
    if settings.soft_weight > 0:
        loss = loss + settings.soft_weight * _soft(student, inputs.teacher, kept, settings)
    if settings.hard_weight > 0:
        assert inputs.labels is not None
        weights = None if inputs.class_weights is None else inputs.class_weights.to(dtype)
        loss = loss + settings.hard_weight * F.cross_entropy(
            student, inputs.labels[kept], weights, reduction="none", label_smoothing=settings.label_smoothing
        )
    if inputs.row_weights is not None:
        loss = loss * inputs.row_weights[kept].to(dtype)
    return loss.new_zeros(len(inputs.student)).index_put((kept,), loss)


def _soft(student: Tensor, teacher: Tensor | SparseTeacher, kept: Tensor, settings: LossSettings) -> Tensor:
    """D(p, q) of the kept rows; `student` is scaled already."""
    if isinstance(teacher, SparseTeacher):
        log_q = F.log_softmax(student / settings.temperature, dim=-1)
        return _sparse(log_q, teacher.indices[kept], teacher.values[kept].to(student.dtype), teacher.mode, settings)
    logits = teacher.detach()[kept].to(student.dtype) * settings.teacher_scale
    width = min(student.shape[1], logits.shape[1])
    logits = logits[:, :width]
    if settings.vocabulary == "mask":
        logits = F.pad(logits, (0, student.shape[1] - width), value=-math.inf)
    else:
        student = student[:, :width]
    log_p = F.log_softmax(logits / settings.temperature, dim=-1)
    log_q = F.log_softmax(student / settings.temperature, dim=-1)
    return _divergence(log_p, log_q, settings.at_the_ends())


def _weighted(mass: Tensor, log_ratio: Tensor) -> Tensor:
    """mass * log_ratio, and 0 where there is no mass, even if the ratio is infinite; its gradient likewise."""
    return torch.where(mass == 0, 0.0, mass * torch.where(mass == 0, 0.0, log_ratio))


def _divergence(log_p: Tensor, log_q: Tensor, settings: LossSettings) -> Tensor:
    p, q, beta = log_p.exp(), log_q.exp(), settings.beta
    if settings.divergence == "forward_kl":
        return _weighted(p, log_p - log_q).sum(dim=-1)
    if settings.divergence == "reverse_kl":
        return _weighted(q, log_q - log_p).sum(dim=-1)
    if settings.divergence == "total_variation":
        return (p - q).abs().sum(dim=-1) / 2
    log_m = torch.log((beta * p + (1 - beta) * q).clamp(min=torch.finfo(p.dtype).tiny))
    return (_weighted(p, log_p - log_m) / (1 - beta) + _weighted(q, log_q - log_m) / beta).sum(dim=-1)


def _sparse(log_q: Tensor, indices: Tensor, values: Tensor, mode: str, settings: LossSettings) -> Tensor:
    """Forward KL to a teacher that is known at `indices` alone; cross-entropy for `sampled`."""
    absent = indices < 0
    log_q_known = log_q.gather(1, indices.clamp(min=0))
    if mode == "sampled":
        return -_weighted(values.exp().masked_fill(absent, 0), log_q_known).sum(dim=-1)
    if mode == "zero":
        values = F.log_softmax(
            (values * (settings.teacher_scale / settings.temperature)).masked_fill(absent, -math.inf), -1
        )
    log_p = values.masked_fill(absent, -math.inf)
    p = log_p.exp()
    loss = _weighted(p, log_p - log_q_known).sum(dim=-1)
    if mode == "zero":
        return loss
    known = torch.zeros_like(log_q, dtype=torch.int32).scatter_add_(1, indices.clamp(min=0), (~absent).int())
    p_rest = 1 - p.sum(dim=-1)
    p_rest = p_rest.masked_fill(p_rest < RESIDUAL_FLOOR, 0)
    # Where nothing is missing the student may have nothing left, whose logarithm has no gradient.
    unknown = log_q.masked_fill(known > 0, -math.inf)
    log_q_rest = torch.where((p_rest == 0)[:, None], 0.0, unknown).logsumexp(dim=-1)
    return loss + _weighted(p_rest, p_rest.clamp(min=RESIDUAL_FLOOR).log() - log_q_rest)
