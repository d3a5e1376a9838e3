"""What calibration keeps of the tensors of a model, and how several such become one.

All that is kept are integers and extremes, so it does not depend on the order of the batches, and parts made by several
processes merge into what one would have found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import QuantizationError

NO_BATCH = np.iinfo(np.int64).max

_SUM_POINT = 298  # kPoint of csrc/include/compressor/calibrate.h

# How two counts of one thing become one; histograms are first brought to one width.
MERGED_BY: dict[str, np.ufunc] = {
    "values": np.add,
    "zeros": np.add,
    "low": np.minimum,
    "high": np.maximum,
    "sum": np.add,
    "squares": np.add,
    "exponent": np.maximum,
    "bins": np.add,
    "peaks": np.add,
    "first_with_peak": np.minimum,
    "nans": np.add,
    "infinities": np.add,
    "first_not_finite": np.minimum,
}


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """One tensor over all batches that count. `low` and `high` are its extremes, infinite where it never had a value;
    bin i of `bins`, int64 [8192], counts (i - 4096) * width <= value < (i - 4095) * width.
    """

    name: str
    values: int
    zeros: int
    low: float
    high: float
    mean: float
    deviation: float
    width: float
    bins: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a sweep found. `counts` has a row for each of `tensors`, by the members of TensorStatistics in calibrate.h.

    `batches` are those that count. Left out are those with NaN or infinity in a tensor, and those with nothing but
    zeros in all their inputs, of which `first_all_zero` is the smallest number.
    """

    tensors: tuple[str, ...]
    batches: int
    not_finite: int
    all_zero: int
    first_all_zero: int
    counts: Mapping[str, NDArray[Any]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Calibration):
            return NotImplemented
        return self._scalars == other._scalars and all(
            np.array_equal(self.counts[name], other.counts[name]) for name in MERGED_BY
        )

    @property
    def _scalars(self) -> tuple[object, ...]:
        return self.tensors, self.batches, self.not_finite, self.all_zero, self.first_all_zero

    def statistics(self) -> list[TensorStatistics]:
        return [self._of(row) for row in range(len(self.tensors))]

    def _of(self, row: int) -> TensorStatistics:
        at = {name: array[row] for name, array in self.counts.items()}
        values = int(at["values"])
        mean = _sum(at["sum"]) / values if values else 0.0
        return TensorStatistics(
            name=self.tensors[row],
            values=values,
            zeros=int(at["zeros"]),
            low=float(at["low"]),
            high=float(at["high"]),
            mean=mean,
            deviation=max(_sum(at["squares"]) / values - mean * mean, 0.0) ** 0.5 if values else 0.0,
            width=2.0 ** int(at["exponent"]),
            bins=at["bins"],
        )


def _sum(digits: NDArray[np.int64]) -> float:
    """The value of an ExactSum, rounded once."""
    whole = sum(int(digit) << (32 * place) for place, digit in enumerate(digits))
    return whole / (1 << _SUM_POINT)


def merge(parts: Sequence[Calibration]) -> Calibration:
    """One calibration of several over different batches of one model: equal to that of all batches in one sweep.

    Raises QuantizationError when they are not of the same tensors.
    """
    return reduce(_merge_two, parts)


def _merge_two(one: Calibration, other: Calibration) -> Calibration:
    if one.tensors != other.tensors:
        differing = sorted(set(one.tensors) ^ set(other.tensors))
        raise QuantizationError(
            f"calibrations of different tensors do not merge ({', '.join(differing[:3]) or 'their order differs'}); "
            "make them from one model"
        )
    exponent = np.maximum(one.counts["exponent"], other.counts["exponent"])
    left, right = ({**part.counts, "bins": _widened(part.counts, exponent)} for part in (one, other))
    return Calibration(
        one.tensors,
        one.batches + other.batches,
        one.not_finite + other.not_finite,
        one.all_zero + other.all_zero,
        min(one.first_all_zero, other.first_all_zero),
        {name: by(left[name], right[name]) for name, by in MERGED_BY.items()},
    )


def _widened(counts: Mapping[str, NDArray[Any]], exponent: NDArray[np.int32]) -> NDArray[np.int64]:
    """The histograms with bins of 2^exponent, neighbours added up."""
    bins: NDArray[np.int64] = counts["bins"].copy()
    for row, times in enumerate(exponent - counts["exponent"]):
        bins[row] = doubled(bins[row], int(times))
    return bins


def doubled(bins: NDArray[np.int64], times: int) -> NDArray[np.int64]:
    """A histogram around zero of the same length with bins 2^times as wide."""
    half = len(bins) // 2
    for _ in range(min(times, half.bit_length())):
        inner = bins.reshape(half, 2).sum(1)
        bins = np.concatenate([np.zeros(half // 2, np.int64), inner, np.zeros(half - half // 2, np.int64)])
    return bins
