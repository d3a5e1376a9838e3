"""The task metric on held-out data with its 95% interval, and what a student kept of the teacher's.

Intervals are percentile bootstraps over evaluation examples (Efron & Tibshirani 1993, chapter 13). For the share
kept, student and teacher are resampled together: they answer the same examples, so their errors go together and
the interval of the ratio is narrower than the two intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts import Interval, Quality
from compressor.errors import TeacherError

Metric = Callable[[NDArray[Any], NDArray[Any]], float]

RESAMPLES = 1000


def bootstrap(metric: Metric, answers: NDArray[Any], truth: NDArray[Any]) -> Interval:
    """The metric with its 95% interval; `answers` and `truth` are [N]."""
    draws = [metric(answers[rows], truth[rows]) for rows in _resamples(len(truth))]
    return _interval(metric(answers, truth), draws)


def worth(metric: Metric, teacher: NDArray[Any], truth: NDArray[Any]) -> float:
    """metric(teacher); both are [N]. Raises TeacherError where it is not above 0: no share of it could be kept."""
    found = metric(teacher, truth)
    if found == 0:
        raise TeacherError(
            f"the teacher is right on none of the {len(truth)} held-out examples: its classes are ordered otherwise"
            " than the data's, or it was trained for something else"
        )
    if not 0 < found < math.inf:  # also when it is NaN
        raise TeacherError(
            f"the teacher's metric is {found:.4g} on the {len(truth)} held-out examples: expected a number above 0,"
            " higher is better, of which a student keeps a share; of an error take 1 / (1 + error), say"
        )
    return found


def share_kept(metric: Metric, student: NDArray[Any], teacher: NDArray[Any], truth: NDArray[Any]) -> Interval:
    """metric(student) / metric(teacher) with its 95% interval, both resampled over the same rows; all are [N].

    Raises TeacherError as `worth`.
    """
    whole = worth(metric, teacher, truth)
    draws = []
    for rows in _resamples(len(truth)):
        teachers = metric(teacher[rows], truth[rows])
        if teachers > 0:
            draws.append(metric(student[rows], truth[rows]) / teachers)
    return _interval(metric(student, truth) / whole, draws)


def judge(
    name: str,
    metric_name: str,
    metric: Metric,
    answers: NDArray[Any],
    teacher_answers: NDArray[Any],
    truth: NDArray[Any],
    agreement: float,
) -> Quality:
    """One model's quality. `answers` [N] is what the metric takes: a score or a class per example."""
    same = answers is teacher_answers
    return Quality(
        name=name,
        metric=metric_name,
        quality=bootstrap(metric, answers, truth),
        kept=Interval(1.0, 1.0, 1.0) if same else share_kept(metric, answers, teacher_answers, truth),
        agreement=agreement,
        examples=len(truth),
    )


def _resamples(count: int) -> Iterator[NDArray[np.int64]]:
    # The same draws for every model: the comparison between models then has no luck of its own in it.
    generator = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield generator.integers(0, count, count)


def _interval(value: float, draws: list[float]) -> Interval:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))
