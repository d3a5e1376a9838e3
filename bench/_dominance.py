"""Which of several models are better than which others in size, speed and quality, beyond the noise of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts import Interval

Metric = Callable[[NDArray[Any], NDArray[np.int64]], float]
"""The worth of some rows of answers, higher is better."""

# Sizes that differ by less are alike.
SAME_SIZE = 0.01
RESAMPLES = 1000


@dataclass(frozen=True)
class Point:
    """A model: `speed` is its interval over one model that all were timed beside, `answers` [N, ...] its answers to the
    same N rows as those of all others.
    """

    tool: str
    name: str
    bytes: int
    speed: Interval
    answers: NDArray[Any]


def dominates(one: Point, other: Point, metric: Metric) -> bool:
    """Whether `one` is no worse in any of the three, and better in one of them."""
    signs = [_size(one, other), _speed(one, other), _quality(one, other, metric)]
    return min(signs) >= 0 and max(signs) > 0


def dominating(one: Point, others: Iterable[Point], metric: Metric) -> str:
    """The name of the first of `others` that dominates `one`; empty where none does."""
    return next((other.name for other in others if dominates(other, one, metric)), "")


Sign = Literal[-1, 0, 1]


def _size(one: Point, other: Point) -> Sign:
    if one.bytes < other.bytes * (1 - SAME_SIZE):
        return 1
    return -1 if other.bytes < one.bytes * (1 - SAME_SIZE) else 0


def _speed(one: Point, other: Point) -> Sign:
    if one.speed.low > other.speed.high:
        return 1
    return -1 if other.speed.low > one.speed.high else 0


def _quality(one: Point, other: Point, metric: Metric) -> Sign:
    gained = difference(one.answers, other.answers, metric)
    if gained.low > 0:
        return 1
    return -1 if gained.high < 0 else 0


def difference(one: NDArray[Any], other: NDArray[Any], metric: Metric) -> Interval:
    """metric(one) - metric(other), with the 95% interval of a bootstrap over rows, drawn for both at once."""
    draw = np.random.default_rng(0)
    count = len(one)
    rows = [draw.integers(0, count, count) for _ in range(RESAMPLES)]
    draws = [metric(one, some) - metric(other, some) for some in rows]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    everything = np.arange(count)
    return Interval(metric(one, everything) - metric(other, everything), float(low), float(high))
