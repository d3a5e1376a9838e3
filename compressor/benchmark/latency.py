"""What the pipeline keeps of a run: one `Latency` for each model, and whether the machine let it be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compressor.artifacts import Interval
from compressor.benchmark.measure import measure
from compressor.benchmark.request import BenchmarkSettings, Candidate
from compressor.benchmark.result import ComparisonFound, ModelFound, OperatorShare, RunFound
from compressor.benchmark.slower import products_in_float32, why_not_faster
from compressor.errors import BenchmarkError
from compressor.processor import instruction_sets
from compressor.progress import Progress
from compressor.timings import Latencies, Latency, OperatorTime, TimesShown, Timing

_ALIKE = Interval(1.0, 1.0, 1.0)
# How many operators are named where fewer bits are not faster, and how long each model is profiled for that.
_OPERATORS, _PROFILE_S = 5, 5.0


def time_models(
    candidates: Sequence[Candidate], settings: BenchmarkSettings, float32: str, progress: Progress
) -> Latencies:
    """`measure` and `latencies_of` in one. Raises what they raise, and KeyboardInterrupt where a Ctrl-C ended it."""
    run = measure(candidates, settings, progress)
    if not run.complete:
        raise KeyboardInterrupt
    return latencies_of(run, float32)


def explained(
    timed: Latencies, candidates: Sequence[Candidate], settings: BenchmarkSettings, float32: str, progress: Progress
) -> Latencies:
    """The same, with the operators that take the time, and what of it says why, where none of what came after `float32`
    is shown to be faster.

    Raises what `measure` raises.
    """
    later = [one for one in timed.models if one.name != float32 and one.over_float32 is not None]
    if not later or any(one.over_float32 is not None and one.over_float32.low > 1 for one in later):
        return timed
    profiled = replace(settings, profile=True, min_samples=50, budget_s=min(settings.budget_s, _PROFILE_S))
    shares = {model.name: model.profile or () for model in measure(candidates, profiled, progress).models}
    paths = {one.name: one.model for one in candidates}
    whys = {
        one.name: why_not_faster(
            shares[one.name], shares[float32], instruction_sets(), products_in_float32(paths[one.name])
        )
        for one in later
    }
    return replace(
        timed,
        models=tuple(
            replace(one, operators=_most(shares[one.name]), why=whys.get(one.name, "")) for one in timed.models
        ),
    )


def _most(profile: Sequence[OperatorShare]) -> tuple[OperatorTime, ...]:
    return tuple(OperatorTime(one.operator, one.nodes, one.share) for one in profile[:_OPERATORS])


def latencies_of(run: RunFound, float32: str) -> Latencies:
    """The timings of a run of scenario stream, each against the first and against the model of the name `float32`.

    Raises BenchmarkError where there were too few rounds to compare.
    """
    found = {(one.model, one.baseline): one for one in run.comparisons}
    intervals = {pair: _interval(one, run) for pair, one in found.items()}
    first = run.models[0].name
    timed = []
    for model in run.models:
        verdict = "baseline" if model.name == first else found[model.name, first].verdict
        over_first = intervals.get((model.name, first), _ALIKE)
        over_float32 = _ALIKE if model.name == float32 else intervals.get((model.name, float32))
        timed.append(_latency(model, over_first, over_float32, verdict, run))
    validity = run.validity
    if validity is None:
        raise BenchmarkError("the timing was ended before it could be judged; run it again")
    timing = Timing(validity.valid, validity.reasons, validity.warnings, validity.unavailable)
    return Latencies(tuple(timed), timing)


def _interval(comparison: ComparisonFound, run: RunFound) -> Interval:
    low, high = comparison.speedup.low, comparison.speedup.high
    if low is None or high is None:
        raise BenchmarkError(
            f"{comparison.rounds} rounds are too few to compare {len(run.models)} models; raise the budget of"
            f" {run.conditions.budget_s:g} s, or measure fewer models"
        )
    return Interval(comparison.speedup.value, low, high)


def _latency(
    model: ModelFound, speedup: Interval, over_float32: Interval | None, verdict: str, run: RunFound
) -> Latency:
    found, drawn, session_ms = model.latency, model.distribution, model.load.session_ms
    if found is None or drawn is None or session_ms is None or model.cpu_ms is None:
        emulator = run.target.emulator
        why = f"this machine emulates another ({emulator})" if emulator else "nothing ran"
        raise BenchmarkError(f"{model.name}: no latency was measured: {why}; measure on the target")
    raw = found.raw
    if raw.p50_ms is None:
        raise BenchmarkError(f"{model.name}: {found.samples} inferences are too few for a median; raise the budget")
    corrected = found.corrected.p50_ms if found.corrected else None
    memory = model.load.memory_mib
    return Latency(
        name=model.name,
        samples=found.samples,
        p50_ms=raw.p50_ms.value,
        p90_ms=raw.p90_ms.value if raw.p90_ms else None,
        p99_ms=raw.p99_ms.value if raw.p99_ms else None,
        mean_ms=raw.mean_ms,
        corrected_p50_ms=corrected.value if corrected else None,
        cpu_ms=model.cpu_ms,
        throughput_per_s=model.throughput_per_s or 0.0,
        session_ms=session_ms,
        peak_memory_mib=memory.peak - memory.start,
        speedup=speedup,
        over_float32=over_float32,
        verdict=verdict,
        distribution=TimesShown(drawn.corrected, drawn.shares, drawn.ms),
        threads=run.conditions.threads,
        batch=run.conditions.batch,
        runtime=f"onnxruntime {run.runtime.version} (native C API)",
    )
