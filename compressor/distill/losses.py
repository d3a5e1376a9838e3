"""What the student is trained to minimise, term by term. `mixture` says which terms a recipe adds up."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos(s, t) over unit vectors, float32 [batch, width] each; a scalar."""
    return (1 - (student * teacher).sum(-1)).mean()


def squared_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance between the rows of float32 [batch, width]; a scalar."""
    return (student - teacher).square().sum(-1).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the matrices S S' and T T' of cosines within the batch, of unit vectors float32
    [batch, width of each]; a scalar (Tung & Mori 2019, similarity-preserving distillation).
    """
    return (student @ student.T - teacher @ teacher.T).square().mean()


def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the teacher's vector of the same row among the batch's, by cos / temperature: InfoNCE
    (van den Oord et al. 2018) between unit vectors float32 [batch, width]; a scalar.
    """
    return nn.functional.cross_entropy(student @ teacher.T / temperature, torch.arange(len(student)).to(student.device))


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared distance between hidden states as a share of the teacher's squared length, over the tokens that `mask`
    (bool [batch, sequence]) has: sum |s - t|^2 / sum |t|^2, of float32 [batch, sequence, width]; a scalar, 0 of none.
    """
    weight = mask.unsqueeze(-1).to(student.dtype)
    length = (teacher.square() * weight).sum()
    return ((student - teacher).square() * weight).sum() / length.clamp(min=1e-9)


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """KL divergence between the teacher's and the student's relations among queries, keys and values (Wang et al. 2021,
    MiniLMv2): of each of the three, in each of `heads` heads, softmax(A A' / sqrt(width of a head)) over the tokens.

    `student`, `teacher` float32 [batch, sequence, 3 * width of each], widths that `heads` divides; `mask` bool [batch,
    sequence]. The mean over tokens of `mask`, heads and the three; a scalar, 0 of none.
    """
    loss = student.new_zeros(())
    rows = mask.unsqueeze(1).to(student.dtype)  # [batch, 1, sequence]
    for of_student, of_teacher in zip(student.chunk(3, dim=-1), teacher.chunk(3, dim=-1), strict=True):
        log_student = _log_relations(of_student, mask, heads)
        log_teacher = _log_relations(of_teacher, mask, heads)
        # A masked column has no mass: 0 * (-inf - -inf) must be 0.
        terms = (log_teacher.exp() * (log_teacher - log_student)).masked_fill(~mask[:, None, None, :], 0.0)
        loss = loss + (terms.sum(-1) * rows).sum() / (3 * heads * rows.sum().clamp(min=1.0))
    return loss


def _log_relations(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    """[batch, sequence, width] -> log of relations [batch, heads, sequence, sequence]; -inf in masked columns."""
    by_head = vectors.view(*vectors.shape[:2], heads, -1).transpose(1, 2)
    scores = by_head @ by_head.transpose(-1, -2) / by_head.shape[-1] ** 0.5
    # A row without any token would be all -inf: it is not counted, and must not be NaN.
    empty = ~mask.any(dim=-1)
    relations: Tensor = scores.masked_fill(~(mask | empty[:, None])[:, None, None, :], -torch.inf).log_softmax(-1)
    return relations


def label_agreement(student: Tensor, labels: Tensor) -> float:
    """Held-out score without a teacher: minus the cross-entropy with the labels."""
    return -float(nn.functional.cross_entropy(student, labels))


def class_agreement(student: Tensor, teacher: Tensor) -> float:
    """Held-out score: minus the KL divergence from teacher to student, of logits float32 [N, classes]."""
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return -float(nn.functional.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean"))


def embedding_agreement(student: Tensor, teacher: Tensor) -> float:
    """Held-out score: the mean cosine of unit vectors, float32 [N, width]."""
    return float((student * teacher).sum(-1).mean())
