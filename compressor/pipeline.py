"""The way through: teacher, student, distil, export, quantize, verify, benchmark, bundle, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any



from compressor import stages
from compressor.artifacts import (
    Bundle,
    DistilledStudent,
    Evidence,
    Latencies,
    OnnxModel,
    QuantizedModels,
    Result,
    Student,
    Teacher,
    TeacherSignals,
)
from compressor.errors import GateError, RecipeError
from compressor.materials import Materials
from compressor.outcome import Outcome, publish, withdraw
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe
from compressor.recipe_file import read_recipe
from compressor.store import Keyed, Run, key_of
from compressor.verify.gate import choose

STAGES = (
    "teacher", "teacher-onnx", "signals", "student", "distill", "control",
    "export", "quantize", "verify", "benchmark", "bundle",
)  # fmt: skip


def compress(
    recipe: Recipe | str | Path,
    *,
    fresh: bool = False,
    rerun_from: str | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Runs a recipe (or the YAML file that holds one) to its end and returns what `result.json` then holds.

    Finished stages of earlier runs in the same folder are kept unless `fresh`, or from the stage `rerun_from` on.
    Raises a CompressorError; GateError when nothing may ship: result.json and report.html are then written, a bundle is not.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(Path(recipe))
    if rerun_from is not None and rerun_from not in STAGES:
        raise RecipeError(f"--from {rerun_from}: expected one of {', '.join(STAGES)}")
    run = Run(recipe.out, progress, fresh, rerun_from)
    with run.held():
        return _compress(recipe, run, Materials(recipe, progress))


def _compress(recipe: Recipe, run: Run, at: Materials) -> Result:
    source = Keyed(None, key_of(recipe.task, at.fingerprints["teacher"]))
    data = Keyed(None, key_of(recipe.data.training(), recipe.distill.seed, at.fingerprints["train"], _text_length(recipe)))
    held_out = Keyed(None, key_of(recipe.data.evaluation(), at.fingerprints["eval"], _text_length(recipe)))

    teacher = run.stage("teacher", Teacher, lambda _: stages.teacher(at), after=(source,), settings=recipe.teacher.rights())
    teacher_onnx = run.stage(
        "teacher-onnx", OnnxModel, lambda out: stages.export_teacher(at, out), after=(source, data), settings=recipe.export
    )
    signals = run.stage(
        "signals", TeacherSignals, lambda out: stages.signals(at, out),
        after=(source, data), settings=at.task.views, keep_partial=True,
    )  # fmt: skip
    student = run.stage(
        "student", Student, lambda out: stages.student(at, out),
        after=(source, data), settings=[recipe.student, at.fingerprints.get("student")],
    )  # fmt: skip
    distilled = run.stage(
        "distill", DistilledStudent, lambda out: stages.distill(at, student.value, signals.value, out),
        after=(student, signals), settings=recipe.distill, keep_partial=True,
    )  # fmt: skip
    control = None
    if getattr(recipe.distill, "control", False):
        control = run.stage(
            "control", DistilledStudent, lambda out: stages.control(at, student.value, signals.value, out),
            after=(student, signals), settings=recipe.distill, keep_partial=True,
        )  # fmt: skip
    exported = run.stage(
        "export", OnnxModel, lambda out: stages.export_student(at, distilled.value, out),
        after=(distilled,), settings=recipe.export,
    )  # fmt: skip
    quantized = run.stage(
        "quantize", QuantizedModels, lambda out: stages.quantize_student(at, distilled.value, exported.value, out),
        after=(exported, data), settings=recipe.quantize,
    )  # fmt: skip
    models = stages.Models(teacher_onnx.value, exported.value, quantized.value.models, distilled.value)
    after_models: tuple[Keyed[Any], ...] = (teacher_onnx, exported, quantized, held_out)
    verified = run.stage(
        "verify", Evidence, lambda _: stages.verify(at, models, control.value if control else None),
        after=(*after_models, control) if control else after_models,
    )  # fmt: skip
    timed = run.stage(
        "benchmark", Latencies, lambda _: stages.benchmark(at, models), after=after_models, settings=recipe.benchmark
    )

    outcome = Outcome(recipe, teacher.value, models, quantized.value.refused, verified.value, timed.value)
    try:
        decision = choose(
            models.teacher, models.student, models.quantized, outcome.qualities, outcome.latencies, outcome.parities, recipe.gate
        )
    except GateError as error:
        withdraw(outcome, str(error), at, run)
        raise
    bundle = run.stage(
        "bundle", Bundle, lambda out: stages.bundle(at, models, teacher.value, outcome.qualities[decision.shipped], decision.shipped, out),
        after=(exported, quantized, verified, teacher), settings=decision.shipped,
    )  # fmt: skip
    return publish(outcome, decision, bundle.value, at, run)


def _text_length(recipe: Recipe) -> int | None:
    return getattr(recipe.student, "max_length", None)
