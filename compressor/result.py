"""`result.json`: everything that is known of a run, normative in docs/result.md."""

from __future__ import annotations

from dataclasses import dataclass, field

from compressor.artifacts import Parity, Provenance, Quality, Reference, RefusedModel, TrainingHistory
from compressor.error_attribution import ErrorAttribution
from compressor.timings import Latency, Timing

RESULT_SCHEMA_VERSION = 5


@dataclass(frozen=True)
class ModelResult:
    """One row of the result: everything known about one model, from one run. Absent measurements are null."""

    name: str
    precision: str
    parameters: int
    bytes: int | None
    latency: Latency | None
    quality: Quality
    agreement: float


@dataclass(frozen=True)
class Environment:
    """The machine and the packages of a run, without names of hosts or users."""

    machine: str
    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    packages: dict[str, str]
    loss_kernel: str


@dataclass(frozen=True)
class SizeShare:
    """Where the bytes of a model are: one kind of content, its bytes."""

    model: str
    part: str
    bytes: int


@dataclass(frozen=True)
class QualityStep:
    """What a conversion did to the task metric: the value of the model `after` less that of the one `before`."""

    step: str
    before: str
    after: str
    change: float


@dataclass(frozen=True)
class StageTime:
    """How long a stage took; `reused` when an earlier run had finished it."""

    stage: str
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Result:
    """`result.json`, normative in docs/result.md. `shipped` is null when the gate let nothing through."""

    schema_version: int
    task: str
    models: tuple[ModelResult, ...]
    shipped: str | None
    reason: str
    timing: Timing
    environment: Environment
    lineage: Provenance
    data: dict[str, str]
    history: TrainingHistory
    sizes: tuple[SizeShare, ...]
    parities: tuple[Parity, ...]
    refused: tuple[RefusedModel, ...]
    quality_steps: tuple[QualityStep, ...]
    attributions: tuple[ErrorAttribution, ...]
    stages: tuple[StageTime, ...]
    control: Quality | None = None
    reference: Reference | None = None
    recipe: dict[str, object] = field(default_factory=dict)
