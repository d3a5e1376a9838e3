"""Losses against float64 computations by hand, and gradients that point the right way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from compressor.distill.losses import embedding_loss, label_agreement, loss_for, teacher_agreement
from compressor.recipe import ClassDistillation, EmbeddingDistillation


def unit(seed: int, rows: int = 6, width: int = 5) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


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
    assert float(embedding_loss(student, teacher, weights(cosine, mse, similarity))) == pytest.approx(
        expected, rel=1e-5
    )


def test_the_similarity_loss_does_not_see_a_rotation() -> None:
    """It compares how the rows lie to each other, not where they lie."""
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)))
    student = unit(0)
    assert float(embedding_loss(student @ rotation, student, weights(0, 0, 1))) == pytest.approx(0, abs=1e-12)
    assert float(embedding_loss(student @ rotation, student, weights(1, 0, 0))) > 0.1


@pytest.mark.parametrize("settings", [weights(1, 0, 0), weights(0, 1, 0), weights(0, 0, 1), weights(1, 1, 1)])
def test_a_step_against_the_gradient_comes_nearer_and_equality_is_the_minimum(settings: EmbeddingDistillation) -> None:
    student, teacher = unit(0).requires_grad_(), unit(1)
    loss = loss_for(settings)(student, teacher, None)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss_for(settings)(student - 0.01 * gradient, teacher, None) < loss
    assert float(loss_for(settings)(teacher, teacher, None)) == pytest.approx(0, abs=1e-6)


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
    assert float(loss_for(settings)(student, teacher, labels)) == pytest.approx(expected, rel=1e-5)


def test_agreement_of_embeddings_is_the_mean_cosine() -> None:
    student, teacher = unit(0), unit(1)
    expected = np.mean([float(a @ b) for a, b in zip(student, teacher, strict=True)])
    assert teacher_agreement(student, teacher, weights(1, 0, 0)) == pytest.approx(expected, rel=1e-5)


def test_agreement_of_classes_is_minus_the_divergence_from_the_teacher() -> None:
    student, teacher = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    s, t = student.numpy().astype(np.float64), teacher.numpy().astype(np.float64)
    expected = -special.rel_entr(special.softmax(t, axis=1), special.softmax(s, axis=1)).sum(axis=1).mean()
    assert teacher_agreement(student, teacher, ClassDistillation()) == pytest.approx(expected, rel=1e-5)
    assert teacher_agreement(teacher, teacher, ClassDistillation()) == pytest.approx(0, abs=1e-6)


def test_agreement_with_labels_is_minus_the_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = -(np.log1p(np.exp(-2)) + np.log(2)) / 2
    assert label_agreement(logits, torch.tensor([0, 1])) == pytest.approx(expected, rel=1e-6)
