"""What may be said of a handful of trainings that differ in their seed alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds between the bounds of its 95% interval; bounds are None of a single seed."""

    mean: float
    low: float | None
    high: float | None

    def above(self, value: float) -> bool:
        """Whether the whole interval lies above; never of a single seed."""
        return self.low is not None and self.low > value

    def reaches(self, value: float) -> bool:
        """Whether the interval contains `value` or lies above it; of a single seed, whether the mean does."""
        return (self.mean if self.high is None else self.high) >= value


def over_seeds(values: Sequence[float]) -> Estimate:
    """Student's t interval of the mean: mean +- t(0.975, n-1) * s / sqrt(n)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    half = (
        float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    )
    return Estimate(mean, mean - half, mean + half)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Of `ours` less `theirs`, seed by seed: the same seed gives both the same batches."""
    return over_seeds([a - b for a, b in zip(ours, theirs, strict=True)])
