"""What a measurement found, as docs/bench-result.md has it: read, checked, and its JSON Schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NewType

from compressor.errors import BenchmarkError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT_VERSION = 1
Verdict = Literal["faster", "slower", "inconclusive"]


@dataclass(frozen=True)
class Bounded:
    """A value between the bounds of its confidence interval; a bound is null where the samples do not support it."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Percentiles:
    """Times of single inferences. A percentile is null where the number of samples does not support it."""

    mean_ms: float
    p50_ms: Bounded | None
    p90_ms: Bounded | None
    p99_ms: Bounded | None
    p999_ms: Bounded | None


@dataclass(frozen=True)
class LatencyFound:
    """`raw` as the clock saw it; `corrected` less what the process's threads waited for a processor, null where the
    system does not tell that. `delayed_share`: that waiting, of all the time.
    """

    samples: int
    raw: Percentiles
    corrected: Percentiles | None
    delayed_share: float | None

    @property
    def best(self) -> Percentiles:
        """Corrected where it can be."""
        return self.corrected or self.raw


@dataclass(frozen=True)
class Distribution:
    """The quantile function of the times: `ms[i]` is the quantile at `shares[i]`. `corrected`: of which times."""

    corrected: bool
    shares: tuple[float, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True)
class Stationarity:
    """Whether the blocks' medians stay where they are, by Pettitt's test; the likeliest break and the change there."""

    stationary: bool
    p_value: float
    change: float
    at_block: int


@dataclass(frozen=True)
class Memory:
    """Resident memory of a fresh process after each step, in MiB; its peak."""

    start: float
    library: float
    session: float
    first_inference: float
    peak: float


@dataclass(frozen=True)
class Load:
    """What a fresh process took to load the model and run it once; times are null under emulation."""

    library_ms: float | None
    session_ms: float | None
    first_inference_ms: float | None
    memory_mib: Memory


@dataclass(frozen=True)
class WarmUp:
    """How many inferences were run first; whether a fast and a slow average of their times came to agree."""

    inferences: int
    settled: bool


@dataclass(frozen=True)
class Pacing:
    """Deadlines: inferences that ended after the next was due, periods without one, how late they began."""

    missed: int
    dropped: int
    late_p50_ms: float
    late_p90_ms: float


@dataclass(frozen=True)
class Drift:
    """The trend of the times: share of the median a minute; the last tenth's median over the first tenth's."""

    slope_per_minute: Bounded | None
    last_over_first: float | None


@dataclass(frozen=True)
class AnswersFound:
    """How the timed session's outputs compare: `against` is `expected` or the baseline's name."""

    against: str
    cases: int
    equal: bool
    finite: bool
    max_abs_error: float | None
    min_cosine: float | None


@dataclass(frozen=True)
class Spread:
    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Starts:
    """Several fresh processes."""

    processes: int
    library_ms: Spread
    session_ms: Spread
    first_inference_ms: Spread
    peak_mib: Spread


@dataclass(frozen=True)
class OperatorShare:
    """All nodes of one operator, by ONNX Runtime's own profiler: calls, and their share of all nodes' time."""

    operator: str
    nodes: int
    calls: int
    total_ms: float
    share: float


@dataclass(frozen=True)
class ModelFound:
    """One model of a run. What the scenario does not measure is null; under emulation all times are."""

    name: str
    bytes: int
    load: Load
    warm_up: WarmUp | None = None
    inferences: int | None = None
    latency: LatencyFound | None = None
    distribution: Distribution | None = None
    throughput_per_s: float | None = None
    cpu_ms: float | None = None
    stationarity: Stationarity | None = None
    pacing: Pacing | None = None
    drift: Drift | None = None
    outputs_finite: bool | None = None
    answers: AnswersFound | None = None
    answers_unknown: str | None = None
    still_cached: float | None = None
    disk_cold: Starts | None = None
    disk_warm: Starts | None = None
    profile: tuple[OperatorShare, ...] | None = None


@dataclass(frozen=True)
class ComparisonFound:
    """A model against the baseline, round by round; all intervals of a run hold together with 95%."""

    model: str
    baseline: str
    speedup: Bounded
    rounds: int
    sittings: int
    confidence: float
    verdict: Verdict


@dataclass(frozen=True)
class ValidityFound:
    """Whether the machine let the measurement be: reasons against it, warnings, what could not be read, readings."""

    valid: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    unavailable: tuple[str, ...]
    readings: dict[str, float | None]


@dataclass(frozen=True)
class Runtime:
    version: str
    library_bytes: int


@dataclass(frozen=True)
class TargetFound:
    """The machine that measured, without its name."""

    architecture: str
    processor: str
    system: str
    processors: int
    memory_mib: float | None
    virtual_machine: bool | None
    emulator: str | None


@dataclass(frozen=True)
class Conditions:
    """What was asked for, and how many rounds of how many inferences it came to."""

    threads: int
    optimization_level: int
    spin: bool
    provider: str
    batch: int
    shapes: dict[str, int]
    seed: int
    budget_s: float
    least_effect: float
    rounds: int
    block: int
    period_ms: float | None = None
    duration_s: float | None = None
    sessions: int | None = None
    callers: int | None = None
    processes: int | None = None


@dataclass(frozen=True)
class RunFound:
    """One run: one scenario under one set of conditions. `complete` is false where it was ended early."""

    format_version: int
    scenario: Literal["stream", "paced", "throughput", "sustained", "cold"]
    runtime: Runtime
    target: TargetFound
    conditions: Conditions
    complete: bool
    models: tuple[ModelFound, ...]
    comparisons: tuple[ComparisonFound, ...] = ()
    validity: ValidityFound | None = None


@dataclass(frozen=True)
class BenchResult:
    """What `compressor bench --json` writes: a run for each combination that was asked for."""

    format_version: int
    compressor: str
    complete: bool
    problems: tuple[str, ...]
    runs: tuple[RunFound, ...] = field(default_factory=tuple)


_RunFile = NewType("_RunFile", RunFound)
_BenchFile = NewType("_BenchFile", BenchResult)


def bench_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `compressor bench --json` writes: every field, none besides, no NaN."""
    schema = _adapter(_BenchFile).json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "BenchResult"
    return schema


def run_found(document: dict[str, Any]) -> RunFound:
    """The run that the measuring program told. Raises BenchmarkError where it is not of this format."""
    from pydantic import ValidationError

    try:
        found: RunFound = _adapter(_RunFile).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BenchmarkError(
            f"the measuring program told a result of another version: {first['msg'].lower()} at {where}; "
            "use the runner that this version was built with"
        ) from None
    return found


def bench_json(result: BenchResult) -> bytes:
    """The text of the file."""
    text: bytes = _adapter(_BenchFile).dump_json(_BenchFile(result), indent=1)
    return text + b"\n"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(extra="forbid", allow_inf_nan=False))
