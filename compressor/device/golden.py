"""The golden cases of a bundle: whether a model still answers as it did where it was built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.device.manifest import GoldenCheck
from compressor.errors import BundleError
from compressor.intake.npz import UNREADABLE, open_npz
from compressor.metrics import mean_cosine

GOLDEN = "golden.npz"
Arrays = dict[str, NDArray[Any]]


def read_golden(folder: Path) -> Arrays:
    """All that golden.npz holds, under names such as `0.in.input_ids`. Raises BundleError where it cannot be read."""
    path = folder / GOLDEN
    try:
        with open_npz(path, BundleError) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise BundleError(f"{path}: the golden cases cannot be read: {error}") from None


def golden_array(arrays: Arrays, name: str, folder: Path) -> NDArray[Any]:
    """The array of that name. Raises BundleError where the bundle in `folder` lacks it."""
    if name not in arrays:
        raise BundleError(f"{folder}: {GOLDEN} lacks {name}")
    return arrays[name]


def check_output(got: NDArray[Any], expected: NDArray[Any], what: str, check: GoldenCheck) -> tuple[float, float]:
    """The mean cosine and the largest difference of an output and the golden one, which must be within the tolerances.

    Both [1, ...]. Raises BundleError, which names `what`, where they are not, or the output is not finite.
    """
    if got.shape != expected.shape or not np.isfinite(got).all():
        raise BundleError(f"{what}: expected finite values of shape {expected.shape}, got {got.shape}")
    cosine, error = mean_cosine(got, expected), float(np.abs(got - expected).max())
    bound = check.max_abs_error
    # `not >=`, so that NaN does not pass.
    if not cosine >= check.min_cosine or (bound is not None and not error <= bound):
        raise BundleError(
            f"{what}: cosine {cosine:.6f} and largest difference {error:.3g}, expected at least"
            f" {check.min_cosine} and at most {bound if bound is not None else 'any'}"
        )
    return cosine, error
