"""The stages that judge: what the teacher answers, and the parity and quality of everything that was made of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.artifacts import DistilledStudent, Evidence, OnnxModel, Parity, Quality, TeacherSignals
from compressor.distill import SignalReader, outputs_of, write_outputs
from compressor.materials import Materials
from compressor.onnxrt import first_outputs
from compressor.preprocess import Preprocessor, answers_in_order
from compressor.tasks import TaskData
from compressor.tasks.answered_generation import AnsweredGeneration
from compressor.verify import parity, quality
from compressor.verify.departure import first_module, first_node

CONTROL = "student, hard labels only"

_EVALUATION_BATCH = 16


@dataclass(frozen=True)
class Models:
    """The ONNX models that are judged and timed together, the torch student that they come from, and what was exported
    from that before it was rewritten."""

    teacher: OnnxModel | None  # None: out of reach
    exported: OnnxModel
    student: OnnxModel
    quantized: tuple[OnnxModel, ...]
    distilled: DistilledStudent

    @property
    def onnx(self) -> tuple[OnnxModel, ...]:
        return (*([self.teacher] if self.teacher else []), self.student, *self.quantized)


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
    at: Materials,
    models: Models,
    teacher_answers: TeacherSignals,
    controls: Sequence[DistilledStudent],
    known: Sequence[Parity] = (),
) -> Evidence:
    """Parity after every conversion, some `known` already, then the quality of every model on all held-out data."""
    folder = models.distilled.student.folder
    torch_student, preprocessor = at.student(folder), at.task.preprocessor(folder)
    parities = _parities(at, models, torch_student, preprocessor, known)
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


def _parities(
    at: Materials, models: Models, torch_student: nn.Module, preprocessor: Preprocessor, known: Sequence[Parity]
) -> tuple[Parity, ...]:
    """Torch, exported, rewritten, quantized: each against the one before it. Raises ExportError where one in float32
    departs.
    """
    found: list[Parity] = []
    if models.teacher is not None and not at.black_box:  # a black box was not converted
        module, teachers = at.task.deployable(at.teacher).eval(), at.teacher_preprocessor
        probes = (*_probes(at, teachers), *parity.probes_in_shapes(at.task.shape_feeds(teachers)))
        taught = parity.answers(parity.by_onnx(models.teacher.path), probes)
        found.append(_exported("teacher", "teacher", models.teacher, taught, module, probes))
    inputs = _probes(at, preprocessor)
    probes = (*inputs, *parity.probes_in_shapes(at.task.shape_feeds(preprocessor)))
    exported, rewritten = (
        parity.answers(parity.by_onnx(model.path), probes) for model in (models.exported, models.student)
    )
    found.append(_exported("student-exported", "student", models.exported, exported, torch_student, probes))
    again = parity.compare(
        "student",
        "student-exported",
        (rewritten, exported),
        probes,
        lambda feed: first_node(models.student.path, models.exported.path, feed, parity.equal_floats),
        float64=lambda: parity.by_torch_in_float64(torch_student),
    )
    found.append(parity.require(again))
    unfused = models.student.open_path or models.student.path
    for model in models.quantized:
        if own := [one for one in known if one.name == model.name]:
            found += own
            continue
        given = parity.answers(parity.by_onnx(model.path), inputs), rewritten[: len(inputs)]
        where = partial(first_node, model.path, unfused, same=parity.same_way)
        found.append(parity.compare(model.name, "student", given, inputs, where, float64=None))
    if at.recipe.task == "sentence-embedding":  # the largest component of an embedding means nothing
        found = [replace(one, top1_agreement=None) for one in found]
    return tuple(found)


def _exported(
    name: str, source: str, model: OnnxModel, given: parity.Answers, module: nn.Module, probes: Sequence[parity.Probe]
) -> Parity:
    """What a graph answered against the module that it was exported from. Raises ExportError where it departs."""
    found = parity.compare(
        name,
        f"{source} in torch",
        (given, parity.answers(parity.by_torch(module), probes)),
        probes,
        lambda feed: first_module(module, model.path, feed, parity.equal_floats),
        float64=lambda: parity.by_torch_in_float64(module),
    )
    return parity.require(found)


def _probes(at: Materials, preprocessor: Preprocessor) -> tuple[parity.Probe, ...]:
    return parity.probes_of(preprocessor, at.parity_inputs, at.task.compared)


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
