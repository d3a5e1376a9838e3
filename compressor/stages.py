"""The stages of `pipeline`, each one call from materials and earlier artifacts to its own artifact."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.artifacts import (
    Bundle,
    DistilledStudent,
    Evidence,
    Latencies,
    OnnxModel,
    Parity,
    Quality,
    QuantizedModels,
    Student,
    Teacher,
    TeacherSignals,
)
from compressor.benchmark import BenchmarkSettings, Candidate, time_models
from compressor.bundle.build import GOLDEN_CASES, Contents, write_bundle
from compressor.distill import SignalReader, outputs_of, write_outputs
from compressor.export import export_onnx, rewrite_onnx
from compressor.materials import BENCHMARK_INPUTS, Materials
from compressor.onnxrt import first_outputs
from compressor.preprocess import Preprocessor, answers_in_order
from compressor.quantize import Mixer, examples_wanted, quantize
from compressor.recipe import TextGenerationRecipe
from compressor.recipe_portable import portable
from compressor.searching import judging_of, search_precisions
from compressor.students import check_student, make_student, new_student
from compressor.tasks import TaskData
from compressor.tasks.answered_generation import AnsweredGeneration
from compressor.tasks.own import Own
from compressor.teachers import describe_teacher
from compressor.verify import parity, quality

CONTROL = "student, hard labels only"

_EVALUATION_BATCH = 16


@dataclass(frozen=True)
class Models:
    """The ONNX models that are judged and timed together, and the torch student that they come from."""

    teacher: OnnxModel | None  # None: out of reach
    student: OnnxModel
    quantized: tuple[OnnxModel, ...]
    distilled: DistilledStudent

    @property
    def onnx(self) -> tuple[OnnxModel, ...]:
        return (*([self.teacher] if self.teacher else []), self.student, *self.quantized)


def teacher(at: Materials) -> Teacher:
    """Loads the teacher, records what it is, and refuses a student that cannot be made from it before any work."""
    module, file = at.teacher_weights, at.onnx_teacher
    check_student(at.recipe, module)
    if module is not None and isinstance(at.task, Own):
        at.task.try_out(module, new_student(at.recipe), at.data)
    if isinstance(at.recipe, TextGenerationRecipe) and at.recipe.student.folder is not None:
        at.token_map(at.task.preprocessor(at.recipe.student.folder))
    if module is not None:
        parameters = sum(parameter.numel() for parameter in module.parameters())
    else:
        parameters = file.file.parameters if file else 0
    return describe_teacher(at.recipe, parameters, at.fingerprints["teacher"])


def export_teacher(at: Materials, folder: Path) -> OnnxModel:
    """The teacher as ONNX, float32 unless it came as a file: what the student is compared with on the same runtime.

    Rewritten as the student is: what the student gains is not what its graph gained. A file stays as it came.
    """
    if at.onnx_teacher is not None:
        copy = folder / "teacher.onnx"
        shutil.copyfile(at.onnx_teacher.file.path, copy)
        return replace(at.onnx_teacher.file, path=copy)
    preprocessor = at.teacher_preprocessor
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        exported = _export(at, at.task.deployable(at.teacher), "teacher", preprocessor, Path(scratch))
        return _rewrite(at, exported, preprocessor, folder)


def student(at: Materials, folder: Path) -> Student:
    """The untrained student."""
    made = make_student(at.recipe, at.teacher_weights, at.training_inputs, folder)
    at.progress.log(f"  {made.parameters:,} parameters: {'; '.join(made.notes)}")
    # Refused before it is trained: `verify` could not judge it.
    if (same := at.same_text(at.task.preprocessor(folder))) is not None:
        ratio = same.tokens_of_mine / (at.data.truth.sum() + len(at.data.truth))
        at.progress.log(f"  of held-out text it reads {ratio:.2f} tokens for each of its teacher's")
    return made


def export_student(at: Materials, distilled: DistilledStudent, folder: Path) -> OnnxModel:
    """The trained student as float32 ONNX."""
    source = distilled.student.folder
    return _export(at, at.student(source), "student", at.task.preprocessor(source), folder)


def rewrite_student(at: Materials, distilled: DistilledStudent, exported: OnnxModel, folder: Path) -> OnnxModel:
    """The exported student in fewer nodes, proven equal: what is quantized, judged, timed and shipped."""
    return _rewrite(at, exported, at.task.preprocessor(distilled.student.folder), folder)


def quantize_student(at: Materials, distilled: DistilledStudent, whole: OnnxModel, folder: Path) -> QuantizedModels:
    """The candidates in fewer bits, calibrated on training inputs: those asked for, then those found."""
    settings = at.recipe.quantize
    preprocessor = at.task.preprocessor(distilled.student.folder)
    sample = preprocessor.encode(at.data.train[: examples_wanted(settings)])
    cache = at.recipe.out / "cache"
    mixer = Mixer.of(whole, sample, preprocessor, settings, cache)
    candidates = quantize(whole, mixer, folder, at.progress)
    if settings.search is None:
        return candidates
    judging = judging_of(at, whole, preprocessor)
    found = search_precisions(whole, mixer, judging, settings.search, cache, folder, at.progress)
    return replace(candidates, models=(*candidates.models, *found))


def teacher_answers(at: Materials, exported: OnnxModel | None, folder: Path) -> TeacherSignals:
    """The teacher's outputs on the held-out inputs, in ONNX unless it is a black box: the same for every student."""
    if at.writes:
        return at.written(at.data.eval_inputs, folder)
    started = time.monotonic()
    if at.black_box or exported is None:
        outputs = _black_box_outputs(at)
    else:
        outputs = _onnx_outputs(at, exported, at.teacher_preprocessor, at.data)
    quality.worth(at.task.metric, at.task.answers(outputs, at.data), at.data.truth)  # refused before any training
    return write_outputs(outputs, folder, time.monotonic() - started)


