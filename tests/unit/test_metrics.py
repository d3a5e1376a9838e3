"""Metrics against scipy and by hand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy import special, stats

from compressor.metrics import (
    accuracy,
    are_iob2,
    auroc,
    entities,
    entity_counts,
    f1_of_counts,
    mean_cosine,
    rank_correlation,
    softmax,
)


@pytest.mark.parametrize("levels", [0, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_mann_whitney_u(seed: int, levels: int) -> None:
    """With `levels` the scores are rounded to that many values, so that ties abound."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 200)
    scores = generator.standard_normal(200) + labels
    if levels:
        scores = np.round(scores * levels / 4)
    u = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    expected = u / (labels == 1).sum() / (labels == 0).sum()
    assert auroc(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - expected, abs=1e-12)
    assert auroc(np.exp(scores), labels) == pytest.approx(expected, abs=1e-12), "only the order counts"


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([1, 1, 1], [0, 1, 1], 0.5),
        ([3, 1, 2], [1, 0, 0], 1.0),
        ([1, 2], [1, 0], 0.0),
    ],
)
def test_auroc_by_hand(scores: list[float], labels: list[int], expected: float) -> None:
    assert auroc(np.array(scores), np.array(labels)) == expected


@pytest.mark.parametrize("label", [0, 1])
def test_auroc_of_one_class_is_not_a_number(label: int) -> None:
    assert math.isnan(auroc(np.arange(3.0), np.full(3, label)))


def test_accuracy() -> None:
    assert accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75


@pytest.mark.parametrize("levels", [3, 10, 10**6])
def test_rank_correlation_is_spearmans(levels: int) -> None:
    generator = np.random.default_rng(levels)
    left = generator.integers(0, levels, 200) / 7
    right = left + generator.integers(0, levels, 200)
    assert rank_correlation(left, right) == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-12)
    assert rank_correlation(left, -left) == pytest.approx(-1)
    assert rank_correlation(left, np.zeros(200)) == 0


def test_mean_cosine_in_float64() -> None:
    generator = np.random.default_rng(0)
    left, right = generator.standard_normal((2, 50, 7))
    expected = np.mean([a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for a, b in zip(left, right, strict=True)])
    assert mean_cosine(left, right) == pytest.approx(expected, abs=1e-14)
    assert mean_cosine(3 * left, left) == pytest.approx(1)
    assert mean_cosine(left, -left) == pytest.approx(-1)


def test_mean_cosine_with_a_row_of_zeros() -> None:
    assert mean_cosine(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])) == 0.5


def test_softmax() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(softmax(logits), special.softmax(logits, axis=1), atol=1e-15)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-A", {(0, 1, "A")}),
        ("B-A I-A O B-B", {(0, 2, "A"), (3, 4, "B")}),
        ("B-A B-A I-A", {(0, 1, "A"), (1, 3, "A")}),
        ("O I-A I-A O", set()),
        ("B-A I-B I-A", {(0, 1, "A")}),
        ("B-A O I-A", {(0, 1, "A")}),
        ("", set()),
    ],
)
def test_entities_by_hand(tags: str, expected: set[tuple[int, int, str]]) -> None:
    assert entities(tags.split()) == expected


@pytest.mark.parametrize("seed", range(20))
def test_entities_are_what_a_pattern_finds(seed: int) -> None:
    """In a sentence written with one letter for a tag: b or B, then as many i or I of the same."""
    letters = {"O": "o", "B-A": "b", "I-A": "i", "B-B": "B", "I-B": "I"}
    tags = [str(tag) for tag in np.random.default_rng(seed).choice(list(letters), 60)]
    written = "".join(letters[tag] for tag in tags)
    found = {(m.start(), m.end(), "A" if m[0][0] == "b" else "B") for m in re.finditer("bi*|BI*", written)}
    assert entities(tags) == found


def test_f1_by_hand() -> None:
    """3 of 4 predicted entities are among the 6 actual ones: precision 3/4, recall 1/2, F1 3/5."""
    first = entity_counts(["B-A", "I-A", "O", "B-B", "B-A"], ["B-A", "I-A", "O", "B-B", "O"])
    second = entity_counts(["B-A", "O", "O", "O", "O", "O"], ["B-A", "B-A", "B-B", "B-A", "O", "O"])
    assert (first, second) == ((2, 3, 2), (1, 1, 4))
    assert f1_of_counts(np.array([first, second])) == pytest.approx(3 / 5)
    assert f1_of_counts(np.array([[0, 0, 0]])) == 0


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("O B-PER I-PER B-LOC I-LOC", True),
        ("B-PER I-PER O B-DAY", True),
        ("O I-PER I-LOC", False),  # IOB1, which writes B- only where entities touch
        ("O B-PER I-PER I-LOC", False),
        ("O B-PER I-PER E-PER S-PER", False),
        ("NOUN VERB O", False),
        ("B-PER I-PER", False),
    ],
)
def test_which_classes_are_tags_in_iob2(classes: str, expected: bool) -> None:
    assert are_iob2(classes.split()) == expected
