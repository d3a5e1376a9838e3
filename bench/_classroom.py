"""What every row of `bench distillation` has in common: teacher, data, the student to begin with, how it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from bench._outcome import EXAMPLES
from bench._sentence_labels import label_loss, triplet_batches, triplets
from bench._training import Objective, Pupil, outputs_on
from compressor import learning, stages
from compressor.artifacts import Student, TeacherSignals
from compressor.distill import Inputs, SignalReader, TrainingData, answers_at, record_signals
from compressor.errors import BenchmarkError, DataError, TeacherError
from compressor.materials import Materials
from compressor.progress import Progress
from compressor.recipe import ImageClassificationRecipe, SentenceEmbeddingRecipe
from compressor.recipe_distill import ClassDistillation, Distillation
from compressor.recipe_file import read_recipe
from compressor.recipe_portable import portable
from compressor.store import key_of
from compressor.students import new_student
from compressor.tasks.tables import read_columns

CACHE = Path(__file__).parent.parent / ".cache" / "bench" / "distillation"
_TEXTS = 8  # asked at once where each token is answered
_DECIDES = ("task", "teacher", "data", "student")  # what of a recipe, beside its training, a result depends on


@dataclass(frozen=True)
class Lecture:
    """An example's recipe, with `overrides`. `source`: what `examples/fetch.py` calls its teacher and data."""

    task: str
    example: str
    source: str
    overrides: tuple[str, ...]


class Classroom:
    """Asks the teacher once; hands out the same untrained student again and again."""

    def __init__(self, lecture: Lecture) -> None:
        self.lecture = lecture
        recipe = read_recipe(EXAMPLES / f"{lecture.example}.yaml", list(lecture.overrides))
        probe = Materials(recipe, Progress())
        try:
            self.key = key_of({name: portable(recipe)[name] for name in _DECIDES}, probe.fingerprints)
        except (DataError, TeacherError) as error:
            raise BenchmarkError(f"{error}; first: python examples/fetch.py {lecture.source}") from None
        folder = CACHE / f"{lecture.task}-{self.key[:16]}"
        self.at = Materials(recipe.model_copy(update={"out": folder}), Progress())
        self._folder = folder

    @cached_property
    def start(self) -> Student:
        folder = self._folder / "student"
        folder.mkdir(parents=True, exist_ok=True)
        return stages.student(self.at, folder)

    @cached_property
    def _data(self) -> TrainingData:
        # What is recorded of the teacher depends on the settings, beside what the folder is named by.
        folder = self._folder / f"signals-{key_of(self.at.recipe.distill)[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        return self._taught_by(learning.signals(self.at, self.start, folder))

    @cached_property
    def _whole_data(self) -> TrainingData:
        """Of a language model the engine keeps a part of each distribution; losses of others take all of it."""
        if not self.at.task.per_token:
            return self._data
        folder = self._folder / "whole-signals"
        folder.mkdir(parents=True, exist_ok=True)
        ask = answers_at(self.at.logits, self.at.task.positions, ClassDistillation(), None)
        inputs = Inputs(self.at.teacher_examples, self.at.task.views, self.at.task.view)
        return self._taught_by(record_signals(ask, inputs, folder, self.at.progress, _TEXTS))

    def _taught_by(self, recorded: TeacherSignals) -> TrainingData:
        task = self.at.task
        examples = task.preprocessor(self.start.folder).encode(self.at.data.train)
        positions = [task.positions(example) for example in examples] if task.per_token else None
        labels = task.labels(self.at.data, examples)
        return TrainingData(examples, SignalReader(recorded), labels, self.at.data.holdout, positions)

    @property
    def cut(self) -> bool:
        """Whether the student comes from the teacher's weights: those of images have random ones."""
        return not isinstance(self.at.recipe, ImageClassificationRecipe)

    def pupil(self, seed: int, scratch: bool = False, whole: bool = False) -> Pupil:
        """The untrained student; `scratch`: of the same sizes with random weights; `whole`: of the teacher it is told
        all, not what the engine keeps.
        """
        torch.manual_seed(seed)
        recipe = self.at.recipe
        if isinstance(recipe, ImageClassificationRecipe):
            module = self.at.task.deployable(new_student(recipe))
        else:
            module = self.at.student(self.start.folder)
            if scratch:
                raw = next(module.children())
                module = self.at.task.deployable(type(raw)(raw.config))
        data = self._whole_data if whole else self._data
        return Pupil(module, self.at.task, self.at.task.preprocessor(self.start.folder), data)

    def settings(self, seed: int, **changes: object) -> Distillation:
        """The recipe's, of which the losses and their weights are this program's defaults."""
        mine = self.at.recipe.distill
        plain = Distillation.model_fields.keys() | {"mirror"}
        losses = {name: field.default for name, field in type(mine).model_fields.items() if name not in plain}
        return mine.model_copy(update={**losses, "seed": seed, **changes})

    def judge(self, module: nn.Module) -> float:
        """The task's metric on the evaluation data."""
        preprocessor = self.at.task.preprocessor(self.start.folder)
        examples = preprocessor.encode(self.at.data.eval_inputs)
        outputs = outputs_on(module.eval(), self.at.task, preprocessor, examples)
        return self.at.task.metric(self.at.task.answers(outputs, self.at.data), self.at.data.truth)

    def teacher_score(self) -> float:
        """The teacher's own metric on the evaluation data."""
        task, preprocessor = self.at.task, self.at.teacher_preprocessor
        examples = preprocessor.encode(self.at.data.eval_inputs)
        outputs = outputs_on(task.deployable(self.at.teacher).eval(), task, preprocessor, examples)
        return self.at.task.metric(self.at.task.answers(outputs, self.at.data), self.at.data.truth)

    def sentence_labels(self, settings: Distillation) -> Objective:
        """Learning from the labels of the training file's pairs, in as many batches as the other rows have."""
        recipe = self.at.recipe
        assert isinstance(recipe, SentenceEmbeddingRecipe)
        data = recipe.data
        columns = read_columns(data.train, (*data.text, data.label), self._folder / "cache")
        first, second, label = (columns[name] for name in (*data.text, data.label))
        row_of = {text: row for row, text in enumerate(self.at.data.train[: self._data.rows])}
        rows = triplets(zip(first, second, label, strict=True), row_of, data.positive, data.negative)
        count = self._data.rows // settings.batch_size
        return Objective(
            label_loss,
            lambda epoch: triplet_batches(rows, settings.batch_size, count, settings.seed, epoch),
        )


def first_lines(path: Path, count: int) -> Path:
    """A copy of a file's first lines, in the cache."""
    target = CACHE / f"{path.parent.name}-{path.stem}-{count}{path.suffix}"
    with path.open(encoding="utf-8") as lines:
        content = "".join(islice(lines, count))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content, encoding="utf-8")
    return target
