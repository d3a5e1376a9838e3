"""Losses against float64 computations by hand, and gradients that point the right way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from compressor.distill.losses import (
    class_agreement,
    contrastive_loss,
    embedding_agreement,
    hidden_loss,
    label_agreement,
    relation_loss,
)
from compressor.distill.mixture import Lesson, held_out_score, mixture, weight_at
from compressor.recipe_distill import ClassDistillation, Distillation, EmbeddingDistillation


def unit(seed: int, rows: int = 6, width: int = 5) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def loss_of(
    settings: Distillation, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None = None
) -> torch.Tensor:
    return mixture(Lesson(student, teacher, labels), settings, 0.0)


def weights(cosine: float, mse: float, similarity: float) -> EmbeddingDistillation:
    return EmbeddingDistillation(cosine_weight=cosine, mse_weight=mse, similarity_weight=similarity)


@pytest.mark.parametrize(("cosine", "mse", "similarity"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2.0, 3.0)])
def test_embedding_loss_in_float64(cosine: float, mse: float, similarity: float) -> None:
    student, teacher = unit(0), unit(1)
    s, t = student.numpy().astype(np.float64), teacher.numpy().astype(np.float64)
    rows = range(len(s))
    expected = cosine * np.mean([1 - s[i] @ t[i] for i in rows])
    expected += mse * np.mean([((s[i] - t[i]) ** 2).sum() for i in rows])
    expected += similarity * np.mean([(s[i] @ s[j] - t[i] @ t[j]) ** 2 for i in rows for j in rows])
    assert float(loss_of(weights(cosine, mse, similarity), student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_the_similarity_loss_does_not_see_a_rotation() -> None:
    """It compares how the rows lie to each other, not where they lie."""
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)))
    student = unit(0)
    assert float(loss_of(weights(0, 0, 1), student @ rotation, student)) == pytest.approx(0, abs=1e-12)
    assert float(loss_of(weights(1, 0, 0), student @ rotation, student)) > 0.1


@pytest.mark.parametrize("settings", [weights(1, 0, 0), weights(0, 1, 0), weights(0, 0, 1), weights(1, 1, 1)])
def test_a_step_against_the_gradient_comes_nearer_and_equality_is_the_minimum(settings: EmbeddingDistillation) -> None:
    student, teacher = unit(0).requires_grad_(), unit(1)
    loss = loss_of(settings, student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss_of(settings, student - 0.01 * gradient, teacher) < loss
    assert float(loss_of(settings, teacher, teacher)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
def test_class_loss_in_float64(temperature: float, hard: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 8, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    s, t = student.numpy().astype(np.float64), teacher.numpy().astype(np.float64)
    p = special.softmax(t / temperature, axis=1)
    divergence = (
        p * (special.log_softmax(t / temperature, axis=1) - special.log_softmax(s / temperature, axis=1))
    ).sum(1)
    cross_entropy = -special.log_softmax(s, axis=1)[np.arange(8), labels.numpy()]
    expected = ((1 - hard) * temperature**2 * divergence + hard * cross_entropy).mean()
    settings = ClassDistillation(temperature=temperature, hard_weight=hard)
    assert float(loss_of(settings, student, teacher, labels)) == pytest.approx(expected, rel=1e-5)


def test_agreement_of_embeddings_is_the_mean_cosine() -> None:
    student, teacher = unit(0), unit(1)
    expected = np.mean([float(a @ b) for a, b in zip(student, teacher, strict=True)])
    assert embedding_agreement(student, teacher) == pytest.approx(expected, rel=1e-5)


def test_agreement_of_classes_is_minus_the_divergence_from_the_teacher() -> None:
    student, teacher = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    s, t = student.numpy().astype(np.float64), teacher.numpy().astype(np.float64)
    expected = -special.rel_entr(special.softmax(t, axis=1), special.softmax(s, axis=1)).sum(axis=1).mean()
    assert class_agreement(student, teacher) == pytest.approx(expected, rel=1e-5)
    assert class_agreement(teacher, teacher) == pytest.approx(0, abs=1e-6)


def test_agreement_with_labels_is_minus_the_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = -(np.log1p(np.exp(-2)) + np.log(2)) / 2
    assert label_agreement(logits, torch.tensor([0, 1])) == pytest.approx(expected, rel=1e-6)


def test_the_score_is_of_what_the_student_learns_from() -> None:
    student, teacher = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    assert held_out_score(Lesson(student, teacher, labels), ClassDistillation()) == class_agreement(student, teacher)
    alone = ClassDistillation(hard_weight=1.0)
    assert held_out_score(Lesson(student, teacher, labels), alone) == label_agreement(student, labels)
    assert held_out_score(Lesson(student, teacher, None), weights(1, 0, 0)) == embedding_agreement(student, teacher)


def test_contrastive_loss_in_float64() -> None:
    student, teacher = unit(0), unit(1)
    scores = student.numpy().astype(np.float64) @ teacher.numpy().astype(np.float64).T / 0.1
    expected = -np.mean(np.diag(special.log_softmax(scores, axis=1)))
    assert float(contrastive_loss(student, teacher, 0.1)) == pytest.approx(expected, rel=1e-5)
    settings = EmbeddingDistillation(
        cosine_weight=0.0, similarity_weight=0.0, contrastive_weight=2.0, contrastive_temperature=0.1
    )
    assert float(loss_of(settings, student, teacher)) == pytest.approx(2 * expected, rel=1e-5)


def states(seed: int, width: int, rows: int = 3, tokens: int = 5) -> torch.Tensor:
    return torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)


def test_hidden_loss_in_float64_looks_at_the_mask_alone() -> None:
    student, teacher = states(0, 4), states(1, 4)
    s, t, m = student.double().numpy(), teacher.double().numpy(), MASK.numpy()
    expected = ((s[m] - t[m]) ** 2).sum() / (t[m] ** 2).sum()
    assert float(hidden_loss(student, teacher, MASK)) == pytest.approx(expected, rel=1e-5)
    student[~MASK] = 1e6
    assert float(hidden_loss(student, teacher, MASK)) == pytest.approx(expected, rel=1e-5)
    assert float(hidden_loss(student, teacher, torch.zeros_like(MASK))) == 0


@pytest.mark.parametrize("heads", [1, 2])
def test_relation_loss_in_float64(heads: int) -> None:
    """Row by row and head by head; teacher and student differ in width."""
    student, teacher = states(0, 3 * 4), states(1, 3 * 6)
    terms = []
    for row in (0, 1):  # the last has no tokens
        kept = MASK[row].numpy()
        for which in range(3):
            s = np.split(student[row].double().numpy()[kept], 3, axis=1)[which]
            t = np.split(teacher[row].double().numpy()[kept], 3, axis=1)[which]
            for a, b in zip(np.split(s, heads, axis=1), np.split(t, heads, axis=1), strict=True):
                log_s = special.log_softmax(a @ a.T / np.sqrt(a.shape[1]), axis=1)
                log_t = special.log_softmax(b @ b.T / np.sqrt(b.shape[1]), axis=1)
                terms += list((np.exp(log_t) * (log_t - log_s)).sum(axis=1))
    assert float(relation_loss(student, teacher, MASK, heads)) == pytest.approx(np.mean(terms), rel=1e-5)
    assert float(relation_loss(teacher, teacher, MASK, heads)) == pytest.approx(0, abs=1e-6)


def test_relation_loss_has_finite_gradients_where_rows_are_masked_whole() -> None:
    student = states(0, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(relation_loss(student, states(1, 12), MASK, 2), student)
    assert torch.isfinite(gradient).all()
    assert (gradient[~MASK] == 0).all()
    assert (gradient[MASK] != 0).any()


def test_a_weight_goes_straight_from_its_beginning_to_its_end() -> None:
    assert [weight_at(3.0, share) for share in (0.0, 0.5, 1.0)] == [3.0, 3.0, 3.0]
    assert [weight_at((2.0, 0.0), share) for share in (0.0, 0.25, 1.0)] == [2.0, 1.5, 0.0]
    settings = EmbeddingDistillation(cosine_weight=(1.0, 0.0), similarity_weight=0.0)
    lesson = Lesson(unit(0), unit(1), None)
    assert float(mixture(lesson, settings, 0.5)) == pytest.approx(float(mixture(lesson, settings, 0.0)) / 2)
    assert float(mixture(lesson, settings, 1.0)) == 0
