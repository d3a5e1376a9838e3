"""Intervals: they cover what they should cover, and pairing makes them narrower."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from compressor.errors import TeacherError
from compressor.metrics import accuracy, auroc
from compressor.verify import quality
from compressor.verify.quality import bootstrap, judge, share_kept


def test_the_interval_is_that_of_the_binomial() -> None:
    """Accuracy 0.8 on 400 examples: the bootstrap must come near the exact interval."""
    truth = np.ones(400, dtype=np.int64)
    answers = np.r_[np.ones(320, dtype=np.int64), np.zeros(80, dtype=np.int64)]
    found = bootstrap(accuracy, answers, truth)
    exact = stats.binomtest(320, 400).proportion_ci(0.95)
    assert found.value == 0.8
    assert found.low == pytest.approx(exact.low, abs=0.01)
    assert found.high == pytest.approx(exact.high, abs=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 samples with a known accuracy of 0.7: about 190 cover it; below 180, or all, is another interval."""
    monkeypatch.setattr(quality, "RESAMPLES", 200)
    generator = np.random.default_rng(1)
    truth = np.ones(150, dtype=np.int64)
    intervals = [bootstrap(accuracy, (generator.random(150) < 0.7).astype(np.int64), truth) for _ in range(200)]
    covering = sum(found.low <= 0.7 <= found.high for found in intervals)
    assert 180 <= covering < 200


def correlated(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Student and teacher scores that err on the same examples."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, 500)
    teacher = truth + generator.standard_normal(500)
    return teacher + 0.3 * generator.standard_normal(500), teacher, truth


@pytest.mark.parametrize("seed", range(3))
def test_pairing_narrows_the_share_kept(seed: int) -> None:
    student, teacher, truth = correlated(seed)
    kept = share_kept(auroc, student, teacher, truth)
    own, his = bootstrap(auroc, student, truth), bootstrap(auroc, teacher, truth)
    independent = own.high / his.low - own.low / his.high
    assert kept.value == auroc(student, truth) / auroc(teacher, truth)
    assert kept.low < kept.value < kept.high
    assert kept.high - kept.low < independent / 2


def test_equal_answers_keep_exactly_everything() -> None:
    _, teacher, truth = correlated(0)
    kept = share_kept(auroc, teacher.copy(), teacher, truth)
    assert (kept.low, kept.value, kept.high) == (1.0, 1.0, 1.0)
    judged = judge("teacher", "AUROC", auroc, teacher, teacher, truth, 1.0)
    assert (judged.kept.low, judged.kept.high) == (1.0, 1.0)
    assert judged.examples == 500


def test_the_same_data_gives_the_same_interval() -> None:
    student, teacher, truth = correlated(3)
    assert share_kept(auroc, student, teacher, truth) == share_kept(auroc, student, teacher, truth)


def test_resamples_that_hold_one_class_do_not_spoil_the_interval() -> None:
    """Of four examples with one positive, about a third of the resamples have no AUROC."""
    found = bootstrap(auroc, np.array([0.9, 0.1, 0.2, 0.95]), np.array([1, 0, 0, 0]))
    assert np.isfinite([found.value, found.low, found.high]).all()


def test_a_teacher_that_is_always_wrong_has_no_share_to_keep() -> None:
    truth = np.zeros(20, dtype=np.int64)
    with pytest.raises(TeacherError, match="right on none of the 20"):
        share_kept(accuracy, truth, truth + 1, truth)


@pytest.mark.parametrize("worth", [-0.3, float("nan"), float("inf")])
def test_a_metric_that_is_not_above_0_has_no_share_to_keep(worth: float) -> None:
    """Of -RMSE a student that is ten times as wrong would keep 1000%."""
    truth = np.zeros(20, dtype=np.int64)
    with pytest.raises(TeacherError, match=r"the teacher's metric is .* expected a number above 0, higher is better"):
        share_kept(lambda *_: worth, truth, truth, truth)


def test_resamples_in_which_the_teacher_is_worth_nothing_do_not_count() -> None:
    """R2 of few examples, of which one is far off: without it the rest say little, and may say less than nothing."""

    def r2(answers: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
        spread = ((truth - truth.mean()) ** 2).sum()
        return float(1 - ((answers - truth) ** 2).sum() / spread) if spread else math.nan

    truth = np.r_[np.linspace(0, 1, 19), 10.0]
    teacher = truth + np.r_[np.full(19, 0.7), 0.0]
    kept = share_kept(r2, truth + np.r_[np.full(19, 0.9), 0.0], teacher, truth)
    drawn = np.random.default_rng(0)
    rows = [drawn.integers(0, 20, 20) for _ in range(quality.RESAMPLES)]
    assert any(r2(teacher[chosen], truth[chosen]) < 0 for chosen in rows), "which would turn the share around"
    assert 0 < kept.value < 1
    assert kept.high < 1


def test_a_teacher_that_is_hardly_ever_right_has_a_finite_interval() -> None:
    """A third of the resamples of twenty miss its one right answer."""
    truth = np.zeros(20, dtype=np.int64)
    kept = share_kept(accuracy, truth, np.r_[0, np.ones(19, dtype=np.int64)], truth)
    assert np.isfinite([kept.low, kept.high]).all()
