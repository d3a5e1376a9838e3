"""Streaming statistics against NumPy in float64, the same whatever the order, and the entropy of onnxruntime."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from entropy_reference import divergence
from onnxruntime.quantization.calibrate import HistogramCollector

from compressor import native

BINS = 8192
SUM_POINT = 298


def observed(*batches, threads=1):
    """The statistics after batches, each a list of one array for each tensor."""
    calibrator = native.load().Calibrator(len(batches[0]), threads)
    for number, batch in enumerate(batches):
        assert calibrator.observe(batch, number) == all(np.isfinite(array).all() for array in batch)
    return calibrator.statistics()


def exact(digits):
    return sum(int(digit) << (32 * place) for place, digit in enumerate(digits)) / 2**SUM_POINT


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def mixture(generator, count):
    """Magnitudes from 1e-6 to 1e3, of both signs, with zeros."""
    values = generator.standard_normal(count) * 10.0 ** generator.uniform(-6, 3, count)
    return np.where(generator.random(count) < 0.1, 0.0, values).astype(np.float32)


def edges(exponent):
    return (np.arange(BINS + 1) - BINS // 2) * 2.0 ** int(exponent)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 255, 256, 257, 100_003])
def test_counts_and_moments_are_those_of_numpy(count):
    values = mixture(np.random.default_rng(count), count)
    found = {name: array[0] for name, array in observed([values]).items()}
    wide = values.astype(np.float64)
    assert (found["values"], found["zeros"]) == (count, np.count_nonzero(values == 0))
    assert (found["low"], found["high"]) == (values.min(), values.max())
    assert exact(found["sum"]) == pytest.approx(math.fsum(wide), rel=1e-12, abs=1e-12 * np.abs(wide).sum())
    assert exact(found["squares"]) == pytest.approx(math.fsum(wide**2), rel=1e-12)
    np.testing.assert_array_equal(found["bins"], np.histogram(wide, edges(found["exponent"]))[0])


def test_the_range_fills_half_of_the_bins_or_more():
    for power, factor in itertools.product((-100, -3, 0, 11, 100), (1.0, 1.5, 1.999)):
        found = observed([np.array([factor * 2.0**power], np.float32)])
        (used,) = np.flatnonzero(found["bins"][0])
        assert BINS * 3 // 4 <= used < BINS


def test_the_order_of_batches_makes_no_difference():
    generator = np.random.default_rng(0)
    batches = [[mixture(generator, 1000) * 2.0**power, mixture(generator, 10)] for power in (-20, 3, 0, 9)]
    found = [observed(*order) for order in itertools.permutations(batches)]
    for other in found[1:]:
        for name in set(other) - {"first_with_peak"}:  # numbers follow the order
            np.testing.assert_array_equal(other[name], found[0][name], err_msg=name)


def test_how_values_are_divided_into_batches_makes_no_difference_to_the_histogram():
    values = mixture(np.random.default_rng(1), 5000)
    whole, parts = observed([values]), observed(*([part] for part in np.array_split(np.sort(values), 7)))
    for name in ("values", "zeros", "low", "high", "exponent", "bins"):
        np.testing.assert_array_equal(parts[name], whole[name], err_msg=name)


def test_threads_make_no_difference():
    generator = np.random.default_rng(2)
    batches = [[mixture(generator, size) for size in (10, 50_000, 3, 2000, 0)] for _ in range(5)]
    assert_equal(observed(*batches, threads=4), observed(*batches))


def test_values_at_the_edges_of_floats():
    largest, least = np.finfo(np.float32).max, np.float32(2.0**-149)
    values = np.array([largest, -largest, least, -least, 0.0, -0.0, 1.0, -1.0], np.float32)
    found = {name: array[0] for name, array in observed([values]).items()}
    bins = found["bins"]
    assert (bins[BINS // 2], bins[BINS // 2 - 1]) == (4, 2), "zeros, 1 and the least above; -1 and the least below"
    assert (bins[0], bins[-1]) == (1, 1)
    assert (found["zeros"], found["low"], found["high"]) == (2, -largest, largest)
    assert exact(found["sum"]) == 0.0
    assert exact(found["squares"]) == pytest.approx(2.0 * float(largest) ** 2, rel=1e-15)
    tiny = {name: array[0] for name, array in observed([values[2:6]]).items()}
    assert tiny["exponent"] == -126
    assert exact(tiny["squares"]) == 2.0 * float(least) ** 2


def test_a_range_that_grows_is_as_if_it_had_been_known():
    values = mixture(np.random.default_rng(3), 1000)
    far = np.array([1e30], np.float32)
    grown = observed([values], [far])
    np.testing.assert_array_equal(grown["bins"], observed([far], [values])["bins"])
    np.testing.assert_array_equal(
        grown["bins"][0], np.histogram(np.append(values, far).astype(np.float64), edges(grown["exponent"][0]))[0]
    )


def test_a_batch_that_is_not_finite_is_left_out_of_every_tensor():
    good = [np.ones(5, np.float32), np.full(3, 2.0, np.float32)]
    bad = [np.array([1.0, np.nan, np.inf, -np.inf, np.nan], np.float32), np.full(3, 100.0, np.float32)]
    found = observed(good, bad, good, bad)
    assert found["nans"].tolist() == [4, 0]
    assert found["infinities"].tolist() == [4, 0]
    assert found["first_not_finite"].tolist() == [1, np.iinfo(np.int64).max]
    for name in ("values", "high", "bins", "sum", "peaks"):
        np.testing.assert_array_equal(found[name], observed(good, good)[name], err_msg=name)


def test_the_peaks_of_batches_are_counted_by_powers_of_two():
    batches = [np.array([value, 0.1], np.float32) for value in (1.0, -1.5, 0.2, 300.0, 1.9)] + [np.zeros(2, np.float32)]
    found = observed(*([batch] for batch in batches))
    peaks, first = found["peaks"][0], found["first_with_peak"][0]
    assert {slot: (peaks[slot], first[slot]) for slot in np.flatnonzero(peaks)} == {
        0: (1, 5),  # zeros
        150: (3, 0),  # 1, 1.5, 1.9
        150 - 3: (1, 2),
        150 + 8: (1, 3),
    }


def test_nothing_and_a_tensor_without_values():
    found = observed([np.empty((0, 3), np.float32), np.array(2.0, np.float32)])
    assert found["values"].tolist() == [0, 1]
    assert (found["low"][0], found["high"][0]) == (np.inf, -np.inf)
    assert found["peaks"][0].sum() == found["bins"][0].sum() == 0


def test_what_is_no_batch_is_refused():
    calibrator = native.load().Calibrator(2, 1)
    one = np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match="must have 2 arrays, got 1"):
        calibrator.observe([one], 0)
    for wrong in (one.astype(np.float64), one.astype(np.float16), one.T[::2]):
        with pytest.raises(ValueError, match="array 1 must be float32 in row-major order"):
            calibrator.observe([one, wrong], 0)
    assert calibrator.statistics()["values"].tolist() == [0, 0]


def histograms():
    generator = np.random.default_rng(4)
    normal = generator.standard_normal(20_000)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0.0),
        "long tail": normal**3,
        "few values": generator.standard_normal(40),
        "two far apart": np.concatenate([normal * 0.01, [5.0, -4.0]]),
    }


@pytest.mark.parametrize("kind", histograms())
@pytest.mark.parametrize("bins", [128, 512, 1026])
def test_entropy_is_that_of_onnxruntime(kind, bins):
    values = histograms()[kind]
    reach = np.abs(values).max()
    counts, sides = np.histogram(values, bins, (-reach, reach))
    half = native.load().entropy_half_width(counts, 128)
    found = {candidate: divergence(counts, candidate) for candidate in range(64, bins // 2 + 1)}
    assert found[half] <= min(found.values()) + 1e-12

    sides = sides.astype(np.float32)
    collector = HistogramCollector("entropy", False, bins, 128, None, None)
    low, _ = collector.get_entropy_threshold((counts, sides, np.float32(-np.inf), np.float32(np.inf)), 128)[:2]
    theirs = bins // 2 - int(np.flatnonzero(sides == low)[0])
    assert found[theirs] - found[half] < 1e-6, "it computes in float32, so another may win by less than that"


def test_a_histogram_of_nothing_keeps_its_range():
    assert native.load().entropy_half_width(np.zeros(256, np.int64), 128) == 128


@pytest.mark.parametrize(("counts", "levels"), [([1] * 127, 128), ([1] * 129, 128), ([[1, 1]], 2), ([1] * 8, 3)])
def test_counts_of_another_form_are_refused(counts, levels):
    with pytest.raises(ValueError, match="even"):
        native.load().entropy_half_width(counts, levels)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="negative"):
        native.load().entropy_half_width([1, -1, 1, 1], 2)
