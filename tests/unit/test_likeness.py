"""Two graphs are as alike as their worst output, whatever that one's shape and kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compressor.likeness import agreement, agreements, closeness, worst_agreement
from compressor.onnxrt import all_outputs

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def floats(*numbers: Any) -> NDArray[np.float32]:
    return np.array(numbers, np.float32)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # Float32's mean over feeds is [2, 2]: [1, 2] and [-1, -2] beside it against [1, -2] and [-1, 2].
        ([(floats([3, 4]), floats([3, 0])), (floats([1, 0]), floats([1, 4]))], (2 - 8) / 10),
        ([(floats([1, 2], [3, 4]), floats([1, 3], [2, 4]))], (1 + 6 + 6 + 16) / 30),  # of a matrix as one vector
        ([(floats(1, 3), floats(1, 2)), (floats(1, 3), floats(1, 2))], 7 / np.sqrt(10 * 5)),  # what never varies
        ([(floats(0, 0), floats(0, 0))], 1.0),
        ([(floats(0, 0), floats(0, 1))], 0.0),
        ([(floats(1, 2), floats(1, 2, 3))], 0.0),
        ([(floats(), floats()), (floats(1), floats())], 0.5),
        ([(floats(1, 2), floats(1, 2)), (floats(1), floats(0, 3))], 0.5),
        ([(floats(np.nan, 2), floats(1, 2)), (floats(1, 2), floats(np.inf, 2))], 0.0),
        ([(floats(1, 2), floats(1, 2)), (floats(3, 5), floats(3, 5)), (floats(np.nan, 2), floats(1, 2))], 0.0),
        # Of another length each, the mean of all: 3.
        ([(floats(4), floats(5)), (floats(2, 4), floats(1, 3))], (2 + 2) / np.sqrt((1 + 1 + 1) * (4 + 4))),
        # One number for each example.
        ([(floats(1)[0], floats(3)[0]), (floats(3)[0], floats(1)[0])], -1.0),
        ([(np.array([1, 2, 3, 9]), np.array([1, 2, 3, 4])), (np.array([5]), np.array([5, 5]))], 0.75 / 2),
        ([(np.array([True]), np.array([True]))], 1.0),
    ],
)
def test_agreement_by_hand(pairs: list[tuple[NDArray[Any], NDArray[Any]]], expected: float) -> None:
    assert agreement(pairs) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("offset", [0, 20, -1e4])
def test_an_offset_hides_nothing(offset: float) -> None:
    """Answers that are always the mean are alike in nothing; near ones are as near beside any offset."""
    random = np.random.default_rng(0)
    varying = random.standard_normal((64, 1, 10))
    noise = random.standard_normal((64, 1, 10)) / 10
    expected = [(one + offset).astype(np.float32) for one in varying]
    constant = np.mean(expected, axis=0)
    assert abs(agreement([(constant, one) for one in expected])) < 0.01
    beside = [(one + more + offset).astype(np.float32) for one, more in zip(varying, noise, strict=True)]
    exact = np.corrcoef((varying + noise).ravel(), varying.ravel())[0, 1]
    assert agreement(list(zip(beside, expected, strict=True))) == pytest.approx(exact, abs=2e-3)
    assert agreement([(one, one) for one in expected]) == 1


def test_the_output_that_differs_most_counts(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    """A scalar, what lies across the batch, places whose number depends on the values, and the usual rows."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["across"], perm=[1, 0]),
        helper.make_node("Mul", ["rows", "k"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled"], ["total"], keepdims=0),
        helper.make_node("Relu", ["rows"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["places"]),
    ]
    outputs = {
        "total": (FLOAT, []),
        "across": (FLOAT, [3, "n"]),
        "places": (INT64, [2, "k"]),
        "rows": (FLOAT, ["n", 3]),
    }
    random = np.random.default_rng(0)
    weights = random.standard_normal((4, 3)).astype(np.float32)

    def model(name: str, k: float) -> Path:
        arrays = {"w": weights, "k": np.array(k, np.float32)}
        return make_onnx(tmp_path / name, nodes, {"x": (FLOAT, ["n", 4])}, outputs, arrays)

    feeds = [{"x": random.standard_normal((1, 4)).astype(np.float32)} for _ in range(8)]
    expected = all_outputs(model("float32.onnx", 1), feeds)
    same = closeness(tmp_path / "float32.onnx", feeds, expected)
    assert (same.agreement, same.snr_db, same.bytes) == (1.0, None, (tmp_path / "float32.onnx").stat().st_size)
    found = closeness(model("other.onnx", -0.5), feeds, expected)
    totals = np.concatenate([feed["x"] @ weights for feed in feeds]).astype(np.float64).sum(axis=1)
    its, mine = totals - totals.mean(), -0.5 * totals - totals.mean()
    assert found.agreement == pytest.approx(mine @ its / np.linalg.norm(mine) / np.linalg.norm(its), abs=1e-6)
    assert found.snr_db == pytest.approx(20 * np.log10(1 / 1.5))


def test_the_agreement_of_a_part_of_the_feeds(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    """By hand: of eight feeds one is clipped, at 1; float32's mean is that of all eight."""
    interface = {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, ["n", 2])}
    bounds = {"low": np.float32(-9), "high": np.float32(1)}
    clip = [helper.make_node("Clip", ["x", "low", "high"], ["y"])]
    model = make_onnx(tmp_path / "clip.onnx", clip, *interface, bounds)
    x = np.random.default_rng(0).uniform(-1, 1, (8, 2)).astype(np.float32)
    x[3] = 5, -1
    found = agreements(model, [{"x": row[None]} for row in x], [[row[None]] for row in x])
    assert found.shape == (8, 1, 4)
    its = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    mine = np.minimum(x, 1) - x.astype(np.float64).mean(axis=0)
    for rows in (np.arange(8), np.array([0, 3, 3]), np.array([0, 1, 2, 4])):
        cosine = (mine[rows] * its[rows]).sum() / np.linalg.norm(mine[rows]) / np.linalg.norm(its[rows])
        assert worst_agreement(found[rows]) == pytest.approx(cosine, abs=1e-6)
    assert worst_agreement(found[[0, 1, 2, 4]]) == 1
