"""Learning to embed sentences from the labels of pairs alone: the supervised loss of Gao et al. 2021 (SimCSE)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TEMPERATURE = 0.05  # of the cosines, theirs


def label_loss(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:  # noqa: ARG001
    """Cross-entropy of finding, of each premise, its entailed sentence among all entailed and contradicting ones of the
    batch, by cosine / TEMPERATURE. `student`: unit vectors float32 [3 * triplets, width], first the premises, then the
    entailed, then the contradicting sentences; a scalar.
    """
    premise, entailed, contradicting = student.chunk(3)
    scores = premise @ torch.cat([entailed, contradicting]).T / TEMPERATURE
    return nn.functional.cross_entropy(scores, torch.arange(len(premise)))


def triplets(
    pairs: Iterable[tuple[str, str, object]], row_of: dict[str, int], positive: object, negative: object
) -> NDArray[np.int64]:
    """Rows of premise, entailed and contradicting sentence, int64 [triplets, 3], of pairs (premise, sentence, label).

    Pairs with a sentence that `row_of` does not have are left out. A premise with several of both gives several.
    """
    said: dict[int, tuple[list[int], list[int]]] = {}
    for first, second, label in pairs:
        if first in row_of and second in row_of and label in (positive, negative):
            said.setdefault(row_of[first], ([], []))[label == negative].append(row_of[second])
    found = [(premise, *both) for premise, rows in said.items() for both in zip(*rows, strict=False)]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def triplet_batches(
    rows: NDArray[np.int64], batch_size: int, count: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """`count` batches, each the rows of batch_size // 3 triplets in the order that `label_loss` takes.

    All triplets come once before any comes again.
    """
    size = batch_size // 3
    draw = np.random.default_rng((seed, epoch))
    passes = -(-count * size // len(rows))
    order = np.concatenate([draw.permutation(len(rows)) for _ in range(passes)])
    return [rows[order[i * size : (i + 1) * size]].T.reshape(-1) for i in range(count)]
