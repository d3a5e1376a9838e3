"""The stages that judge: what the teacher answers, and the parity and quality of everything that was made of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.artifacts import DistilledStudent, Evidence, OnnxModel, Parity, Quality, Reference, TeacherSignals
from compressor.distill import SignalReader, outputs_of, write_outputs
from compressor.errors import TeacherError
from compressor.materials import Materials
from compressor.metrics import rank_correlation
from compressor.onnxrt import first_outputs
from compressor.preprocess import Preprocessor, answers_in_order
from compressor.tasks import TaskData
from compressor.tasks.answered_generation import AnsweredGeneration
from compressor.tasks.sentence_embedding import SentenceEmbedding
from compressor.tasks.text_classification import TextClassification
from compressor.tasks.token_classification import TokenClassification
from compressor.teachers import named
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
        outputs = _answers_of(at, at.data.eval_inputs, "teacher")
    else:
        outputs = _onnx_outputs(at, exported, at.teacher_preprocessor, at.data)
    quality.worth(at.task.metric, at.task.answers(outputs, at.data), at.data.truth)  # refused before any training
    return write_outputs(outputs, folder, time.monotonic() - started)


def reference_answers(at: Materials, folder: Path) -> TeacherSignals:
    """What the model of `verify.reference` answers to the held-out inputs. Raises TeacherError where its classes
    are not the teacher's."""
    assert at.reference is not None
    started = time.monotonic()
    classes, own = _classes(at), _classes(at.reference)
    if own != classes:
        raise TeacherError(
            f"verify.reference: expected the teacher's classes in its order, {', '.join(classes)}; got {', '.join(own)}"
        )
    outputs = _answers_of(at.reference, at.data.eval_inputs, "reference")
    return write_outputs(outputs, folder, time.monotonic() - started)


def _classes(at: Materials) -> tuple[str, ...]:
    """Those that the teacher itself names; images' are the recipe's."""
    return at.task.classes() if isinstance(at.task, TextClassification | TokenClassification) else ()


def verify(
    at: Materials,
    models: Models,
    teacher_answers: TeacherSignals,
    controls: Sequence[DistilledStudent],
    reference: TeacherSignals | None,
    known: Sequence[Parity] = (),
) -> Evidence:
    """Parity after every conversion, some `known` already; the quality of every model on all held-out data; and how far
    the `reference` agrees with it."""
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
    return Evidence(parities, _qualities(at, outputs, data), _judged_by(at, reference, outputs, data))


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
    probes = (*_probes(at, preprocessor), *parity.probes_in_shapes(at.task.shape_feeds(preprocessor)))
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
        source=torch_student,
    )
    found.append(parity.require(again))
    unfused = models.student.open_path or models.student.path
    for model in models.quantized:
        if own := [one for one in known if one.name == model.name]:
            found += own
            continue
        given = parity.answers(parity.by_onnx(model.path), probes), rewritten
        where = partial(first_node, model.path, unfused, same=parity.same_way)
        found.append(parity.compare(model.name, "student", given, probes, where, source=None))
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
        source=module,
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


def _judged_by(
    at: Materials, reference: TeacherSignals | None, outputs: dict[str, NDArray[np.float32]], data: TaskData
) -> Reference | None:
    if reference is None or at.reference is None:
        return None
    rows = SignalReader(reference).outputs(np.arange(reference.rows))
    by_teacher, by_reference = (at.task.answers(one, data) for one in (outputs["teacher"], rows))

    def agreement(of: NDArray[np.float32]) -> float:
        if isinstance(at.task, SentenceEmbedding):
            return rank_correlation(at.task.answers(of, data), by_reference)
        return at.task.agreement(of, rows)

    found = {name: agreement(of) for name, of in outputs.items()}
    judged = quality.judge(
        "reference", at.task.metric_name, at.task.metric, by_reference, by_teacher, data.truth, found["teacher"]
    )
    return Reference(named(at.reference.recipe)[1], judged, found)


def _torch_outputs(at: Materials, module: nn.Module, preprocessor: Preprocessor, data: TaskData) -> NDArray[np.float32]:
    examples = preprocessor.encode(data.eval_inputs)
    with torch.inference_mode():
        return answers_in_order(
            lambda batch: outputs_of(module, preprocessor.collate(batch)).numpy(),
            examples,
            _batch_of(at, 64),
            keep=at.task.judged,
        )


def _answers_of(at: Materials, raw: Sequence[Any] | NDArray[Any], title: str) -> NDArray[np.float32]:
    """What a teacher answers to these inputs, not exported."""
    examples = at.teacher_inputs(raw)
    with at.progress.bar(title, len(examples), "example") as bar:
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
