"""From the stages' artifacts to what the user is told: result.json, report.html, and the bundle in its place."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from compressor.artifacts import (
    QAT_STUDENT,
    Bundle,
    Evidence,
    GateDecision,
    OnnxModel,
    Parity,
    Quality,
    QuantizedModels,
    RefusedModel,
    Teacher,
)
from compressor.errors import GateError
from compressor.judging import CONTROL, Models
from compressor.materials import Materials
from compressor.processor import processor_name, version_of
from compressor.recipe import Recipe
from compressor.recipe_portable import portable
from compressor.report.html import write_report
from compressor.result import RESULT_SCHEMA_VERSION, Environment, ModelResult, QualityStep, Result, SizeShare
from compressor.store import Run, replace_folder, write_atomic
from compressor.timings import Latencies, Latency
from compressor.xray import by_role, xray

_PACKAGES = (
    "compressor",
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tokenizers",
    "numpy",
    "accelerate",
)


@dataclass(frozen=True)
class Outcome:
    """Everything that the stages found, by model name."""

    recipe: Recipe
    teacher: Teacher
    models: Models
    quantized: QuantizedModels
    evidence: Evidence
    timed: Latencies

    @cached_property
    def qualities(self) -> dict[str, Quality]:
        return {quality.name: quality for quality in self.evidence.qualities}

    @cached_property
    def parities(self) -> dict[str, Parity]:
        return {parity.name: parity for parity in self.evidence.parities}

    @cached_property
    def latencies(self) -> dict[str, Latency]:
        return {latency.name: latency for latency in self.timed.models}


def publish(outcome: Outcome, decision: GateDecision, bundle: Bundle, at: Materials, run: Run) -> Result:
    """Writes result.json and report.html, and puts the bundle into the run folder."""
    fresh = run.folder / ".bundle.new"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(bundle.folder, fresh)
    replace_folder(fresh, run.folder / "bundle")
    result = _result(outcome, decision.shipped, decision.reason, decision.passed_over, at, run)
    _write(result, run.folder)
    return result


def withdraw(outcome: Outcome, refusal: GateError, at: Materials, run: Run) -> None:
    """Nothing ships: result.json and report.html say why, and no bundle of an earlier run stays behind."""
    retract(run.folder)
    reason = str(refusal).removeprefix("nothing ships: ")
    objections = tuple(RefusedModel(model, why) for model, why in refusal.objections)
    _write(_result(outcome, None, reason, objections, at, run), run.folder)


def retract(folder: Path) -> None:
    """Removes what earlier runs in a run folder shipped and said, wherever it lies there."""
    for bundle in (folder / "bundle", *folder.glob("stages/bundle-*")):
        if bundle.exists():
            shutil.rmtree(bundle)
    for name in ("result.json", "report.html"):
        (folder / name).unlink(missing_ok=True)


def _write(result: Result, folder: Path) -> None:
    write_atomic(folder / "result.json", TypeAdapter(Result).dump_json(result, indent=1) + b"\n")
    write_report(result, folder / "report.html")


def _result(
    outcome: Outcome, shipped: str | None, reason: str, passed_over: tuple[RefusedModel, ...], at: Materials, run: Run
) -> Result:
    history = outcome.models.distilled.history
    return Result(
        schema_version=RESULT_SCHEMA_VERSION,
        task=outcome.recipe.task,
        models=_model_results(outcome),
        shipped=shipped,
        reason=reason,
        timing=outcome.timed.timing,
        environment=environment(history.loss_kernel),
        lineage=outcome.teacher.provenance,
        data=at.data.described,
        history=history,
        sizes=tuple(
            SizeShare(model.name, part, size)
            for model in outcome.models.onnx
            for part, size in by_role(xray(model.path)).items()
        ),
        parities=outcome.evidence.parities,
        refused=(*outcome.quantized.refused, *passed_over),
        quality_steps=_quality_steps(outcome),
        attributions=outcome.quantized.attributions,
        stages=tuple(run.times),
        control=outcome.qualities.get(CONTROL),
        reference=outcome.evidence.reference,
        recipe=portable(outcome.recipe),
    )


def _model_results(outcome: Outcome) -> tuple[ModelResult, ...]:
    rows = []
    if outcome.models.teacher is None:
        judged = outcome.qualities["teacher"]
        size = outcome.teacher.parameters
        rows.append(ModelResult("teacher", "out of reach", size, None, None, judged, judged.agreement))
    for model in outcome.models.onnx:
        quality = outcome.qualities[model.name]
        rows.append(
            ModelResult(
                name=model.name,
                precision=model.precision,
                parameters=model.parameters,
                bytes=model.bytes,
                latency=outcome.latencies[model.name],
                quality=quality,
                agreement=quality.agreement,
            )
        )
    in_torch = outcome.qualities["student-torch"]
    parameters = outcome.models.student.parameters
    rows.insert(
        1, ModelResult("student-torch", "float32 in torch", parameters, None, None, in_torch, in_torch.agreement)
    )
    return tuple(rows)


def _quality_steps(outcome: Outcome) -> tuple[QualityStep, ...]:
    """From the teacher to each candidate, conversion by conversion."""
    steps = [("distillation", "teacher", "student-torch"), ("export", "student-torch", outcome.models.student.name)]
    steps += [(_step_to(model), outcome.models.student.name, model.name) for model in outcome.models.quantized]
    value = {name: quality.quality.value for name, quality in outcome.qualities.items()}
    return tuple(QualityStep(step, before, after, value[after] - value[before]) for step, before, after in steps)


def _step_to(model: OnnxModel) -> str:
    return "quantization-aware training" if model.name == QAT_STUDENT else "quantization"


def environment(loss_kernel: str) -> Environment:
    """The machine and the packages, without names of hosts or users."""
    return Environment(
        machine=platform.machine(),
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := version_of(name)) is not None},
        loss_kernel=loss_kernel,
    )
