"""How alike two graphs answer whose outputs may be anything: each is compared, and the one that differs most counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.error_attribution import Closeness
from compressor.metrics import QUIETEST_DB, snr_between_db
from compressor.onnx_file import bytes_of
from compressor.onnxrt import all_outputs
from compressor.preprocess import Feed

# An output as one graph gives it for a feed, and as the other does.
_Pair = tuple[NDArray[Any], NDArray[Any]]
# What varies less beside its mean is float32's rounding of what is the same for every feed.
_CONSTANT = 1e-6


def closeness(model: Path, feeds: Sequence[Feed], expected: Sequence[Sequence[NDArray[Any]]]) -> Closeness:
    """Of the model at this path, whose outputs are named as the expected ones and in their order (`all_outputs`).

    Agreement and SNR are the least of all outputs', SNR of those that are floats. Raises BundleError where
    onnxruntime does not run it.
    """
    outputs = _by_output(model, feeds, expected)
    ratios = [_snr_db(pairs) for pairs in outputs if _floats(pairs)]
    known = [ratio for ratio in ratios if ratio is not None]
    return Closeness(min(map(agreement, outputs)), min(known, default=None), bytes_of(model))


def agreement(pairs: Sequence[_Pair]) -> float:
    """Of one output over all feeds: of floats the cosine of how both depart from float32's mean over the feeds; of
    anything else the share of equal elements, the mean over feeds.

    The mean is taken away since it says nothing of the feed: beside a large one, answers that are always the same would
    be alike. It is that of each element, or of all where feeds give different shapes; what does not vary is compared as
    it is. What is equal agrees by 1, also where it is zero; what is not finite by 0, and so does what a feed gives in
    another shape.
    """
    return _agreed(_products(pairs).mean(axis=0))


def agreements(model: Path, feeds: Sequence[Feed], expected: Sequence[Sequence[NDArray[Any]]]) -> NDArray[np.float64]:
    """What the agreement of any of these feeds is made of (`worst_agreement`): [feeds, outputs, 4]."""
    return np.stack([_products(pairs) for pairs in _by_output(model, feeds, expected)], axis=1)


def worst_agreement(products: NDArray[np.float64]) -> float:
    """The least of all outputs', of [feeds, outputs, 4] as `agreements` gives it."""
    return min(map(_agreed, products.mean(axis=0)))


def _by_output(model: Path, feeds: Sequence[Feed], expected: Sequence[Sequence[NDArray[Any]]]) -> list[list[_Pair]]:
    by_output = zip(zip(*all_outputs(model, feeds), strict=True), zip(*expected, strict=True), strict=True)
    return [list(zip(mine, theirs, strict=True)) for mine, theirs in by_output]


def _products(pairs: Sequence[_Pair]) -> NDArray[np.float64]:
    """Of one output, for each feed [feeds, 4]: got · expected, got · got, expected · expected, and whether they have
    one shape; where not, the former are 0.
    """
    if not _floats(pairs):
        return np.array([(_equal(got, expected), 1, 1, 1) for got, expected in pairs], np.float64)
    mean = _mean([expected for _, expected in pairs])
    found = np.zeros((len(pairs), 4))
    for row, (got, expected) in enumerate(pairs):
        if got.shape == expected.shape:
            with np.errstate(invalid="ignore"):
                mine, its = (np.subtract(one, mean, dtype=np.float64) for one in (got, expected))
                found[row] = np.vdot(mine, its), np.vdot(mine, mine), np.vdot(its, its), 1
    return found


def _mean(expected: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """What to take away: float32's mean over the feeds, or 0 where it is all that there is."""
    nothing = np.zeros(())
    if len({array.shape for array in expected}) == 1:
        mean = sum((array.astype(np.float64) / len(expected) for array in expected), start=nothing)
    else:
        count = sum(array.size for array in expected)
        mean = np.array(sum(float(array.sum(dtype=np.float64)) for array in expected) / max(count, 1))
    with np.errstate(invalid="ignore"):  # infinity beside a mean of infinity
        whole, varying = (
            sum(float(np.square(np.subtract(array, part, dtype=np.float64)).sum()) for array in expected)
            for part in (nothing, mean)
        )
    return mean if varying > _CONSTANT**2 * whole else nothing


def _agreed(products: NDArray[np.float64]) -> float:
    """The agreement that the means of `_products` make, [4]."""
    across, mine, its, fit = map(float, products)
    if its == 0:
        return fit * (mine == 0)
    cosine = across / np.sqrt(mine * its) if mine > 0 else 0.0  # what is not finite makes it NaN
    return fit * float(cosine) if np.isfinite(cosine) else 0.0


def _floats(pairs: Sequence[_Pair]) -> bool:
    return all(np.issubdtype(expected.dtype, np.floating) for _, expected in pairs)


def _equal(got: NDArray[Any], expected: NDArray[Any]) -> float:
    if got.shape != expected.shape:
        return 0.0
    return float(np.mean(got == expected)) if expected.size else 1.0


def _snr_db(pairs: Sequence[_Pair]) -> float | None:
    if any(got.shape != expected.shape for got, expected in pairs):
        return QUIETEST_DB
    got, expected = (np.concatenate([array.reshape(-1) for array in side]) for side in zip(*pairs, strict=True))
    with np.errstate(invalid="ignore"):  # what is not finite is nothing but noise
        return snr_between_db(got, expected)
