"""How alike two graphs answer whose outputs may be anything: each is compared, and the one that differs most counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.error_attribution import Closeness
from compressor.metrics import QUIETEST_DB, mean_cosine, snr_between_db
from compressor.onnx_file import bytes_of
from compressor.onnxrt import all_outputs
from compressor.preprocess import Feed

# An output as one graph gives it for a feed, and as the other does.
_Pair = tuple[NDArray[Any], NDArray[Any]]


def closeness(model: Path, feeds: Sequence[Feed], expected: Sequence[Sequence[NDArray[Any]]]) -> Closeness:
    """Of the model at this path, whose outputs are named as the expected ones and in their order (`all_outputs`).

    Agreement and SNR are the least of all outputs', SNR of those that are floats. Raises BundleError where
    onnxruntime does not run it.
    """
    by_output = zip(zip(*all_outputs(model, feeds), strict=True), zip(*expected, strict=True), strict=True)
    outputs = [list(zip(mine, theirs, strict=True)) for mine, theirs in by_output]
    ratios = [_snr_db(pairs) for pairs in outputs if _floats(pairs)]
    known = [ratio for ratio in ratios if ratio is not None]
    return Closeness(min(map(agreement, outputs)), min(known, default=None), bytes_of(model))


def agreement(pairs: Sequence[_Pair]) -> float:
    """Of one output, the mean over feeds: of floats the cosine of all that a feed gives as one vector; of anything else
    the share of equal elements.

    Of single numbers a cosine would tell the sign alone: those of all feeds make one vector. What is equal agrees by 1,
    also where it is zero; what has another shape, or is not finite, by 0.
    """
    if not _floats(pairs):
        return float(np.mean([_equal(got, expected) for got, expected in pairs]))
    if all(expected.size == 1 for _, expected in pairs):
        got, expected = (np.concatenate([array.reshape(-1) for array in side]) for side in zip(*pairs, strict=True))
        pairs = [(got, expected)]
    return float(np.mean([_cosine(got, expected) for got, expected in pairs]))


def _floats(pairs: Sequence[_Pair]) -> bool:
    return all(np.issubdtype(expected.dtype, np.floating) for _, expected in pairs)


def _equal(got: NDArray[Any], expected: NDArray[Any]) -> float:
    if got.shape != expected.shape:
        return 0.0
    return float(np.mean(got == expected)) if expected.size else 1.0


def _cosine(got: NDArray[Any], expected: NDArray[Any]) -> float:
    if np.array_equal(got, expected):
        return 1.0
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return 0.0
    return mean_cosine(got.reshape(1, -1), expected.reshape(1, -1))


def _snr_db(pairs: Sequence[_Pair]) -> float | None:
    if any(got.shape != expected.shape for got, expected in pairs):
        return QUIETEST_DB
    got, expected = (np.concatenate([array.reshape(-1) for array in side]) for side in zip(*pairs, strict=True))
    with np.errstate(invalid="ignore"):  # what is not finite is nothing but noise
        return snr_between_db(got, expected)
