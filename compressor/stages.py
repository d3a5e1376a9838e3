"""The stages of `pipeline`, each one call from materials and earlier artifacts to its own artifact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    TapPair,
    Teacher,
    TeacherSignals,
    TrainingHistory,
)
from compressor.benchmark import BenchmarkSettings, Candidate, latencies_of, measure
from compressor.bundle.build import GOLDEN_CASES, Contents, write_bundle
from compressor.distill import (
    Inputs,
    SignalReader,
    TrainingData,
    is_on,
    outputs_of,
    record_signals,
    tap_pairs,
    team,
    train,
    write_outputs,
)
from compressor.errors import StudentError
from compressor.export import export_onnx
from compressor.materials import BENCHMARK_INPUTS, Materials
from compressor.onnxrt import first_outputs
from compressor.preprocess import Preprocessor, TextPreprocessor, by_length
from compressor.quantize import quantize
from compressor.recipe import ClassDistillation, Distillation, TokenDistillation, portable
from compressor.store import write_atomic
from compressor.students import check_student, make_student, write_student
from compressor.teachers import describe_teacher
from compressor.verify import parity, quality

CONTROL = "student, hard labels only"

_EVALUATION_BATCH = 16


@dataclass(frozen=True)
class Models:
    """The ONNX models that are judged and timed together, and the torch student that they come from."""

    teacher: OnnxModel
    student: OnnxModel
    quantized: tuple[OnnxModel, ...]
    distilled: DistilledStudent

    @property
    def onnx(self) -> tuple[OnnxModel, ...]:
        return (self.teacher, self.student, *self.quantized)


def teacher(at: Materials) -> Teacher:
    """Loads the teacher, records what it is, and refuses a student that cannot be made from it before any work."""
    check_student(at.recipe, at.teacher)
    return describe_teacher(at.recipe, at.teacher, at.fingerprints["teacher"])


def export_teacher(at: Materials, folder: Path) -> OnnxModel:
    """The teacher as float32 ONNX: what the student is compared with on the same runtime."""
    return _export(at, at.task.deployable(at.teacher), "teacher", at.teacher_preprocessor, folder)


def signals(at: Materials, start: Student, folder: Path) -> TeacherSignals:
    """The teacher's outputs on the training data, and what else of it the student is to learn from."""
    module = at.task.deployable(at.teacher).eval()
    inputs = Inputs(at.teacher_examples, at.teacher_preprocessor, at.task.views, at.task.view)
    settings, inside = at.recipe.distill, inside_signals(at.recipe.distill)
    pairs: tuple[TapPair, ...] = ()
    if inside and isinstance(settings, TokenDistillation):
        pairs = tap_pairs(settings, "hidden" in inside, "relations" in inside, at.student(start.folder), module)
    return record_signals(module, inputs, pairs, folder, at.progress)


def inside_signals(settings: Distillation) -> tuple[str, ...]:
    """Which signals from inside the teacher have a weight."""
    if not isinstance(settings, TokenDistillation):
        return ()
    weights = {"hidden": settings.hidden_weight, "relations": settings.relation_weight}
    return tuple(name for name, weight in weights.items() if is_on(weight))


def student(at: Materials, folder: Path) -> Student:
    """The untrained student."""
    made = make_student(at.recipe, at.teacher, at.teacher_examples if at.tokenizer_name else [], folder)
    at.progress.log(f"  {made.parameters:,} parameters: {'; '.join(made.notes)}")
    return made


def distill(at: Materials, start: Student, recorded: TeacherSignals, folder: Path) -> DistilledStudent:
    """Trains the student on the recorded signals."""
    with team.together(team.Work(start, recorded, False, folder)):
        history = _train(at, start, recorded, at.recipe.distill, folder)
    return DistilledStudent(replace(start, folder=folder), history)


def control(at: Materials, start: Student, recorded: TeacherSignals, folder: Path) -> DistilledStudent:
    """The same student, data, steps and seed with the labels alone: what distillation is worth is the difference."""
    with team.together(team.Work(start, recorded, True, folder)):
        history = _train(at, start, recorded, _labels_alone(at), folder)
    return DistilledStudent(replace(start, folder=folder), history)


def share(at: Materials, work: team.Work) -> None:
    """What a process that does not lead does of a training: its part of every batch. It writes nothing."""
    _train(at, work.start, work.recorded, _labels_alone(at) if work.control else at.recipe.distill, work.folder)


