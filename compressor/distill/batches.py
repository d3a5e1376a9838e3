"""The order of training, as a pure function of seed and epoch, so that a resumed run sees what it would have seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_POOL = 50  # batches that are sorted by length together: little padding, and still a random order


def epoch_batches(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Row numbers of every batch of an epoch: each row at most once, all batches full, similar lengths together.

    `lengths` int64 [rows]; rows that do not fill a last batch sit this epoch out.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), batch_size * _POOL):
        pool = order[start : start + batch_size * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool) - batch_size + 1, batch_size)]
    generator.shuffle(batches)
    return batches


def epoch_views(rows: int, views: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which view of each row an epoch shows: int64 [rows], uniform over 0 .. views-1."""
    return np.random.default_rng((seed, epoch, 1)).integers(0, views, rows)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Full batches of an epoch."""
    return len(epoch_batches(np.zeros(rows, dtype=np.int64), batch_size, 0, 0))


def learning_rate_share(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then linear decay to zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (total - step) / max(1, total - rising))
