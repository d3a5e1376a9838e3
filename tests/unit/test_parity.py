"""Parity: what counts as equal, and what never does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compressor.errors import ExportError
from compressor.preprocess import ImagePreprocessor, whole_output
from compressor.verify.parity import compare, require, torch_outputs

EXPECTED = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def off(amount: float, row: int = 2) -> NDArray[np.float32]:
    got = EXPECTED.copy()
    got[row, 1] += amount
    return got


def test_equal_outputs() -> None:
    parity = compare("a", "b", EXPECTED, EXPECTED, exact=True)
    assert parity.holds
    assert (parity.max_abs_error, parity.top1_agreement, parity.inputs) == (0, 1, 6)
    assert parity.mean_cosine == pytest.approx(1)
    assert require(parity) is parity


@pytest.mark.parametrize(("share", "holds"), [(0.9, True), (1.1, False), (-0.9, True), (-1.1, False)])
def test_the_bound_is_absolute_plus_relative(share: float, holds: bool) -> None:
    bound = 1e-5 + 1e-4 * abs(float(EXPECTED[2, 1]))
    parity = compare("a", "b", off(share * bound), EXPECTED, exact=True)
    assert parity.holds is holds
    assert parity.max_abs_error == pytest.approx(abs(share) * bound, rel=0.05)


def test_one_wrong_value_among_many_is_enough() -> None:
    many = np.ones((1000, 50), np.float32)
    got = many.copy()
    got[999, 49] = 1.001
    assert not compare("a", "b", got, many, exact=True).holds


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [True, False])
def test_what_is_not_finite_never_holds(exact: bool, value: float, both: bool) -> None:
    """Not even when both are wrong in the same way."""
    got = EXPECTED.copy()
    got[0, 0] = value
    parity = compare("a", "b", got, got if both else EXPECTED, exact=exact)
    assert not parity.holds
    assert np.isfinite([parity.max_abs_error, parity.mean_cosine]).all(), "result.json has no word for NaN"
    with pytest.raises(ExportError, match="a departs from b"):
        require(parity)


@pytest.mark.parametrize(("angle", "holds"), [(20, True), (30, False), (170, False)])
def test_int8_must_point_the_same_way(angle: float, holds: bool) -> None:
    """The cosine of 25.8 degrees is 0.9."""
    expected = np.tile(np.array([[1.0, 0.0]], np.float32), (5, 1))
    radians = np.deg2rad(angle)
    got = np.tile(np.array([[np.cos(radians), np.sin(radians)]], np.float32), (5, 1))
    parity = compare("a", "b", got, expected, exact=False)
    assert parity.holds is holds
    assert parity.mean_cosine == pytest.approx(np.cos(radians), abs=1e-6)


def test_agreement_of_the_largest() -> None:
    expected = np.eye(4, dtype=np.float32)
    got = expected[[0, 1, 2, 0]]
    assert compare("a", "b", got, expected, exact=False).top1_agreement == 0.75


def test_torch_outputs_are_the_modules_own() -> None:
    class Mean(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
            return (pixels.float().mean(dim=(1, 2)),)

    images = list(np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8))
    found = torch_outputs(Mean(), ImagePreprocessor(4, 4, 3), images, whole_output)
    np.testing.assert_allclose(found, [image.mean(axis=(0, 1)) for image in images], rtol=1e-6)