def _labels_alone(at: Materials) -> Distillation:
    assert isinstance(at.recipe.distill, ClassDistillation)
    return at.recipe.distill.model_copy(update={"hard_weight": 1.0})


def export_student(at: Materials, distilled: DistilledStudent, folder: Path) -> OnnxModel:
    """The trained student as float32 ONNX."""
    source = distilled.student.folder
    return _export(at, at.student(source), "student", at.task.preprocessor(source), folder)


def quantize_student(at: Materials, distilled: DistilledStudent, exported: OnnxModel, folder: Path) -> QuantizedModels:
    """The int8 candidates, calibrated on training inputs."""
    preprocessor = at.task.preprocessor(distilled.student.folder)
    sample = preprocessor.encode(at.data.train[: at.recipe.quantize.calibration_samples])
    return quantize(exported, sample, preprocessor, at.recipe.quantize, folder, at.progress)


def teacher_answers(at: Materials, exported: OnnxModel, folder: Path) -> TeacherSignals:
    """The teacher's ONNX outputs on the held-out inputs: the same for every student that it is compared with."""
    started = time.monotonic()
    outputs = _onnx_outputs(at, exported, at.teacher_preprocessor)
    return write_outputs(outputs, folder, time.monotonic() - started)


def verify(
    at: Materials, models: Models, teacher_answers: TeacherSignals, controls: Sequence[DistilledStudent]
) -> Evidence:
    """Parity after every conversion, then the quality of every model on all held-out data."""
    folder = models.distilled.student.folder
    torch_student, preprocessor = at.student(folder), at.task.preprocessor(folder)
    parities = _parities(at, models, torch_student, preprocessor)
    outputs = {"teacher": SignalReader(teacher_answers).outputs(np.arange(teacher_answers.rows))}
    for model in (models.student, *models.quantized):
        outputs[model.name] = _onnx_outputs(at, model, preprocessor)
    outputs["student-torch"] = _torch_outputs(torch_student, preprocessor, at.data.eval_inputs)
    for hard_labels in controls:
        trained = hard_labels.student.folder
        outputs[CONTROL] = _torch_outputs(at.student(trained), at.task.preprocessor(trained), at.data.eval_inputs)
    return Evidence(parities, _qualities(at, outputs))


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
        feeds = tuple(own.collate([example]) for example in own.encode(raw))
        candidates.append(Candidate(model.name, model.path, feeds))
    wanted = at.recipe.benchmark
    settings = BenchmarkSettings(threads=wanted.threads, min_samples=wanted.min_samples, budget_s=wanted.budget_s)
    run = measure(candidates, settings, at.progress)
    if not run.complete:
        raise KeyboardInterrupt
    return latencies_of(run)


def bundle(at: Materials, models: Models, taught_by: Teacher, judged: Quality, folder: Path) -> Bundle:
    """The shipped model with everything a device needs to trust it."""
    chosen = next(model for model in models.onnx if model.name == judged.name)
    source = models.distilled.student.folder
    target = folder / "bundle"
    target.mkdir(exist_ok=True)
    contents = Contents(
        task=at.recipe.task,
        teacher=models.teacher,
        answer=at.task.answer_settings(),
        golden_inputs=at.sample(GOLDEN_CASES - 2, 3) + at.task.edge_inputs()[:2],
        tokenizer=source / at.tokenizer_name if at.tokenizer_name else None,
        lineage=taught_by.provenance,
        data=at.data.described,
        recipe=portable(at.recipe),
        quality=judged,
    )
    return write_bundle(chosen, contents, at.task.preprocessor(source), target)


def _train(
    at: Materials, start: Student, recorded: TeacherSignals, settings: Distillation, folder: Path
) -> TrainingHistory:
    module = at.student(start.folder)
    preprocessor = at.task.preprocessor(start.folder)
    examples = preprocessor.encode(at.data.train)
    aligned = _aligned(at, preprocessor, examples) if recorded.taps else None
    data = TrainingData(examples, SignalReader(recorded), at.data.labels, at.data.holdout, aligned)
    history = train(module, at.task, preprocessor, data, settings, folder, at.progress)
    if team.leads():
        write_student(next(module.children()), folder)
        if at.tokenizer_name:
            write_atomic(folder / at.tokenizer_name, (start.folder / at.tokenizer_name).read_bytes())
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    return history


