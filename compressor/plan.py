"""What a recipe would do, without doing it: sizes, steps, what is kept from earlier runs, an estimate of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from compressor.answered import Answer
from compressor.distill import check_precision, inside_signals, outputs_of, steps_per_epoch, tap_pairs
from compressor.distill.mixture import Lesson, mixture
from compressor.distill.positions import as_drawn
from compressor.materials import Materials
from compressor.pipeline import kept_stages, signals_kept
from compressor.prediction import predict_bytes
from compressor.preprocess import by_length
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.recipe_distill import NextTokenDistillation, TokenDistillation
from compressor.recipe_teacher import EndpointClassifier, EndpointTeacher, EndpointWriter
from compressor.students import blank_student

# Exports, quantization, parity and the bundle, beside what is measured.
_FIXED_S = 60.0
# What an endpoint is assumed to take for an answer.
_ENDPOINT_S = 1.0


@dataclass(frozen=True)
class Plan:
    """`seconds` is extrapolated from a few batches on this machine: expect it within a factor of two."""

    task: str
    out: str
    teacher_parameters: int
    student_parameters: int
    predicted_onnx_bytes: dict[str, int]
    training_examples: int
    evaluation_examples: int
    steps: int
    teacher_cache_bytes: int
    teacher_cache: str
    teacher_cache_kept: bool
    kept_stages: tuple[str, ...]
    seconds: float


def make_plan(recipe: Recipe, progress: Progress) -> Plan:
    """Loads teacher and data, builds the student's shape, times a few batches. Writes nothing but the data cache."""
    at = Materials(recipe, progress)
    at.fingerprints  # noqa: B018 (missing files are found before anything is loaded)
    check_precision(recipe.distill)
    data = at.data
    student = blank_student(recipe, at.teacher_weights, at.training_inputs)
    if isinstance(recipe.distill, TokenDistillation) and inside_signals(recipe.distill):
        tap_pairs(recipe.distill, student, at.teacher)  # raises where they cannot be
    rows = len(data.train) - data.holdout
    steps = steps_per_epoch(rows, recipe.distill.batch_size) * recipe.distill.epochs
    signals = at.task.views * len(data.train)
    teacher_s, step_s, answer_bytes = _rates(at, student)
    evaluation_s = len(data.eval_inputs) * teacher_s * 1.5
    return Plan(
        task=recipe.task,
        out=str(recipe.out),
        teacher_parameters=_teacher_parameters(at),
        student_parameters=_count(student),
        predicted_onnx_bytes=predict_bytes(at, [student])[0],
        training_examples=rows,
        evaluation_examples=len(data.truth),
        steps=steps,
        teacher_cache_bytes=signals * answer_bytes,
        teacher_cache=str(recipe.cache or recipe.out),
        teacher_cache_kept=signals_kept(recipe, at),
        kept_stages=kept_stages(recipe, at),
        seconds=round(signals * teacher_s + steps * step_s + evaluation_s + recipe.benchmark.budget_s + _FIXED_S, 0),
    )


def plan_lines(plan: Plan) -> list[str]:
    """The plan for a reader."""
    found = "found" if plan.teacher_cache_kept else "to be recorded"
    predicted = ", ".join(f"{precision} {size / 1e6:.1f} MB" for precision, size in plan.predicted_onnx_bytes.items())
    return [
        f"task        {plan.task}",
        f"teacher     {plan.teacher_parameters:,} parameters"
        if plan.teacher_parameters
        else "teacher     of unknown size; about one second for each answer is assumed",
        f"student     {plan.student_parameters:,} parameters; predicted ONNX: {predicted}",
        f"training    {plan.steps:,} steps over {plan.training_examples:,} examples",
        f"evaluation  {plan.evaluation_examples:,} examples",
        f"cache       {plan.teacher_cache_bytes / 1e6:.1f} MB of teacher outputs, {found} in {plan.teacher_cache}",
        f"kept        {', '.join(plan.kept_stages) or 'nothing'} from earlier runs in {plan.out}",
        f"time        about {plan.seconds / 60:.0f} minutes on this machine, if nothing is kept",
    ]