def verify(
    at: Materials, models: Models, teacher_answers: TeacherSignals, controls: Sequence[DistilledStudent]
) -> Evidence:
    """Parity after every conversion, then the quality of every model on all held-out data."""
    folder = models.distilled.student.folder
    torch_student, preprocessor = at.student(folder), at.task.preprocessor(folder)
    parities = _parities(at, models, torch_student, preprocessor)
    data = at.held_out(teacher_answers)
    outputs = {"teacher": _teacher_rows(at, teacher_answers, data)}
    for model in (models.student, *models.quantized):
        outputs[model.name] = _onnx_outputs(at, model, preprocessor, data)
    outputs["student-torch"] = _torch_outputs(at, torch_student, preprocessor, data)
    for hard_labels in controls:
        trained = hard_labels.student.folder
        outputs[CONTROL] = _torch_outputs(at, at.student(trained), at.task.preprocessor(trained), data)
    if (same := at.same_text(preprocessor)) is not None:
        data, outputs = replace(data, truth=same.truth), same.rows(outputs)
    return Evidence(parities, _qualities(at, outputs, data))


def benchmark(at: Materials, models: Models) -> Latencies:
    """All models timed in one interleaved run on the same raw inputs, batch 1."""
    raw = at.sample(BENCHMARK_INPUTS, 2)
    candidates = []
    for model in models.onnx:
        own = (
            at.teacher_preprocessor
            if model is models.teacher
            else at.task.preprocessor(models.distilled.student.folder)
        )
        feeds = tuple(at.task.timed(own, example) for example in own.encode(raw))
        if model is models.teacher and at.onnx_teacher is not None:
            feeds = tuple(at.onnx_teacher.feed(feed) for feed in feeds)
        candidates.append(Candidate(model.name, model.path, feeds))
    wanted = at.recipe.benchmark
    settings = BenchmarkSettings(
        threads=wanted.threads,
        min_samples=wanted.min_samples,
        budget_s=wanted.budget_s,
        also_against=models.student.name,
    )
    return time_models(candidates, settings, models.student.name, at.progress)


def bundle(at: Materials, models: Models, taught_by: Teacher, judged: Quality, folder: Path) -> Bundle:
    """The shipped model with everything a device needs to trust it."""
    chosen = next(model for model in models.onnx if model.name == judged.name)
    source = models.distilled.student.folder
    target = folder / "bundle"
    target.mkdir(exist_ok=True)
    contents = Contents(
        task=at.recipe.task,
        teacher=models.teacher,
        answer=at.task.answer_settings(source),
        golden_inputs=at.task.golden_inputs(at.sample(GOLDEN_CASES - 2, 3) + at.task.edge_inputs()[:2]),
        tokenizer=source / at.tokenizer_name if at.tokenizer_name else None,
        lineage=taught_by.provenance,
        data=at.data.described,
        recipe=portable(at.recipe),
        quality=judged,
    )
    return write_bundle(chosen, contents, at.task.preprocessor(source), target)


