"""What the student is trained to minimise. Embeddings: cosine, squared distance, in-batch similarities. Classes: the
one loss op, temperature KL with a share of cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.kernels import distillation_loss
from compressor.recipe import ClassDistillation, Distillation, EmbeddingDistillation

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def embedding_loss(student: Tensor, teacher: Tensor, settings: EmbeddingDistillation) -> Tensor:
    """Weighted sum over a batch of unit vectors, float32 [batch, width] each; a scalar.

    cosine: mean of 1 - cos(s, t). mse: mean squared distance. similarity: mean squared difference of the matrices
    S S' and T T' of cosines within the batch (Tung & Mori 2019, similarity-preserving distillation).
    """
    loss = settings.cosine_weight * (1 - (student * teacher).sum(-1)).mean()
    if settings.mse_weight:
        loss = loss + settings.mse_weight * (student - teacher).square().sum(-1).mean()
    if settings.similarity_weight:
        difference = student @ student.T - teacher @ teacher.T
        loss = loss + settings.similarity_weight * difference.square().mean()
    return loss


def loss_for(settings: Distillation) -> Loss:
    """The loss that a recipe describes: loss(student outputs, teacher outputs, labels) -> scalar."""
    if isinstance(settings, EmbeddingDistillation):
        return lambda student, teacher, _labels: embedding_loss(student, teacher, settings)
    assert isinstance(settings, ClassDistillation)
    return lambda student, teacher, labels: distillation_loss(
        student, teacher, labels, temperature=settings.temperature, hard_weight=settings.hard_weight
    )


def teacher_agreement(student: Tensor, teacher: Tensor, settings: Distillation) -> float:
    """Held-out score: mean cosine of embeddings, or minus the KL divergence from teacher to student of classes."""
    if isinstance(settings, EmbeddingDistillation):
        return float((student * teacher).sum(-1).mean())
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return -float(torch.nn.functional.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean"))


def label_agreement(student: Tensor, labels: Tensor) -> float:
    """Held-out score without a teacher: minus the cross-entropy with the labels."""
    return -float(torch.nn.functional.cross_entropy(student, labels))
