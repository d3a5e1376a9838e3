"""What the stages hand to each other: frozen, typed, and readable from JSON.

A `Path` in an artifact is absolute in memory; `store` writes it relative to the run folder.
Times are milliseconds, sizes bytes, memory MiB, shares fractions of one; the unit is in the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compressor.error_attribution import ErrorAttribution

# What a recipe and a bundle may be for.
TASKS = (
    "sentence-embedding",
    "text-classification",
    "token-classification",
    "text-generation",
    "image-classification",
    "own",
)
# The stages of a run, in the order in which they run.
STAGES = (
    "teacher",
    "teacher-onnx",
    "teacher-answers",
    "reference",
    "student",
    "signals",
    "distill",
    "control",
    "export",
    "rewrite",
    "quantize",
    "qat",
    "verify",
    "benchmark",
    "bundle",
)

# The candidate that quantization-aware training makes.
QAT_STUDENT = "student-qat"


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Provenance:
    """Whose model this is, and what permits its use as a teacher.

    `sha256` is null where the model is out of reach, as behind an endpoint. `terms` are terms of service that apply.
    `remote_code`: code that the model's folder brings along was allowed to run.
    """

    source: str
    sha256: str | None
    license: str | None
    permission: str
    reference: str | None = None
    terms: str | None = None
    remote_code: bool = False


@dataclass(frozen=True)
class Teacher:
    """A teacher that loads, and what is known of it without running it again; `parameters` is 0 where unknown."""

    kind: str
    parameters: int
    provenance: Provenance


@dataclass(frozen=True)
class Shard:
    """A file of consecutive rows, and its SHA-256."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class TapPair:
    """Which tap of the student learns from which of the teacher (`distill.taps` says what their names mean)."""

    student: str
    teacher: str

    @property
    def kind(self) -> str:
        return self.student.partition(".")[0]


@dataclass(frozen=True)
class TeacherSignals:
    """What the teacher said on some inputs, in files that `distill.cache` describes, each checked at read.

    `taps`: which of the student's taps are to learn from what was recorded beside the outputs.
    """

    shards: tuple[Shard, ...]
    rows: int
    seconds: float
    taps: tuple[TapPair, ...] = ()


@dataclass(frozen=True)
class Student:
    """A student on disk: weights (safetensors) and, for text, config and tokenizer."""

    folder: Path
    parameters: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LossPoint:
    """Mean training loss since the previous point."""

    step: int
    loss: float


@dataclass(frozen=True)
class ScorePoint:
    """Held-out score after an epoch: agreement with the teacher, higher is better."""

    step: int
    epoch: int
    score: float


@dataclass(frozen=True)
class TrainingHistory:
    """How training went. `best_step` is the step whose weights are kept; `loss_kernel` what computed the loss."""

    steps: int
    seconds: float
    best_step: int
    loss_kernel: str
    losses: tuple[LossPoint, ...]
    scores: tuple[ScorePoint, ...]


@dataclass(frozen=True)
class DistilledStudent:
    """The trained student, and how it came to be."""

    student: Student
    history: TrainingHistory


@dataclass(frozen=True)
class TensorSpec:
    """An ONNX input or output. Dynamic dimensions are their symbolic name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class AppliedRewrite:
    """A rewrite of an exported graph: how often it applied, and how many nodes were left."""

    name: str
    times: int
    nodes: int


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file that has passed the checker and loads in onnxruntime.

    `rewrites` made it from what was exported. `open_path`: the same function without those operators that hide weights
    from a quantizer that does not know them; null where the file itself has none.
    """

    name: str
    precision: str
    path: Path
    bytes: int
    parameters: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rewrites: tuple[AppliedRewrite, ...] = ()
    open_path: Path | None = None


@dataclass(frozen=True)
class RefusedModel:
    """A candidate that was written and measured but must not ship, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class QuantizedModels:
    """The candidates in fewer bits, where their errors come from, and those that were refused before they were
    measured.
    """

    models: tuple[OnnxModel, ...]
    refused: tuple[RefusedModel, ...] = ()
    attributions: tuple[ErrorAttribution, ...] = ()


@dataclass(frozen=True)
class Parity:
    """How far a converted model is from the one it was made from, on the same inputs, which have so many `shapes`.

    `departs_at`: the first layer whose output is another one, where `holds` is false and that could be found.
    """

    name: str
    reference: str
    inputs: int
    shapes: int
    max_abs_error: float
    mean_cosine: float
    top1_agreement: float | None
    holds: bool
    bound: str
    departs_at: str | None


@dataclass(frozen=True)
class QuantizationAwareStudent:
    """The student that learnt on in few bits, what it was written as, and how far that is from it."""

    distilled: DistilledStudent
    model: OnnxModel
    parity: Parity


@dataclass(frozen=True)
class Quality:
    """The task metric on held-out data, and the closeness to the teacher.

    `kept` is value / teacher's value, its interval from a paired bootstrap over the same examples.
    `agreement` is the mean cosine to the teacher (embeddings) or the share of equal answers (classes, texts).
    """

    name: str
    metric: str
    quality: Interval
    kept: Interval
    agreement: float
    examples: int


@dataclass(frozen=True)
class Reference:
    """Another model, which judges: nothing was learnt from it.

    `agreement` of the teacher, of every candidate and of the control with it, by name: the share of equal answers, or
    for embeddings, of which two models' lie in two spaces, the rank correlation of their similarities.
    """

    source: str
    quality: Quality
    agreement: dict[str, float]


@dataclass(frozen=True)
class Evidence:
    """What `verify` found: parity after every conversion, and every model's quality on the same held-out data."""

    parities: tuple[Parity, ...]
    qualities: tuple[Quality, ...]
    reference: Reference | None = None


@dataclass(frozen=True)
class GateDecision:
    """What ships, and why every other candidate does not."""

    shipped: str
    reason: str
    passed_over: tuple[RefusedModel, ...]


@dataclass(frozen=True)
class Bundle:
    """A written bundle: its folder, which model is in it, the bytes of its files, and its manifest's SHA-256."""

    folder: Path
    model: str
    bytes: int
    manifest_sha256: str