def _rates(at: Materials, student: nn.Module) -> tuple[float, float, int]:
    """Seconds per teacher example, seconds per training step, and the bytes kept of the teacher's answer to one."""
    batch = at.recipe.distill.batch_size
    raw = at.data.train[: 5 * batch]
    examples = at.teacher_inputs(raw)
    # Of batches by length, the middle one: its padding is what a step of the real order has on average.
    middle = by_length([len(example) for example in examples], batch)[len(examples) // batch // 2]
    teacher_s, target = _teacher_rate(at, [examples[i] for i in middle])
    if isinstance(at.recipe.distill, NextTokenDistillation) and isinstance(student, PreTrainedModel):
        target = target[..., : student.config.vocab_size]  # as many of its tokens as the student has
    preprocessor = at.planning_preprocessor(student)
    feed = preprocessor.collate(preprocessor.encode([_as_learnt(at, raw[i]) for i in middle]))
    student_feed = {name: _within(array, student) for name, array in feed.items()}
    module = at.task.deployable(student).train()
    labels = None if at.data.labels is None else torch.from_numpy(at.data.labels[middle])
    if at.task.per_token and not at.writes:
        labels = torch.zeros(target.shape[:2], dtype=torch.int64)

    def step() -> torch.Tensor:
        value = mixture(_lesson(at, outputs_of(module, student_feed), target, labels), at.recipe.distill, 0.0)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    step_s, _ = _timed(step)
    return teacher_s / len(middle), step_s, _answer_bytes(at, target)


def _lesson(at: Materials, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None) -> Lesson:
    """Of answers to tokens, every token's."""
    if not at.task.per_token:
        return Lesson(student, teacher, labels, own_loss=at.task.loss)
    if at.writes:
        return Lesson(student.flatten(0, -2), as_drawn(torch.zeros(student.shape[:2].numel(), dtype=torch.int64)), None)
    return Lesson(student.flatten(0, -2), teacher.flatten(0, -2), None if labels is None else labels.flatten())


def _as_learnt(at: Materials, raw: Any) -> Any:
    """A training input as the student reads it; of answers that are not known yet, with one of the greatest length."""
    teacher = at.recipe.teacher
    return (raw, Answer(" a" * teacher.max_tokens, True)) if isinstance(teacher, EndpointWriter) else raw


def _answer_bytes(at: Materials, outputs: torch.Tensor) -> int:
    """What is kept of an example's outputs, in the batch [batch, ..., width]."""
    settings = at.recipe.distill
    if not isinstance(settings, NextTokenDistillation):
        return 4 * outputs[0].numel()
    id_bytes = 2 if outputs.shape[-1] <= 2**16 else 4
    each = id_bytes if settings.teacher_signal == "sampled" else id_bytes + 1
    return outputs.shape[1] * each * settings.kept_tokens


def _teacher_rate(at: Materials, examples: Sequence[Any]) -> tuple[float, torch.Tensor]:
    """Seconds for these examples, and what the teacher answers; an endpoint, which may cost money, is not asked."""
    teacher = at.recipe.teacher
    if isinstance(teacher, EndpointTeacher):
        each_s = max(60 / (teacher.requests_per_minute or float("inf")), _ENDPOINT_S / teacher.concurrency)
        width = len(teacher.classes) if isinstance(teacher, EndpointClassifier) else teacher.max_tokens
        return each_s * len(examples), torch.zeros(len(examples), width)
    if at.task.per_token:
        return _timed(lambda: at.logits(examples))
    return _timed(lambda: torch.from_numpy(at.answers(examples)))


def _teacher_parameters(at: Materials) -> int:
    if at.onnx_teacher is not None:
        return at.onnx_teacher.file.parameters
    return 0 if at.teacher_weights is None else _count(at.teacher_weights)


def _within(array: NDArray[Any], student: nn.Module) -> NDArray[Any]:
    """Token ids of the teacher, folded into the student's smaller vocabulary: only the time counts here."""
    if array.dtype != np.int64 or not isinstance(student, PreTrainedModel):
        return array
    folded: NDArray[Any] = array % student.config.vocab_size
    return folded


def _timed(call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    call()
    started = time.perf_counter()
    for _ in range(3):
        result = call()
    return (time.perf_counter() - started) / 3, result


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
