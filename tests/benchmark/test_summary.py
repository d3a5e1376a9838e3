"""From samples to conclusions, on samples whose truth is known."""

import numpy as np
import pytest
from compressor.benchmark.summary import Samples, median_interval, speedup, summarise

from compressor.errors import BenchmarkError


def samples(median_ms, rounds=40, block=20, seed=0, drift=1.0):
    """Log-normal times round `median_ms`, all slower by `drift` in the second half of the rounds."""
    generator = np.random.default_rng(seed)
    times = median_ms * 1e6 * generator.lognormal(0.0, 0.1, (rounds, block))
    times[rounds // 2 :] *= drift
    return Samples(times.astype(np.int64), np.full(rounds, int(block * median_ms * 1e6)))


def test_a_known_speedup_is_found():
    found = speedup(samples(6.0, seed=1), samples(2.0, seed=2))
    assert found.low < 3.0 < found.high
    assert found.value == pytest.approx(3.0, rel=0.05)
    assert found.high - found.low < 0.3


def test_a_drift_that_both_share_cancels():
    found = speedup(samples(6.0, seed=1, drift=5.0), samples(2.0, seed=2, drift=5.0))
    assert found.low < 3.0 < found.high
    assert found.high - found.low < 0.3


def test_the_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        found = median_interval(generator.exponential(1.0, 30))
        covered += found.low <= np.log(2.0) <= found.high
    assert covered / 2000 > 0.94


def test_the_interval_needs_six_values():
    found = median_interval(np.array([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]))
    assert (found.value, found.low, found.high) == (3.5, 1.0, 6.0)
    with pytest.raises(BenchmarkError, match="6 values or more, got 5"):
        median_interval(np.arange(5.0))


def test_a_summary_has_the_right_units():
    own = samples(2.0)
    latency = summarise("m", own, own, session_ms=3.0, peak_memory_mib=4.0, threads=2, batch=8, runtime="onnxruntime")
    times_ms = own.elapsed_ns.ravel() / 1e6
    assert latency.samples == 800
    assert [latency.p50_ms, latency.p90_ms, latency.p99_ms] == pytest.approx(
        np.quantile(times_ms, [0.5, 0.9, 0.99]).tolist()
    )
    assert latency.mean_ms == pytest.approx(times_ms.mean())
    assert latency.cpu_ms == pytest.approx(2.0)
    assert latency.throughput_per_s == pytest.approx(8 / (times_ms.mean() / 1e3))
    assert (latency.speedup.value, latency.threads, latency.batch) == (1.0, 2, 8)