def _export(at: Materials, module: nn.Module, name: str, preprocessor: Preprocessor, folder: Path) -> OnnxModel:
    feeds = at.task.shape_feeds(preprocessor)
    with torch.inference_mode():
        width = outputs_of(module.eval(), feeds[0]).shape[-1]
    inputs, outputs = at.task.graph(width, preprocessor)
    return export_onnx(module, name, inputs, outputs, feeds, at.recipe.export.opset, folder / f"{name}.onnx")


def _rewrite(at: Materials, exported: OnnxModel, preprocessor: Preprocessor, folder: Path) -> OnnxModel:
    rewritten = rewrite_onnx(exported, at.task.shape_feeds(preprocessor), folder)
    for applied in rewritten.rewrites:
        at.progress.log(f"  {applied.name}: {applied.times} times, {applied.nodes} nodes left")
    return rewritten


def _parities(
    at: Materials, models: Models, torch_student: nn.Module, preprocessor: Preprocessor
) -> tuple[Parity, ...]:
    raw, keep = at.parity_inputs, at.task.compared
    learnt = preprocessor.encode(raw)
    found = []
    if models.teacher is not None and not at.black_box:  # a black box was not converted
        taught = at.teacher_preprocessor.encode(raw)
        teacher_parity = parity.compare(
            "teacher",
            "teacher in torch",
            parity.onnx_outputs(models.teacher, at.teacher_preprocessor, taught, keep),
            parity.torch_outputs(at.task.deployable(at.teacher).eval(), at.teacher_preprocessor, taught, keep),
            exact=True,
        )
        found.append(parity.require(teacher_parity))
    exported = parity.onnx_outputs(models.student, preprocessor, learnt, keep)
    in_torch = parity.torch_outputs(torch_student, preprocessor, learnt, keep)
    found.append(parity.require(parity.compare("student", "student in torch", exported, in_torch, exact=True)))
    for model in models.quantized:
        outputs = parity.onnx_outputs(model, preprocessor, learnt, keep)
        found.append(parity.compare(model.name, "student", outputs, exported, exact=False))
    if at.recipe.task == "sentence-embedding":  # the largest component of an embedding means nothing
        found = [replace(one, top1_agreement=None) for one in found]
    return tuple(found)


def _teacher_rows(at: Materials, recorded: TeacherSignals, data: TaskData) -> NDArray[np.float32]:
    if isinstance(at.task, AnsweredGeneration):
        return at.task.teacher_rows(data)
    return SignalReader(recorded).outputs(np.arange(recorded.rows))


def _qualities(at: Materials, outputs: dict[str, NDArray[np.float32]], data: TaskData) -> tuple[Quality, ...]:
    by_teacher = at.task.answers(outputs["teacher"], data)
    return tuple(
        quality.judge(
            name,
            at.task.metric_name,
            at.task.metric,
            by_teacher if name == "teacher" else at.task.answers(rows, data),
            by_teacher,
            data.truth,
            at.task.agreement(rows, outputs["teacher"]),
        )
        for name, rows in outputs.items()
    )


def _torch_outputs(at: Materials, module: nn.Module, preprocessor: Preprocessor, data: TaskData) -> NDArray[np.float32]:
    examples = preprocessor.encode(data.eval_inputs)
    with torch.inference_mode():
        return answers_in_order(
            lambda batch: outputs_of(module, preprocessor.collate(batch)).numpy(),
            examples,
            _batch_of(at, 64),
            keep=at.task.judged,
        )


def _black_box_outputs(at: Materials) -> NDArray[np.float32]:
    """What a black box answers to all held-out inputs."""
    examples = at.teacher_inputs(at.data.eval_inputs)
    with at.progress.bar("teacher", len(examples), "example") as bar:
        return answers_in_order(at.answers, examples, _EVALUATION_BATCH, bar.advance, at.task.judged)


def _onnx_outputs(at: Materials, model: OnnxModel, preprocessor: Preprocessor, data: TaskData) -> NDArray[np.float32]:
    """On all held-out inputs. In float32 a batch changes nothing but the time; int8 runs as on the device."""
    examples = preprocessor.encode(data.eval_inputs)
    return first_outputs(
        model.path,
        preprocessor,
        examples,
        batch_size=_batch_of(at, _EVALUATION_BATCH) if model.precision == "float32" else 1,
        progress=at.progress,
        title=model.name,
        keep=at.task.judged,
    )


def _batch_of(at: Materials, most: int) -> int:
    """One by one where each token is answered: a row of logits for every token of many texts fills the memory."""
    return 1 if at.task.per_token else most
