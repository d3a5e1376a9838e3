"""What is to be measured, and how: settings of one run of the measuring program, and its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from compressor.errors import BenchmarkError

# The fewest independent samples of which the largest exceeds the 99th percentile with 99% confidence.
MIN_P99_SAMPLES = 459

Scenario = Literal["stream", "paced", "throughput", "sustained", "cold"]
Optimization = Literal["none", "basic", "extended", "all"]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be from the expected ones: of each, as one vector, the cosine; and the largest difference."""

    min_cosine: float
    max_abs_error: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A model to measure.

    `inputs`: realistic feeds (input name -> array), taken in turn; none: they are made up. `expected`: the outputs that
    each feed should give (output name -> array), or nothing; `tolerance` judges them.
    """

    name: str
    model: Path
    inputs: tuple[Arrays, ...] = ()
    expected: tuple[Arrays, ...] = ()
    tolerance: Tolerance | None = None


@dataclass(frozen=True)
class BenchmarkSettings:
    """How to measure.

    Every model gets `min_samples` inferences if `budget_s` allows; that bounds the timing of all models together,
    and is overrun up to three times for as many rounds as a comparison needs (two models six). `batch` says how
    many examples one feed holds. `shapes` gives sizes of dynamic dimensions of made-up inputs. `period_ms` belongs
    to paced, `sessions` and `callers` (threads that call each session) to throughput, `duration_s` to sustained,
    `processes` to cold. `also_against` names a candidate that those after it are compared with, beside the first.
    A difference below `least_effect` is no verdict. `library` is an ONNX Runtime library other than the installed one,
    `runner` another measuring program. `memory_limit_mib` bounds the address space of the process that opens the
    models; `silence_s` is how long it may say nothing. `profile` asks for the time of each operator.
    """

    scenario: Scenario = "stream"
    threads: int = 1
    optimization: Optimization = "all"
    spin: bool = False
    provider: str = "cpu"
    min_samples: int = 500
    budget_s: float = 40.0
    batch: int = 1
    shapes: Mapping[str, int] = field(default_factory=dict)
    period_ms: float | None = None
    sessions: int = 1
    callers: int = 1
    duration_s: float = 60.0
    processes: int = 5
    also_against: str | None = None
    least_effect: float = 0.02
    seed: int = 0
    library: Path | None = None
    runner: Path | None = None
    memory_limit_mib: int | None = None
    silence_s: float = 120.0
    profile: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("scenario", get_args(Scenario)), ("optimization", get_args(Optimization))):
            if getattr(self, name) not in choices:
                raise BenchmarkError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name in ("threads", "min_samples", "batch", "sessions", "callers", "processes"):
            if getattr(self, name) < 1:
                raise BenchmarkError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("budget_s", "duration_s", "silence_s"):
            if not getattr(self, name) > 0:
                raise BenchmarkError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.least_effect <= 1:
            raise BenchmarkError(f"least_effect must be in 0..1, got {self.least_effect}")
        for name, size in self.shapes.items():
            if size < 1:
                raise BenchmarkError(f"the size of {name!r} must be 1 or more, got {size}")
        if (self.scenario == "paced") != (self.period_ms is not None):
            got = "none" if self.period_ms is None else f"{self.period_ms:g} with scenario {self.scenario}"
            raise BenchmarkError(f"scenario paced needs a period_ms, and no other takes one; got {got}")
        if self.period_ms is not None and not self.period_ms > 0:
            raise BenchmarkError(f"period_ms must be above 0, got {self.period_ms}")


def check_candidates(candidates: tuple[Candidate, ...]) -> None:
    """Raises BenchmarkError where there is none, two have one name, or a file is missing or empty."""
    if not candidates:
        raise BenchmarkError("one model or more is needed, got none")
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise BenchmarkError(f"the models must have different names, got {', '.join(names)}")
    for candidate in candidates:
        path = candidate.model
        if not path.is_file():
            raise BenchmarkError(f"{path} must be an ONNX file, got {'a folder' if path.is_dir() else 'nothing'}")
        if path.stat().st_size == 0:
            raise BenchmarkError(f"{path} must be an ONNX file, got an empty file; write it again")
        if candidate.expected and len(candidate.expected) != len(candidate.inputs):
            raise BenchmarkError(
                f"{candidate.name}: expected outputs must be one for each of the {len(candidate.inputs)} inputs, "
                f"got {len(candidate.expected)}"
            )
