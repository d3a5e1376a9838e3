"""Results as a run writes them: one realistic, one as small as the format permits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from compressor.artifacts import (
    Interval,
    LossPoint,
    Parity,
    Provenance,
    Quality,
    Reference,
    RefusedModel,
    ScorePoint,
    TrainingHistory,
)
from compressor.error_attribution import Closeness, ErrorAttribution, NoisyLayer, Remedy
from compressor.result import Environment, ModelResult, QualityStep, Result, SizeShare, StageTime
from compressor.timings import Latency, OperatorTime, TimesShown, Timing

STEPS_PER_EPOCH = 250


def interval(value: float, half: float) -> Interval:
    return Interval(value, round(value - half, 4), round(value + half, 4))


def latency(name: str, p50: float, speedup: Interval, memory: float) -> Latency:
    return Latency(
        name=name,
        samples=2000,
        p50_ms=p50,
        p90_ms=round(p50 * 1.09, 3),
        p99_ms=round(p50 * 1.31, 3),
        mean_ms=round(p50 * 1.03, 3),
        corrected_p50_ms=round(p50 * 0.99, 3),
        cpu_ms=round(p50 * 1.01, 3),
        throughput_per_s=round(1000 / (p50 * 1.03), 1),
        session_ms=round(40 + 12 * p50, 1),
        peak_memory_mib=memory,
        speedup=speedup,
        over_float32=Interval(1.77, 1.74, 1.8) if name.startswith("student-") else None,
        verdict="faster" if speedup.value > 1 else "baseline",
        distribution=TimesShown(
            True, (0.0, 0.25, 0.5, 0.75, 1.0), tuple(round(p50 * part, 3) for part in (0.9, 0.97, 0.99, 1.04, 1.5))
        ),
        threads=1,
        batch=1,
        runtime="onnxruntime 1.23.2, CPU",
    )


def quality(name: str, value: float, kept: Interval, agreement: float) -> Quality:
    return Quality(name, "auroc", interval(value, 0.012), kept, agreement, 4000)


def parity(name: str, reference: str, error: float, cosine: float, top1: float, bound: str) -> Parity:
    return Parity(name, reference, 512, 5, error, cosine, top1, holds=True, bound=bound, departs_at=None)


def models() -> tuple[ModelResult, ...]:
    one = Interval(1.0, 1.0, 1.0)
    teacher = ModelResult(
        name="teacher",
        precision="float32",
        parameters=22_713_216,
        bytes=90_900_000,
        latency=latency("teacher", 5.6, one, 214.0),
        quality=quality("teacher", 0.892, one, 1.0),
        agreement=1.0,
    )
    student = ModelResult(
        name="student",
        precision="float32",
        parameters=8_340_000,
        bytes=33_500_000,
        latency=latency("student", 1.9, Interval(2.94, 2.9, 2.98), 121.0),
        quality=quality("student", 0.8815, Interval(0.9882, 0.9831, 0.9929), 0.9712),
        agreement=0.9712,
    )
    int8 = ModelResult(
        name="student-int8",
        precision="int8 dynamic",
        parameters=8_340_000,
        bytes=6_783_582,
        latency=latency("student-int8", 0.917, Interval(6.11, 6.02, 6.21), 84.0),
        quality=quality("student-int8", 0.8804, Interval(0.987, 0.981, 0.992), 0.9663),
        agreement=0.9663,
    )
    static = ModelResult(
        name="student-int8-static",
        precision="int8 static",
        parameters=8_340_000,
        bytes=8_500_000,
        latency=replace(
            latency("student-int8-static", 0.84, Interval(6.67, 6.51, 6.8), 86.0),
            operators=(OperatorTime("QAttention", 3, 0.412), OperatorTime("QuantizeLinear", 14, 0.2)),
            why="20.0% of its time rounds numbers",
        ),
        quality=quality("student-int8-static", 0.8321, Interval(0.9328, 0.921, 0.944), 0.8911),
        agreement=0.8911,
    )
    return teacher, student, int8, static


def history() -> TrainingHistory:
    losses = tuple(
        LossPoint(step, round(0.21 + 1.7 * math.exp(-step / 420) + 0.03 * math.sin(step / 37), 5))
        for step in range(25, 3001, 25)
    )
    scores = (0.8124, 0.8841, 0.9187, 0.9365, 0.9481, 0.9560, 0.9618, 0.9655, 0.9689, 0.9712, 0.9708, 0.9703)
    points = tuple(ScorePoint(STEPS_PER_EPOCH * epoch, epoch, score) for epoch, score in enumerate(scores, start=1))
    return TrainingHistory(3000, 412.6, 2500, "cpu-avx2", losses, points)


def sizes() -> tuple[SizeShare, ...]:
    return (
        SizeShare("teacher", "weights float32", 90_650_000),
        SizeShare("teacher", "graph", 250_000),
        SizeShare("student", "weights float32", 33_360_000),
        SizeShare("student", "graph", 140_000),
        SizeShare("student-int8", "weights int8", 6_250_000),
        SizeShare("student-int8", "scales and zero points", 96_000),
        SizeShare("student-int8", "weights float32", 287_582),
        SizeShare("student-int8", "graph", 150_000),
    )


def attribution() -> ErrorAttribution:
    noisy = NoisyLayer("layer.0/output", "MatMul", 18.3, Closeness(0.9987, 26.1, 7_573_582))
    remedy = Remedy("layer.0/output", "weight-int8", Closeness(0.9985, 25.8, 6_801_582))
    now = Closeness(0.9971, 22.4, 6_783_582)
    return ErrorAttribution("student-int8", now, (noisy, NoisyLayer("layer.1/query", "MatMul", 31.9, None)), remedy)


@pytest.fixture
def result() -> Result:
    """A text classifier: the dynamic int8 student ships, the static one loses too much."""
    return Result(
        schema_version=5,
        task="text-classification",
        models=models(),
        shipped="student-int8",
        reason="the smallest candidate that keeps at least 97% of the teacher's AUROC",
        timing=Timing(
            valid=False,
            reasons=("other work used 0.95 processors on average (bound 0.30)",),
            warnings=(),
            unavailable=("temperature",),
        ),
        environment=Environment(
            machine="x86_64",
            processor="AMD EPYC 7B13",
            cores=2,
            memory_gib=15.6,
            system="Linux 6.1",
            python="3.11.7",
            packages={"numpy": "2.4.6", "onnxruntime": "1.23.2", "torch": "2.10.0"},
            loss_kernel="cpu-avx2",
        ),
        lineage=Provenance(
            source="models/minilm-l6-sentiment",
            sha256="6d1f" * 16,
            license="Apache-2.0",
            permission="the license permits derived models",
            reference="model card, section License",
        ),
        data={"source": "data/reviews.jsonl", "rows": "24000 train, 4000 held out", "sha256": "a90c" * 16},
        history=history(),
        sizes=sizes(),
        parities=(
            parity("student", "torch student", 1.4e-6, 0.9999998, 1.0, "max abs error <= 1e-4"),
            parity("student-int8", "student", 0.0231, 0.9971, 0.9932, "mean cosine >= 0.99"),
            parity("student-int8-static", "student", 0.412, 0.9433, 0.9012, "mean cosine >= 0.94"),
        ),
        refused=(RefusedModel("student-int8-static", "keeps 93.3% of the teacher's AUROC; the recipe asks for 97.0%"),),
        quality_steps=(
            QualityStep("distillation", "teacher", "student-torch", -0.0105),
            QualityStep("export", "student-torch", "student", 0.0),
            QualityStep("quantization", "student", "student-int8", -0.0011),
        ),
        attributions=(attribution(),),
        stages=(
            StageTime("teacher signals", 148.2, reused=True),
            StageTime("distill", 412.6, reused=False),
            StageTime("export", 9.4, reused=False),
            StageTime("quantize", 31.0, reused=False),
            StageTime("verify", 66.3, reused=False),
            StageTime("benchmark", 88.0, reused=False),
        ),
        control=quality("control", 0.8611, Interval(0.9654, 0.9581, 0.9722), 0.9107),
        reference=Reference(
            "roberta-reviews",
            quality("reference", 0.8874, Interval(0.9949, 0.9871, 1.0021), 0.9268),
            {"teacher": 0.9268, "student-int8": 0.9112},
        ),
        recipe={
            "task": "text-classification",
            "teacher": {"path": "models/minilm-l6-sentiment"},
            "student": {"layers": 3, "hidden": 256},
            "training": {"epochs": 12, "temperature": 2.0},
            "gate": {"keep": 0.97},
        },
    )


@pytest.fixture
def small_result(result: Result) -> Result:
    """The example of docs/result.md: the teacher, what ships, and two points of each history."""
    teacher, _, int8, _ = result.models
    return replace(
        result,
        models=(teacher, int8),
        parities=result.parities[-2:-1],
        lineage=replace(result.lineage, sha256="6d1f" * 16),
        history=replace(result.history, losses=result.history.losses[-2:], scores=result.history.scores[-3:-1]),
        sizes=result.sizes[-4:],
        stages=result.stages[:2],
    )
