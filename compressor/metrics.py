"""Task metrics, in numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What is nothing but noise, or not finite.
QUIETEST_DB = -100.0


def auroc(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    `scores` float [N], `labels` 0/1 [N]. NaN where one class is absent.
    It is Mann-Whitney's U / (n1 n0) (Hanley & McNeil 1982).
    """
    positive, negative = scores[labels == 1], np.sort(scores[labels == 0])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).mean() / 2 / len(negative))


def accuracy(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of equal entries; both int [N]."""
    return float((predicted == labels).mean())


def rank_correlation(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Spearman's: the correlation of the ranks of two float [N], ties at their mean rank; 0 where all are equal."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (left, right)]
    spread = math.sqrt(float(np.square(ranks[0]).sum() * np.square(ranks[1]).sum()))
    return float(ranks[0] @ ranks[1]) / spread if spread else 0.0


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = np.cumsum(counts) - (counts + 1) / 2
    return means[place]


def mean_cosine(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Mean cosine of the rows of two float [N, ...], each taken as one vector; rows of zeros count 0."""
    left, right = (values.astype(np.float64).reshape(len(values), -1) for values in (left, right))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = np.einsum("nd,nd->n", left, right)
    return float(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0).mean())


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Row-wise softmax of float [N, classes], in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def are_iob2(classes: Sequence[str]) -> bool:
    """Whether class names are tags in IOB2: `O`, and for each type of entity `B-type`, most with an `I-type`."""
    begun = {name[2:] for name in classes if name.startswith("B-")}
    inside = {name[2:] for name in classes if name.startswith("I-")}
    return "O" in classes and bool(begun) and inside <= begun and len(classes) == 1 + len(begun) + len(inside)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The entities of a sentence tagged in IOB2: first word, the word after the last, type.

    An entity begins with `B-type` and goes on with every `I-type` of the same type that follows without a gap. An
    `I-type` that follows neither belongs to no entity. It is what seqeval (https://github.com/chakki-works/seqeval)
    counts with `mode="strict", scheme=IOB2`.
    """
    found: set[tuple[int, int, str]] = set()
    first, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            found.add((first, place, kind))
            kind = ""
        if tag.startswith("B-"):
            first, kind = place, tag[2:]
    return found


def entity_counts(predicted: Sequence[str], actual: Sequence[str]) -> tuple[int, int, int]:
    """Of one sentence, tagged in IOB2 twice: entities in common (words and type), predicted ones, actual ones."""
    mine, true = entities(predicted), entities(actual)
    return len(mine & true), len(mine), len(true)


def f1_of_counts(counts: NDArray[Any]) -> float:
    """F1 = 2 TP / (predicted + actual) over all rows of int [N, 3]: TP, predicted, actual; 0 where there is none."""
    common, predicted, actual = counts.sum(axis=0)
    return float(2 * common / (predicted + actual)) if predicted + actual else 0.0


def same_top1(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The share of rows of which the largest number is in the same place."""
    return accuracy(got.argmax(axis=1), expected.argmax(axis=1))


def snr_db(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise) of two energies, at least -100; None where there is no noise."""
    if noise == 0:
        return None
    ratio = signal / noise if math.isfinite(noise) else 0.0
    return max(10 * math.log10(ratio), QUIETEST_DB) if ratio > 0 else QUIETEST_DB


def snr_between_db(got: NDArray[Any], expected: NDArray[Any]) -> float | None:
    """The same of arrays of one shape: `expected` is the signal, what `got` differs from it the noise."""
    difference = np.subtract(got, expected, dtype=np.float64)
    return snr_db(float(np.square(expected, dtype=np.float64).sum()), float(np.square(difference).sum()))
