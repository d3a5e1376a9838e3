"""The mixture of losses that a recipe describes, and the score on held-out data that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from compressor.artifacts import TapPair
from compressor.distill import losses
from compressor.distill.taps import HIDDEN
from compressor.kernels import LossSettings, SparseTeacher, distillation_loss, linear_distillation_loss
from compressor.recipe_base import Weight
from compressor.recipe_distill import (
    AnswerDistillation,
    ClassDistillation,
    Distillation,
    EmbeddingDistillation,
    TokenDistillation,
)

_OF_TEXT = LossSettings(temperature=1.0)


@dataclass(frozen=True)
class Lesson:
    """Of one batch: what the student said, and what it should have said.

    `student`, `teacher` float32 [answers, width], or of the teacher what was kept; `labels` int64 [answers] or None. An
    answer is to an input, or to one position of it. With a `head`, weight [width, hidden] and perhaps bias [width], the
    student's answers are hidden states still [answers, hidden], to which it is to be applied. Of each pair of taps
    float32 [batch, sequence, width], the student's after its projection; `mask` bool [batch, sequence]: tokens of rows
    that teacher and student cut into the same tokens.
    """

    student: Tensor
    teacher: Tensor | SparseTeacher
    labels: Tensor | None
    head: tuple[Tensor, ...] = ()
    student_taps: dict[TapPair, Tensor] = field(default_factory=dict)
    teacher_taps: dict[TapPair, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    own_loss: Callable[[Tensor, Tensor, Any], Tensor] | None = None


def weight_at(weight: Weight, share: float) -> float:
    """The weight after `share` (0..1) of the steps."""
    if isinstance(weight, tuple):
        begin, end = weight
        return begin + (end - begin) * share
    return weight


def mixture(lesson: Lesson, settings: Distillation, share: float) -> Tensor:
    """The weighted sum of the losses that the recipe names, after `share` of the steps; a scalar."""
    if lesson.own_loss is not None:
        assert isinstance(lesson.teacher, Tensor)
        return lesson.own_loss(lesson.student, lesson.teacher, lesson.labels)
    if isinstance(settings, EmbeddingDistillation):
        total = _of_embeddings(lesson, settings, share)
    elif isinstance(settings, AnswerDistillation):
        total = class_loss(lesson, _OF_TEXT)
    else:
        assert isinstance(settings, ClassDistillation)
        total = class_loss(lesson, LossSettings(settings.temperature, hard_weight=settings.hard_weight))
    return total + _of_taps(lesson, settings, share) if lesson.student_taps else total


def class_loss(lesson: Lesson, settings: LossSettings) -> Tensor:
    """The mean distillation loss of the answers; with a head, logits are made for a part of them at a time."""
    if not len(lesson.student):  # texts in which no token is answered: the mean of nothing would not be a number
        return lesson.student.sum()
    if not lesson.head:
        temperature, hard_weight = settings.temperature, settings.hard_weight
        return distillation_loss(
            lesson.student, lesson.teacher, lesson.labels, temperature=temperature, hard_weight=hard_weight
        )
    assert isinstance(lesson.teacher, SparseTeacher)
    weight, *bias = lesson.head
    loss: Tensor = linear_distillation_loss(
        lesson.student, weight, lesson.teacher, lesson.labels, settings=settings, student_bias=bias[0] if bias else None
    )
    return loss


def _of_embeddings(lesson: Lesson, settings: EmbeddingDistillation, share: float) -> Tensor:
    student, teacher = lesson.student, lesson.teacher
    assert isinstance(teacher, Tensor)
    total = student.new_zeros(())
    if weight := weight_at(settings.cosine_weight, share):
        total = total + weight * losses.cosine_loss(student, teacher)
    if weight := weight_at(settings.mse_weight, share):
        total = total + weight * losses.squared_distance_loss(student, teacher)
    if weight := weight_at(settings.similarity_weight, share):
        total = total + weight * losses.similarity_loss(student, teacher)
    if weight := weight_at(settings.contrastive_weight, share):
        total = total + weight * losses.contrastive_loss(student, teacher, settings.contrastive_temperature)
    return total


def _of_taps(lesson: Lesson, settings: Distillation, share: float) -> Tensor:
    """Hidden states: the mean over the pairs of layers. Relations: of the last layer."""
    assert isinstance(settings, TokenDistillation)
    assert lesson.mask is not None
    hidden = [pair for pair in lesson.student_taps if pair.kind == HIDDEN]
    total = lesson.student.new_zeros(())
    for pair, student in lesson.student_taps.items():
        teacher = lesson.teacher_taps[pair]
        if pair.kind == HIDDEN:
            weight = weight_at(settings.hidden_weight, share) / len(hidden)
            total = total + weight * losses.hidden_loss(student, teacher, lesson.mask)
        else:
            weight = weight_at(settings.relation_weight, share)
            total = total + weight * losses.relation_loss(student, teacher, lesson.mask, settings.relation_heads)
    return total


def held_out_score(lesson: Lesson, settings: Distillation) -> float:
    """Higher is better: closeness to the teacher's answers, or to the labels where the teacher has no weight."""
    if lesson.own_loss is not None:
        assert isinstance(lesson.teacher, Tensor)
        return -float(lesson.own_loss(lesson.student, lesson.teacher, lesson.labels))
    if isinstance(settings, EmbeddingDistillation):
        assert isinstance(lesson.teacher, Tensor)
        return losses.embedding_agreement(lesson.student, lesson.teacher)
    if isinstance(settings, AnswerDistillation):
        return -float(class_loss(lesson, _OF_TEXT))
    assert isinstance(settings, ClassDistillation)
    if not len(lesson.student):
        return 0.0
    if isinstance(lesson.teacher, SparseTeacher):
        judged_by = 1.0 if settings.hard_weight == 1.0 else 0.0
        return -float(class_loss(lesson, LossSettings(settings.temperature, hard_weight=judged_by)))
    if settings.hard_weight == 1.0:
        assert lesson.labels is not None
        return losses.label_agreement(lesson.student, lesson.labels)
    return losses.class_agreement(lesson.student, lesson.teacher)


def across_processes(values: Tensor) -> Tensor:
    """Rows of all processes, float32 [all rows, width]; gradients reach this process's own rows."""
    if not torch.distributed.is_initialized():
        return values
    gathered: tuple[Tensor, ...] = all_gather(values)  # type: ignore[no-untyped-call]
    return torch.cat(gathered)
