"""The stages of `pipeline`, each one call from materials and earlier artifacts to its own artifact."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from compressor.artifacts import Bundle, DistilledStudent, OnnxModel, Quality, QuantizedModels, Student, Teacher
from compressor.attributing import asked_for, attributions
from compressor.benchmark import BenchmarkSettings, Candidate, explained, time_models
from compressor.bundle.build import GOLDEN_CASES, Contents, write_bundle
from compressor.bundle.licenses import license_texts
from compressor.distill import check_precision, outputs_of
from compressor.export import export_onnx, rewrite_onnx
from compressor.judging import Models
from compressor.materials import BENCHMARK_INPUTS, Materials
from compressor.preprocess import Preprocessor
from compressor.quantize import Mixer, examples_wanted, quantize
from compressor.recipe import TextGenerationRecipe
from compressor.recipe_portable import portable
from compressor.recipe_teacher import FolderTeacher, HubTeacher
from compressor.searching import judging_of, search_precisions
from compressor.students import check_student, make_student, new_student
from compressor.tasks.own import Own
from compressor.teachers import describe_teacher, root_folder
from compressor.timings import Latencies


def teacher(at: Materials) -> Teacher:
    """Loads the teacher, records what it is, and refuses a student that cannot be made from it before any work."""
    check_precision(at.recipe.distill)
    _license_texts(at)  # which the bundle needs
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
    judging = judging_of(at, whole, preprocessor)
    mixtures = asked_for(mixer, candidates.models)
    if settings.search is not None:
        mixtures += search_precisions(whole, mixer, judging, settings.search, cache, folder, at.progress)
    models = tuple(model for model, _ in mixtures)
    return replace(candidates, models=models, attributions=attributions(mixer, mixtures, judging))


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
    timed = time_models(candidates, settings, models.student.name, at.progress)
    return explained(timed, candidates, settings, models.student.name, at.progress)


def bundle(at: Materials, models: Models, taught_by: Teacher, judged: Quality, folder: Path) -> Bundle:
    """The shipped model with everything a device needs to trust it."""
    chosen = next(model for model in models.onnx if model.name == judged.name)
    source = models.distilled.student.folder
    target = folder / "bundle"
    target.mkdir(exist_ok=True)
    config = source / "config.json"
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
        config=config if at.tokenizer_name and config.is_file() else None,
        licenses=_license_texts(at),
    )
    return write_bundle(chosen, contents, at.task.preprocessor(source), target)


def _license_texts(at: Materials) -> dict[str, bytes]:
    teacher = at.recipe.teacher
    return license_texts(root_folder(teacher)) if isinstance(teacher, FolderTeacher | HubTeacher) else {}


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
