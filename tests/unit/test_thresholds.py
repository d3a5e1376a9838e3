"""Ranges from statistics: NumPy's quantiles, onnxruntime's collectors, and every range tried out."""

from __future__ import annotations

import numpy as np
import pytest
from entropy_reference import divergence
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

from compressor import native
from compressor.quantize.statistics import NO_BATCH, Calibration, TensorStatistics
from compressor.quantize.thresholds import Range, entropy, minmax, mse, percentile, ranges

GENERATOR = np.random.default_rng(0)
NORMAL = GENERATOR.standard_normal(50_000)
TENSORS = {
    "normal": NORMAL,
    "shifted": NORMAL + 1.0,
    "relu": np.maximum(NORMAL, 0.0),
    "negative": -np.abs(NORMAL),
    "long tail": NORMAL**3,
    "softmax": np.exp(4 * NORMAL) / np.exp(4 * NORMAL).sum(),
    "tiny": NORMAL * 1e-20,
}


def calibration(*tensors: NDArray[np.float64]) -> Calibration:
    calibrator = native.load().Calibrator(len(tensors), 1)
    calibrator.observe([tensor.astype(np.float32) for tensor in tensors], 0)
    names = tuple(f"t{i}" for i in range(len(tensors)))
    return Calibration(names, 1, 0, 0, NO_BATCH, calibrator.statistics())


def of(values: NDArray[np.float64]) -> TensorStatistics:
    return calibration(values).statistics()[0]


def collected(values: NDArray[np.float64], method: str, bins: int, percent: float | None = None) -> Range:
    """What onnxruntime says of the same values."""
    collector = HistogramCollector(method, False, bins, 128, percent, None)
    collector.collect({"t": [values.astype(np.float32)]})
    low, high = collector.compute_collection_result()["t"][:2]
    return float(low), float(high)


@pytest.fixture(params=TENSORS)
def values(request: pytest.FixtureRequest) -> NDArray[np.float64]:
    return TENSORS[request.param].astype(np.float32).astype(np.float64)


def test_moments(values: NDArray[np.float64]) -> None:
    found = of(values)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-12 * np.abs(values).mean())
    assert found.deviation == pytest.approx(values.std(), rel=1e-9)


def test_minmax(values: NDArray[np.float64]) -> None:
    assert minmax(of(values)) == (values.min(), values.max())


@pytest.mark.parametrize("share", [1.0, 0.9999, 0.99, 0.5])
def test_percentiles_are_numpys_within_a_bin(values: NDArray[np.float64], share: float) -> None:
    found = of(values)
    low, high = percentile(found, share)
    want = np.quantile(values, [(1 - share) / 2, (1 + share) / 2], method="inverted_cdf")
    np.testing.assert_allclose([low, high], want, rtol=0, atol=found.width)
    assert found.width <= np.abs(values).max() / 2048


@pytest.mark.parametrize("share", [0.9999, 0.99])
def test_percentiles_are_onnxruntimes_within_a_bin_of_each(values: NDArray[np.float64], share: float) -> None:
    found = of(values)
    want = collected(values, "percentile", 2048, 100 * share)
    tolerance = found.width + 2 * np.abs(values).max() / 2048
    np.testing.assert_allclose(percentile(found, share), want, rtol=0, atol=tolerance)


def test_entropy_is_onnxruntimes_on_the_same_bins(values: NDArray[np.float64]) -> None:
    """Scaled so that 2,048 bins up to the largest magnitude are those of both."""
    scaled = values * ((1.0 - 2.0**-24) / np.abs(values).max())
    scaled = scaled.astype(np.float32).astype(np.float64)
    low, high = entropy(of(scaled))
    counts, sides = np.histogram(scaled, 2048, (-1.0, 1.0))
    collector = HistogramCollector("entropy", False, 2048, 128, None, None)
    unbounded = np.float32(-np.inf), np.float32(np.inf)
    want_low, want_high = collector.get_entropy_threshold((counts, sides.astype(np.float32), *unbounded), 128)[:2]
    theirs = round(-1024 * float(want_low))
    if (low, high) != (max(want_low, scaled.min()), min(want_high, scaled.max())):
        ours = round(1024 * max(-low, high - 2**-10))
        assert 0 <= divergence(counts, theirs) - divergence(counts, ours) < 1e-6, "float32 decides otherwise"


def quantized(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Through uint8 and back, as QuantizeLinear and DequantizeLinear do."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale


def test_mse_is_least_among_all_ranges_tried_out(values: NDArray[np.float64]) -> None:
    def error(low: float, high: float) -> float:
        return float(np.mean((quantized(values, low, high) - values) ** 2))

    found = error(*mse(of(values)))
    shares = np.arange(1, 33) / 32
    lows = {min(values.min(), 0.0) * share for share in shares}
    highs = {max(values.max(), 0.0) * share for share in shares}
    best = min(error(low, high) for low in lows for high in highs)
    assert found <= 1.05 * best
    assert found <= 1.05 * error(values.min(), values.max())


def test_every_range_lies_within_the_extremes(values: NDArray[np.float64]) -> None:
    found = of(values)
    for method in (minmax, percentile, entropy, mse):
        low, high = method(found)
        assert values.min() <= low <= high <= values.max()


def test_tensors_of_one_value_and_of_none() -> None:
    for constant in (0.0, 3.0, -3.0):
        for method in (minmax, percentile, entropy):
            assert method(of(np.full(10, constant))) == (constant, constant)
    for method in (minmax, percentile, entropy, mse):
        assert method(of(np.empty(0))) == (0.0, 0.0)


def test_all_tensors_by_their_names() -> None:
    found = calibration(*TENSORS.values())
    assert ranges(found, "mse") == {
        name: mse(tensor) for name, tensor in zip(found.tensors, found.statistics(), strict=True)
    }
    assert ranges(found, "minmax")["t0"] == (NORMAL.astype(np.float32).min(), NORMAL.astype(np.float32).max())