def _aligned(at: Materials, preprocessor: Preprocessor, examples: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """bool [examples]: which are the same tokens to teacher and student. Raises StudentError when most are not."""
    theirs = at.teacher_preprocessor
    assert isinstance(preprocessor, TextPreprocessor)
    assert isinstance(theirs, TextPreprocessor)
    my_tokens, their_tokens = preprocessor.tokens(), theirs.tokens()
    same = np.array(
        [
            np.array_equal(my_tokens[mine], their_tokens[other])
            for mine, other in zip(examples, at.teacher_examples, strict=True)
        ]
    )
    at.progress.log(f"  {same.mean():.1%} of the texts are the same tokens to teacher and student")
    if same.mean() <= 0.5:
        raise StudentError(
            f"teacher and student cut only {same.mean():.1%} of the texts into the same tokens: learning token by token"
            " needs the same tokenizer; set hidden_weight and relation_weight to 0, or a larger student.vocab"
        )
    return same


def _export(at: Materials, module: nn.Module, name: str, preprocessor: Preprocessor, folder: Path) -> OnnxModel:
    feeds = at.task.shape_feeds(preprocessor)
    with torch.inference_mode():
        width = outputs_of(module.eval(), feeds[0]).shape[1]
    inputs, outputs = at.task.graph(width)
    return export_onnx(module, name, inputs, outputs, feeds, at.recipe.export.opset, folder / f"{name}.onnx")


def _parities(
    at: Materials, models: Models, torch_student: nn.Module, preprocessor: Preprocessor
) -> tuple[Parity, ...]:
    raw = at.parity_inputs
    taught, learnt = at.teacher_preprocessor.encode(raw), preprocessor.encode(raw)
    teacher_module = at.task.deployable(at.teacher).eval()
    teacher_parity = parity.compare(
        "teacher",
        "teacher in torch",
        parity.onnx_outputs(models.teacher, at.teacher_preprocessor, taught),
        parity.torch_outputs(teacher_module, at.teacher_preprocessor, taught),
        exact=True,
    )
    exported = parity.onnx_outputs(models.student, preprocessor, learnt)
    student_parity = parity.compare(
        "student", "student in torch", exported, parity.torch_outputs(torch_student, preprocessor, learnt), exact=True
    )
    found = [parity.require(teacher_parity), parity.require(student_parity)]
    for model in models.quantized:
        outputs = parity.onnx_outputs(model, preprocessor, learnt)
        found.append(parity.compare(model.name, "student", outputs, exported, exact=False))
    if at.recipe.task == "sentence-embedding":  # the largest component of an embedding means nothing
        found = [replace(one, top1_agreement=None) for one in found]
    return tuple(found)


def _qualities(at: Materials, outputs: dict[str, NDArray[np.float32]]) -> tuple[Quality, ...]:
    by_teacher = at.task.answers(outputs["teacher"], at.data)
    return tuple(
        quality.judge(
            name,
            at.task.metric_name,
            at.task.metric,
            by_teacher if name == "teacher" else at.task.answers(rows, at.data),
            by_teacher,
            at.data.truth,
            at.task.agreement(rows, outputs["teacher"]),
        )
        for name, rows in outputs.items()
    )


def _torch_outputs(
    module: nn.Module, preprocessor: Preprocessor, raw: Sequence[Any] | NDArray[Any]
) -> NDArray[np.float32]:
    examples = preprocessor.encode(raw)
    rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(examples)
    with torch.inference_mode():
        for batch in by_length([len(example) for example in examples], 64):
            outputs = outputs_of(module, preprocessor.collate([examples[i] for i in batch])).numpy()
            for i, row in zip(batch, outputs, strict=True):
                rows[i] = row
    return np.stack(rows)


def _onnx_outputs(at: Materials, model: OnnxModel, preprocessor: Preprocessor) -> NDArray[np.float32]:
    """On all held-out inputs. In float32 a batch changes nothing but the time; int8 runs as on the device."""
    return first_outputs(
        model.path,
        preprocessor,
        preprocessor.encode(at.data.eval_inputs),
        batch_size=_EVALUATION_BATCH if model.precision == "float32" else 1,
        progress=at.progress,
        title=model.name,
    )
