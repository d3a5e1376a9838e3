"""The trainings of `bench distillation`: this program's, and a plain loop that takes any loss.

The loop has the same batches, views, learning rates and optimiser, and nothing else of the engine: `_agreement` holds
the two against each other.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.distill import TrainingData, Workplace, outputs_of, train
from compressor.distill.batches import epoch_batches, epoch_views, learning_rate_share
from compressor.preprocess import Preprocessor, answers_in_order
from compressor.progress import SILENT
from compressor.recipe_distill import Distillation
from compressor.tasks import Task

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""student and teacher float32 [answers, width], labels int64 [answers] or None -> a scalar."""

_TEXTS = 8  # held-out texts judged at once where each token is answered


@dataclass(frozen=True)
class Pupil:
    """A student before its training, and what it learns on."""

    module: nn.Module
    task: Task
    preprocessor: Preprocessor
    data: TrainingData


@dataclass(frozen=True)
class Objective:
    """`loss` is what the loop lessens; the epoch in which it is least on the held-out rows is kept.

    `batches` gives the rows of each batch of an epoch where they are not the engine's: then the last weights are kept,
    since what such a loss says of the held-out rows means nothing.
    """

    loss: Loss
    batches: Callable[[int], list[NDArray[np.int64]]] | None = None


def by_engine(pupil: Pupil, settings: Distillation) -> list[float]:
    """Trains as a recipe does, in place; the loss along the way."""
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder), SILENT)
        history = train(pupil.module, pupil.task, pupil.preprocessor, pupil.data, settings, place)
    return [point.loss for point in history.losses]


def by_loop(pupil: Pupil, settings: Distillation, objective: Objective) -> list[float]:
    """Trains in place with `objective`; the loss of every step."""
    torch.manual_seed(settings.seed)
    module, data = pupil.module, pupil.data
    _without_dropout(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    plan = [_rows_of(pupil, settings, objective, epoch) for epoch in range(settings.epochs)]
    total = sum(len(batches) for batches in plan)
    curve: list[float] = []
    least, best = math.inf, module.state_dict()
    for epoch, batches in enumerate(plan):
        module.train()
        views = epoch_views(data.rows, pupil.task.views, settings.seed, epoch)
        for rows in batches:
            rate = settings.learning_rate * learning_rate_share(len(curve), total, settings.warmup)
            optimizer.param_groups[0]["lr"] = rate
            loss = objective.loss(*_batch(pupil, rows, views[rows]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curve.append(loss.item())
        module.eval()
        now = -float(epoch) if objective.batches else _held_out(pupil, objective.loss)
        if now < least:
            least, best = now, copy.deepcopy(module.state_dict())
    module.load_state_dict(best)
    return curve


def outputs_on(
    module: nn.Module, task: Task, preprocessor: Preprocessor, examples: list[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """What is judged of the student's answers to encoded examples: float32 [rows, width]."""
    at_once = 1 if task.per_token else 64
    with torch.inference_mode():
        return answers_in_order(
            lambda batch: outputs_of(module, preprocessor.collate(batch)).numpy(), examples, at_once, keep=task.judged
        )


def _without_dropout(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def _rows_of(pupil: Pupil, settings: Distillation, objective: Objective, epoch: int) -> list[NDArray[np.int64]]:
    if objective.batches is not None:
        return objective.batches(epoch)
    lengths = np.array([len(example) for example in pupil.data.examples[: pupil.data.rows]], dtype=np.int64)
    return epoch_batches(lengths, settings.batch_size, settings.seed, epoch)


def _batch(pupil: Pupil, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
    data = pupil.data
    shown = [pupil.task.view(data.examples[i], int(view)) for i, view in zip(rows, views, strict=True)]
    student = data.answers_of(outputs_of(pupil.module, pupil.preprocessor.collate(shown)), rows).float()
    return student, _taught(data, views * len(data.examples) + rows), data.labels_of(rows)


def _held_out(pupil: Pupil, loss: Loss) -> float:
    """On all held-out rows at once, or of texts whose tokens are answered some at a time."""
    data = pupil.data
    rows = np.arange(data.rows, len(data.examples))
    at_once = _TEXTS if pupil.task.per_token else len(rows)
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            total += float(loss(*_batch(pupil, part, np.zeros_like(part)))) * data.answered(part)
    return total / data.answered(rows)


def _taught(data: TrainingData, recorded: NDArray[np.int64]) -> Tensor:
    teacher = data.taught(recorded)
    assert isinstance(teacher, Tensor), "whole outputs were recorded"
    return teacher
