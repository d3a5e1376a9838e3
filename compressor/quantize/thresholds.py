"""From the statistics of a tensor to the range that 8 bits shall cover: (low, high), within its extremes.

Each method is a pure function of one TensorStatistics; all are answered by the same sweep. A tensor that never had a
value gets (0, 0).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from compressor import native
from compressor.quantize.statistics import Calibration, TensorStatistics, doubled
from compressor.recipe_quantize import RangeMethod

Range = tuple[float, float]

PERCENTILE = 0.99999  # the share of values within the range; onnxruntime's default
ENTROPY_LEVELS = 128  # and this its num_quantized_bins
_ENTROPY_DOUBLINGS = 2  # 2,048 bins around zero, of which the range fills half or more
_MSE_STEPS = 128  # candidates for each end of the range
_STEPS_8_BIT = 255


def ranges(calibration: Calibration, method: RangeMethod) -> dict[str, Range]:
    """The range of every tensor. Threads, since most of the time is spent outside of the interpreter."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(_METHODS[method], calibration.statistics())
        return dict(zip(calibration.tensors, found, strict=True))


def minmax(tensor: TensorStatistics) -> Range:
    """The extremes: those of onnxruntime's MinMaxCalibrater."""
    return (tensor.low, tensor.high) if tensor.values else (0.0, 0.0)


def percentile(tensor: TensorStatistics, share: float = PERCENTILE) -> Range:
    """The quantiles that leave out (1 - share) / 2 of the values on either side, linear within a bin.

    The method of onnxruntime's PercentileCalibrater(symmetric=False), which answers with the left edge of the bin that
    a quantile lies in: the two differ by no more than a bin of each.
    """
    if not tensor.values:
        return 0.0, 0.0
    cut = (1.0 - share) / 2.0
    return _quantile(tensor, cut), _quantile(tensor, 1.0 - cut)


def _quantile(tensor: TensorStatistics, share: float) -> float:
    upto = np.cumsum(tensor.bins)
    place = share * tensor.values
    bin_ = int(np.searchsorted(upto, place, side="left"))
    while tensor.bins[bin_] == 0:  # share 0 lies before the first value
        bin_ += 1
    inside = (place - (upto[bin_] - tensor.bins[bin_])) / tensor.bins[bin_]
    return _within(tensor, (bin_ - len(tensor.bins) // 2 + inside) * tensor.width)


def entropy(tensor: TensorStatistics, levels: int = ENTROPY_LEVELS) -> Range:
    """The range around zero whose histogram in `levels` steps diverges least from the unquantized one (Kullback and
    Leibler; Migacz, GTC 2017), as onnxruntime's EntropyCalibrater defines it; on a histogram of 1,024 bins or more
    between the largest magnitude and its negative. onnxruntime's default is 128, where only one range is looked at:
    the extremes.
    """
    if not tensor.values:
        return 0.0, 0.0
    bins = doubled(tensor.bins, _ENTROPY_DOUBLINGS)
    width = tensor.width * 2**_ENTROPY_DOUBLINGS
    middle = len(bins) // 2
    used = np.flatnonzero(bins)
    reach = max(middle - int(used[0]), int(used[-1]) + 1 - middle, levels // 2)
    half = native.load().entropy_half_width(bins[middle - reach : middle + reach], levels)
    return _within(tensor, -half * width), _within(tensor, min(half + 1, reach) * width)


def mse(tensor: TensorStatistics) -> Range:
    """The range with the least mean squared error of 8-bit affine quantization, of 128 candidates for each end.

    Seen from the histogram: what lies outside of the range is clipped to its end, what is nearer to zero than half a
    step becomes zero, and the rest is off by step^2 / 12 (Widrow and Kollar, 2008). Zero is in every range, and exact.
    """
    if not tensor.values:
        return 0.0, 0.0
    shares = np.arange(1, _MSE_STEPS + 1) / _MSE_STEPS
    lows, highs = (min(tensor.low, 0.0) * shares)[:, None], (max(tensor.high, 0.0) * shares)[None, :]
    half_steps = (highs - lows) / _STEPS_8_BIT / 2.0
    middle = len(tensor.bins) // 2
    centres = (np.arange(len(tensor.bins)) - middle + 0.5) * tensor.width
    counts = tensor.bins.astype(np.float64)
    counts[middle] -= tensor.zeros
    # Up to each bin: how many values, their sum, and that of their squares.
    number, total, squares = (np.append(0.0, np.cumsum(counts * centres**power)) for power in (0, 1, 2))
    first, last = np.searchsorted(centres, lows), np.searchsorted(centres, highs)
    near_first = np.searchsorted(centres, np.maximum(-half_steps, lows))
    near_last = np.searchsorted(centres, np.minimum(half_steps, highs))
    clipped_low = squares[first] - 2.0 * lows * total[first] + lows**2 * number[first]
    clipped_high = (
        (squares[-1] - squares[last]) - 2.0 * highs * (total[-1] - total[last]) + highs**2 * (number[-1] - number[last])
    )
    near_zero = squares[near_last] - squares[near_first]
    rounded = (number[last] - number[first] - number[near_last] + number[near_first]) * half_steps**2 / 3.0
    error = clipped_low + clipped_high + near_zero + rounded
    low, high = np.unravel_index(int(np.argmin(error)), error.shape)
    return _within(tensor, float(lows[low, 0])), _within(tensor, float(highs[0, high]))


def _within(tensor: TensorStatistics, value: float) -> float:
    return min(max(value, tensor.low), tensor.high)


_METHODS: dict[RangeMethod, Callable[[TensorStatistics], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
