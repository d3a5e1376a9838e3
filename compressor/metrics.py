"""Task metrics, in numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
