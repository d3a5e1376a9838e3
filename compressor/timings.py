"""How long models take, as the pipeline keeps it and `result.json` has it."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.artifacts import Interval


@dataclass(frozen=True)
class TimesShown:
    """The quantile function of a model's times: `ms[i]` is the quantile at `shares[i]`.

    `corrected`: less what threads waited for a processor.
    """

    corrected: bool
    shares: tuple[float, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator, and their share of all nodes' time by ONNX Runtime's own profiler."""

    operator: str
    nodes: int
    share: float


@dataclass(frozen=True)
class Latency:
    """One model's timing at batch 1 in the native harness, interleaved with the others of the same run.

    Percentiles are of the clock's times; null where there are too few samples for one. `corrected_p50_ms` is less what
    the threads waited for a processor; null where the system does not tell. `speedup` is the median over rounds of
    (baseline time / this time), with its interval, and `verdict` what it amounts to; 1 for the baseline. `over_float32`
    is the same against the float32 student; null for models that came before it. `session_ms` and `peak_memory_mib`
    come from a fresh process that holds this model alone. `operators` are those that take most of the time, where no
    candidate was faster than float32; `why` is what they and the processor say of that.
    """

    name: str
    samples: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    mean_ms: float
    corrected_p50_ms: float | None
    cpu_ms: float
    throughput_per_s: float
    session_ms: float
    peak_memory_mib: float
    speedup: Interval
    over_float32: Interval | None
    verdict: str
    distribution: TimesShown | None
    threads: int
    batch: int
    runtime: str
    operators: tuple[OperatorTime, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Timing:
    """`valid` is false where the machine disturbed the timing, for the `reasons`; `warnings` do not spoil it.
    `unavailable` names what could not be read of the machine.
    """

    valid: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    unavailable: tuple[str, ...]


@dataclass(frozen=True)
class Latencies:
    """Every model's timing from one run; the first is the teacher, the baseline."""

    models: tuple[Latency, ...]
    timing: Timing
