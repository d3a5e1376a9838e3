"""What a batch teaches: the student's answers beside the teacher's recorded ones, and the loss of the two."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.distill.learner import Learner
from compressor.distill.mixture import Lesson, across_processes, class_loss, held_out_score, mixture, weight_at
from compressor.distill.on_policy import Score, continued, is_on_policy
from compressor.distill.training_inputs import TrainingData
from compressor.kernels import LossSettings, SparseTeacher
from compressor.preprocess import CausalPreprocessor, Preprocessor, by_length
from compressor.recipe_distill import Distillation, EmbeddingDistillation, NextTokenDistillation
from compressor.tasks import Task

_BATCH, _TEXTS = 64, 8  # examples judged at once; fewer where each token of a text gets a row of logits


@dataclass(frozen=True)
class Lessons:
    """`wrapped` is the learner as several processes share it, or the learner itself."""

    task: Task
    preprocessor: Preprocessor
    data: TrainingData
    settings: Distillation
    learner: Learner
    wrapped: Any

    def loss(self, rows: NDArray[np.int64], views: NDArray[np.int64], step: int, steps: int) -> Tensor:
        """The mean loss of the rows, shown so, at this step of all; a scalar with its graph."""
        score, share = self.data.score, step / steps
        if score is not None:
            assert isinstance(self.settings, NextTokenDistillation)
            if is_on_policy(weight_at(self.settings.on_policy, share), self.settings.seed, step):
                return self._loss_of_own_words(rows, step, score)
        shown = [self.task.view(self.data.examples[i], int(view)) for i, view in zip(rows, views, strict=True)]
        output, taps, head = self.wrapped(self.preprocessor.collate(shown))
        device, signals = output.device, self.data.signals
        recorded = views * len(self.data.examples) + rows
        labels = self.data.labels_of(rows)
        teacher, student = _to(self.data.taught(recorded), device), self.data.answers_of(output, rows).float()
        if isinstance(self.settings, EmbeddingDistillation):  # whose losses look at the whole batch
            assert isinstance(teacher, Tensor)
            student, teacher = across_processes(student), across_processes(teacher)
        lesson = Lesson(
            student=student,
            teacher=teacher,
            labels=None if labels is None else labels.to(device),
            head=tuple(part.float() for part in head),
            student_taps={pair: value.float() for pair, value in taps.items()},
            teacher_taps={
                pair: torch.from_numpy(signals.tokens(pair.teacher, recorded, value.shape[1])).to(device)
                for pair, value in taps.items()
            },
            mask=self._mask(rows).to(device) if taps else None,
            own_loss=self.task.loss,
        )
        return mixture(lesson, self.settings, share)

    def held_out_score(self) -> float:
        """The mean over the held-out answers, higher is better; the learner must be in evaluation mode."""
        rows = np.arange(self.data.rows, len(self.data.examples))
        at_once = _BATCH if self.data.positions is None else _TEXTS
        total = 0.0
        with torch.inference_mode():
            for batch in by_length([len(self.data.examples[i]) for i in rows], at_once):
                total += self._score_of(rows[batch]) * self.data.answered(rows[batch])
        return total / max(1, self.data.answered(rows))

    def _loss_of_own_words(self, rows: NDArray[np.int64], step: int, score: Score) -> Tensor:
        """The student's own continuations have no labels, and nothing of them was recorded."""
        assert isinstance(self.settings, NextTokenDistillation)
        assert isinstance(self.preprocessor, CausalPreprocessor)
        # Other draws at every step and in every process, and the same ones when a run is resumed.
        seed = np.random.default_rng((self.settings.seed, 3, step, *rows.tolist())).integers(2**63 - 1)
        generator = torch.Generator().manual_seed(int(seed))
        examples = [self.data.examples[i] for i in rows]
        said = continued(self.learner.student, self.learner.head, self.preprocessor, examples, generator)
        output, _, head = self.wrapped(self.preprocessor.collate(said))
        student = self.data.answers_of(output, rows).float()  # of the same lengths: at the same positions
        teacher = _to(score(said, generator), output.device)
        lesson = Lesson(student, teacher, None, tuple(part.float() for part in head))
        return class_loss(lesson, LossSettings(self.settings.temperature))

    def _score_of(self, rows: NDArray[np.int64]) -> float:
        output, _, head = self.learner(self.preprocessor.collate([self.data.examples[i] for i in rows]))
        student = self.data.answers_of(output, rows).float().cpu()
        weights = tuple(part.float().cpu() for part in head)
        lesson = Lesson(student, self.data.taught(rows), self.data.labels_of(rows), weights, own_loss=self.task.loss)
        return held_out_score(lesson, self.settings)

    def _mask(self, rows: NDArray[np.int64]) -> Tensor:
        """bool [batch, sequence]: the tokens of rows that teacher and student cut alike."""
        lengths = np.array([len(self.data.examples[i]) for i in rows])
        counted = lengths if self.data.aligned is None else lengths * self.data.aligned[rows]
        return torch.from_numpy(np.arange(lengths.max()) < counted[:, None])


def _to(teacher: Tensor | SparseTeacher, device: torch.device) -> Tensor | SparseTeacher:
    if isinstance(teacher, Tensor):
        return teacher.to(device)
    return replace(teacher, indices=teacher.indices.to(device), values=teacher.values.to(device))
