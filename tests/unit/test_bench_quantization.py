"""`python -m bench quantization`: who dominates whom, and how a peer is run; with models made for this."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import _quantization_peers, quantization
from bench._dominance import Point, difference, dominates, dominating
from bench._made_onnx import transformer
from bench._quantization_models import Subject
from compressor.artifacts import Interval
from compressor.benchmark import BenchmarkSettings
from compressor.errors import BenchmarkError
from compressor.metrics import accuracy
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed

RIGHT = np.ones(400, np.int64)
WRONG = np.where(np.arange(400) < 100, 0, 1)  # on a quarter
NEARLY = np.where(np.arange(400) < 1, 0, 1)  # on one


def metric(answers: NDArray[Any], rows: NDArray[np.int64]) -> float:
    return accuracy(answers[rows], RIGHT[rows])


def point(size: int, low: float, high: float, answers: NDArray[Any], name: str = "one") -> Point:
    return Point("tool", name, size, Interval((low + high) / 2, low, high), answers)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (point(100, 2.0, 2.2, RIGHT), point(100, 1.0, 1.2, RIGHT), True),  # faster
        (point(100, 1.0, 2.0, RIGHT), point(100, 1.5, 2.5, RIGHT), False),  # the intervals overlap
        (point(98, 1.0, 2.0, RIGHT), point(100, 1.5, 2.5, RIGHT), True),  # smaller, and not shown to be slower
        (point(995, 1.0, 2.0, RIGHT), point(1000, 1.0, 2.0, RIGHT), False),  # smaller by half a percent
        (point(50, 1.0, 1.2, RIGHT), point(100, 1.3, 1.5, RIGHT), False),  # smaller, but slower
        (point(100, 1.0, 1.2, RIGHT), point(100, 1.0, 1.2, WRONG), True),  # better
        (point(50, 3.0, 3.2, WRONG), point(100, 1.0, 1.2, RIGHT), False),  # smaller and faster, but worse
        (point(50, 3.0, 3.2, NEARLY), point(100, 1.0, 1.2, RIGHT), True),  # worse on one of 400: noise
    ],
)
def test_dominates_beyond_noise(one: Point, other: Point, expected: bool) -> None:
    assert dominates(one, other, metric) is expected
    assert not dominates(other, one, metric) or not expected


def test_nothing_dominates_itself() -> None:
    one = point(100, 1.0, 2.0, WRONG)
    assert not dominates(one, one, metric)


def test_dominating_is_the_first_that_does() -> None:
    worst = point(100, 1.0, 1.1, WRONG)
    others = [point(200, 1.0, 1.1, RIGHT, "larger"), point(90, 1.0, 1.1, WRONG, "smaller"), point(10, 9, 9, RIGHT)]
    assert dominating(worst, others, metric) == "smaller"
    assert dominating(others[-1], [worst, *others[:2]], metric) == ""


def test_the_interval_of_a_difference_is_drawn_for_both_at_once() -> None:
    # Of the same rows both are wrong: apart, either's accuracy has an interval of some 0.08.
    same = difference(WRONG, WRONG.copy(), metric)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    found = difference(RIGHT, WRONG, metric)
    assert found.value == 0.25
    # Four standard errors, sqrt(0.25 * 0.75 / 400), of a share of a quarter are 0.0866.
    assert found.high - found.low == pytest.approx(0.085, abs=0.01)


class _Feeds:
    """Examples are rows of tokens."""

    def encode(self, inputs: Any) -> list[NDArray[Any]]:
        return list(inputs)

    def collate(self, examples: Any) -> Feed:
        return {"input_ids": np.stack(examples)}


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    path, _ = transformer(tmp_path, layers=1)
    examples = list(np.random.default_rng(0).integers(0, 1000, (8, 16)))
    feeds = [_Feeds().collate([example]) for example in examples]

    def signs(model: Path) -> NDArray[np.bool_]:
        session = open_session(model)
        return np.concatenate([run_one(session, feed)[0] > 0 for feed in feeds])

    expected = signs(path)
    return Subject(
        describe_onnx(path, "made", "float32"),
        _Feeds(),
        examples,
        signs,
        "same signs",
        lambda answers, rows: accuracy(answers[rows], expected[rows]),
        tuple(feeds),
        has_text=True,
    )


def test_a_peer_is_run_by_its_python_on_all_examples(subject: Subject, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.npz"
    _quantization_peers.write_calibration(subject, calibration)
    python = Path(sys.executable)  # has onnxruntime
    ways = ("dynamic", "static per-channel")
    for number, way in enumerate(ways):
        folder = tmp_path / str(number)
        made = _quantization_peers.quantized(python, "onnxruntime", way, subject.model.path, calibration, folder)
        assert made.path is not None, made.why_not
        assert made.path.stat().st_size < 0.4 * subject.model.bytes
        everything = np.arange(8)
        assert 0.9 < subject.metric(subject.judge(made.path), everything) < 1


def test_a_peer_that_fails_says_why(subject: Subject, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.npz"
    _quantization_peers.write_calibration(subject, calibration)
    made = _quantization_peers.quantized(
        Path(sys.executable), "nncf", "mixed", subject.model.path, calibration, tmp_path / "scratch"
    )
    assert made.path is None
    assert made.why_not == "ModuleNotFoundError: No module named 'nncf'"


def test_a_peer_that_is_not_installed_is_not_installed_by_a_quick_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_quantization_peers, "MODELS", tmp_path)
    with pytest.raises(BenchmarkError, match="not installed yet"):
        _quantization_peers.python_of("nncf", install=False)
    assert not list(tmp_path.iterdir())


def test_all_that_was_made_is_judged_and_timed_together(subject: Subject) -> None:
    work = quantization.Work(
        subject, {"dynamic": {"precisions": ["dynamic-int8"]}}, BenchmarkSettings(min_samples=60, budget_s=5.0)
    )
    rows, _, ahead = quantization._compared(
        work, {"onnxruntime": Path(sys.executable), "nncf": Path(sys.executable)}, True
    )
    named = {row["name"]: row for row in rows}
    assert list(named) == [
        "float32",
        "compressor: dynamic",
        "onnxruntime: static per-channel",
        "nncf: mixed",
        "nncf: all",
    ]
    assert named["nncf: mixed"]["why_not"].startswith("ModuleNotFoundError")
    assert "nncf" in ahead
    assert named["nncf: all"]["why_not"] == "none of its results runs: counts as beaten"
    assert named["float32"]["quality"] == 1
    assert named["float32"]["over_float32"] == 0
    for name in list(named)[1:3]:
        assert named[name]["mb"] < 0.4 * named["float32"]["mb"]
        assert named[name]["over_float32"] == pytest.approx(named[name]["quality"] - 1)
