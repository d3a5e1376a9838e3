"""Batches that ranges must not be taken from: counted, named, and refused beyond a bound."""

from __future__ import annotations

import numpy as np

from compressor.errors import QuantizationError
from compressor.quantize.statistics import Calibration

OUTLIER_POWERS = 6  # a peak 2^6 times that of the median batch; below 1/64 of the range a histogram tells little
FEWEST_BATCHES = 8  # of which a median says something

_PEAK_OF_ONE = 150  # slot of magnitudes from 1 to 2, see calibrate.h


def check(calibration: Calibration, most: float) -> None:
    """Refuses a calibration of nothing, and one of which more than `most`, a share of all batches, are bad in one way:
    NaN or infinity in a tensor; only zeros in all inputs; or an outlier, whose largest magnitude in a tensor is 2^6
    times that of the median batch or more. The former two were left out; outliers were not.

    Raises QuantizationError, which names how many, one of them, the tensor, and what to do.
    """
    seen = calibration.batches + calibration.not_finite + calibration.all_zero
    if seen == 0:
        raise QuantizationError("calibration needs one batch or more, got none; raise quantize.calibration_samples")
    for count, what in (_not_finite(calibration), _all_zero(calibration), _outliers(calibration)):
        if count > most * seen:
            raise QuantizationError(
                f"calibration: {count:,} of {seen:,} batches {what}; "
                f"leave such examples out, or raise quantize.max_bad_batches above {most:.3g}"
            )
    if calibration.batches == 0:
        raise QuantizationError(f"calibration: none of {seen:,} batches can be used; check what the model is fed with")


def _not_finite(calibration: Calibration) -> tuple[int, str]:
    counts = calibration.counts
    if calibration.not_finite == 0:
        return 0, ""
    row = int(np.argmin(counts["first_not_finite"]))  # of several in one batch the first of the graph
    batch, nans, infinities = (int(counts[name][row]) for name in ("first_not_finite", "nans", "infinities"))
    return calibration.not_finite, (
        f"have NaN or infinity, the first of them batch {batch} in {calibration.tensors[row]} "
        f"({nans:,} NaN and {infinities:,} infinite values there in all)"
    )


def _all_zero(calibration: Calibration) -> tuple[int, str]:
    return calibration.all_zero, f"are zero in every input, the first of them batch {calibration.first_all_zero}"


def _outliers(calibration: Calibration) -> tuple[int, str]:
    """The most outliers that a tensor has. Batches in which it is all zero have no say in its median."""
    worst = 0, ""
    for row, name in enumerate(calibration.tensors):
        peaks = calibration.counts["peaks"][row].copy()
        peaks[0] = 0
        if peaks.sum() < FEWEST_BATCHES:
            continue
        median = int(np.searchsorted(np.cumsum(peaks), (peaks.sum() + 1) // 2))
        beyond = slice(median + OUTLIER_POWERS, None)
        count = int(peaks[beyond].sum())
        if count > worst[0]:
            first = int(calibration.counts["first_with_peak"][row][beyond].min())
            high = int(np.flatnonzero(peaks)[-1])
            worst = (
                count,
                (
                    f"are outliers in {name}, the first of them batch {first}: up to 2^{high - _PEAK_OF_ONE}, "
                    f"where the median batch reaches 2^{median - _PEAK_OF_ONE}"
                ),
            )
    return worst
