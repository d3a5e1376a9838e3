"""From samples to conclusions: percentiles, and the speed-up with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor import native
from compressor.artifacts import Interval, Latency
from compressor.errors import BenchmarkError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Samples:
    """One model's samples: `elapsed_ns` [rounds, block] wall time, `cpu_ns` [rounds] of the whole process."""

    elapsed_ns: NDArray[np.int64]
    cpu_ns: NDArray[np.int64]


def median_interval(values: NDArray[np.floating[Any]]) -> Interval:
    """The median of `values` [count], and the order statistics that enclose it with 95% confidence.

    Nothing is assumed of the distribution but that the values are independent. Raises BenchmarkError below 6 values.
    """
    ascending = np.sort(values)
    rank = native.load().median_rank(ascending.size, CONFIDENCE)
    if rank == 0:
        raise BenchmarkError(f"a 95% interval of a median needs 6 values or more, got {ascending.size}")
    return Interval(float(np.median(ascending)), float(ascending[rank - 1]), float(ascending[-rank]))


def speedup(baseline: Samples, other: Samples) -> Interval:
    """The median over rounds of (baseline's block median / other's block median), with its 95% interval."""
    return median_interval(np.median(baseline.elapsed_ns, axis=1) / np.median(other.elapsed_ns, axis=1))


def summarise(
    name: str,
    samples: Samples,
    baseline: Samples,
    *,
    session_ms: float,
    peak_memory_mib: float,
    threads: int,
    batch: int,
    runtime: str,
) -> Latency:
    """Percentiles of one model's samples, and its speed-up over the baseline's samples of the same run."""
    elapsed_ms = samples.elapsed_ns.ravel() / 1e6
    p50_ms, p90_ms, p99_ms = native.load().quantiles(elapsed_ms, [0.5, 0.9, 0.99])
    mean_ms = float(elapsed_ms.mean())
    return Latency(
        name=name,
        samples=elapsed_ms.size,
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        mean_ms=mean_ms,
        cpu_ms=float(samples.cpu_ns.sum()) / 1e6 / elapsed_ms.size,
        throughput_per_s=batch * 1000.0 / mean_ms,
        session_ms=session_ms,
        peak_memory_mib=peak_memory_mib,
        speedup=Interval(1.0, 1.0, 1.0) if samples is baseline else speedup(baseline, samples),
        threads=threads,
        batch=batch,
        runtime=runtime,
    )
