"""onnxruntime's divergence of a clipped histogram from its quantized form, written down once more, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def divergence(counts: NDArray[np.int64], half: int, levels: int = 128) -> float:
    """Of the range that reaches `half` bins to the left of the middle and half + 1 to the right."""
    middle = len(counts) // 2
    begin, end = middle - half, min(middle + half + 1, len(counts))
    inside = counts[begin:end]
    clipped = inside.copy()
    clipped[0] += counts[:begin].sum()
    clipped[-1] += counts[end:].sum()
    width = len(inside) // levels
    sums = inside[: levels * width].reshape(levels, width).sum(1)
    sums[-1] += inside[levels * width :].sum()
    used = (clipped[: levels * width] != 0).reshape(levels, width).sum(1)
    spread = np.zeros(len(inside))
    spread[: levels * width] = np.repeat(sums // np.maximum(used, 1) * (used > 0), width)
    p, q = _smoothed(clipped.astype(np.float64)), _smoothed(spread)
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


def _smoothed(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    zeros = counts == 0
    return np.where(zeros, 1e-4, counts - 1e-4 * zeros.sum() / (~zeros).sum())
