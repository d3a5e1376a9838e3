"""A task that the user's own file describes: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.errors import (
    CompressorError,
    DataError,
    RecipeError,
    StudentError,
    TeacherError,
    TrainingError,
    first_line,
    out_of_memory,
)
from compressor.likeness import agreement
from compressor.own_task import Examples, OwnTask
from compressor.preprocess import ArrayPreprocessor, Feed, Preprocessor
from compressor.progress import Progress
from compressor.recipe import OwnTaskRecipe
from compressor.recipe_data import DataSource
from compressor.tasks.base import Loss, TaskData, WholeInputs
from compressor.tasks.text import holdout_size
from compressor.teachers.module import called

_SHAPES = (1, 2, 7)


@contextmanager
def own_code(what: str, error: type[CompressorError]) -> Iterator[None]:
    """The user's own code may raise anything: one line says where. Of exhausted memory its caller knows more."""
    try:
        yield
    except CompressorError:
        raise
    except Exception as failure:
        if out_of_memory(failure):
            raise
        raise error(f"{what}: {type(failure).__name__}: {first_line(failure)}") from failure


class NamedInput(nn.Module):
    """The user's module, its one input by name; a tuple for the one output."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, **inputs: Tensor) -> tuple[Tensor]:
        given = inputs[self.name]
        with own_code(f"{type(self.model).__name__} failed on {_kind(given)}", TrainingError):
            return (self.model(given),)


def relative_distance(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:  # noqa: ARG001
    """sum |s - t|^2 / sum |t|^2, of float32 [batch, width]; a scalar."""
    return (student - teacher).square().sum() / teacher.square().sum().clamp(min=1e-9)


@dataclass(frozen=True)
class Own(WholeInputs):
    recipe: OwnTaskRecipe
    views = 1

    @cached_property
    def defined(self) -> OwnTask:
        """What the user's callable returns. Raises RecipeError."""
        found = called(self.recipe.definition, RecipeError)
        if not isinstance(found, OwnTask):
            raise RecipeError(f"definition: {self.recipe.definition}: expected an OwnTask, got {type(found).__name__}")
        return found

    @property
    def metric_name(self) -> str:
        return self.defined.metric_name

    @property
    def loss(self) -> Loss:
        return relative_distance if self.defined.loss is None else self._own_loss

    def _own_loss(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        assert self.defined.loss is not None
        what = f"{self.recipe.definition}: its loss {_name(self.defined.loss)}"
        with own_code(f"{what} failed", TrainingError):
            found = self.defined.loss(student, teacher, labels)
        if not isinstance(found, Tensor) or found.ndim:
            raise TrainingError(f"{what}: expected a scalar tensor, got {_kind(found)}")
        return found

    def try_out(self, teacher: nn.Module, student: nn.Module, data: TaskData) -> None:
        """Calls once what is the user's own, so that a mistake in it costs no work.

        `student` is spent after it. Raises TeacherError, StudentError, TrainingError, RecipeError.
        """
        recipe, batch = self.recipe, self.recipe.distill.batch_size
        inputs = torch.from_numpy(data.train[:batch])
        with torch.no_grad():
            taught = _outputs(recipe.teacher.module, TeacherError, teacher, inputs)
            _outputs(recipe.student.module, StudentError, student.eval(), inputs[:1])
        learnt = _outputs(recipe.student.module, StudentError, student.train(), inputs)
        if learnt.shape != taught.shape:
            raise StudentError(
                f"{recipe.student.module}: gives {learnt.shape[1]} numbers for an input, its teacher {taught.shape[1]};"
                " they must agree"
            )
        labels = None if data.labels is None else torch.from_numpy(data.labels[:batch])
        if not self.loss(learnt, taught, labels).requires_grad:
            raise TrainingError(f"{recipe.definition}: its loss does not depend on the student: nothing can be learnt")
        spread = np.linspace(0, len(data.truth) - 1, min(batch, len(data.truth))).astype(np.int64)
        with torch.no_grad():
            judged = _outputs(
                recipe.teacher.module, TeacherError, teacher, torch.from_numpy(np.asarray(data.eval_inputs)[spread])
            )
        self.metric(judged.numpy(), data.truth[spread])

    def load_data(self, cache: Path, progress: Progress) -> TaskData:  # noqa: ARG002 (arrays need no converted copy)
        data = self.recipe.data
        train, held_out = self._read(data.train), self._read(data.eval)
        order = np.random.default_rng(self.recipe.distill.seed).permutation(len(train.inputs))[: data.max_train]
        if len(order) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of examples, got {len(order)}")
        if held_out.truth is None:
            raise DataError(f"{data.eval}: expected the truth beside the inputs, for the metric, got none")
        if held_out.inputs.shape[1:] != train.inputs.shape[1:] or held_out.inputs.dtype != train.inputs.dtype:
            raise DataError(
                f"{data.eval}: inputs {_kind(held_out.inputs[0])}, but those of data.train {_kind(train.inputs[0])}"
            )
        progress.log(f"  {len(order):,} of {len(train.inputs):,} training examples, {len(held_out.inputs):,} held out")
        return TaskData(
            train=train.inputs[order],
            labels=None if train.truth is None else train.truth[order],
            holdout=holdout_size(len(order)),
            eval_inputs=held_out.inputs,
            truth=held_out.truth,
            described={
                "training": f"{len(order):,} examples {_kind(train.inputs[0])} of {data.train.name}",
                "evaluation": f"{len(held_out.inputs):,} examples of {data.eval.name}",
            },
        )

    def _read(self, source: DataSource) -> Examples:
        path = source.path
        if path is None:
            raise DataError(f"{source}: a task of your own reads files: expected a path")
        if not path.exists():
            raise DataError(f"{path}: expected a data file, found none")
        try:
            found = self.defined.read(path)
        except CompressorError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise DataError(f"{path}: reading it failed: {type(error).__name__}: {error}") from error
        if not isinstance(found, Examples) or not isinstance(found.inputs, np.ndarray) or not len(found.inputs):
            raise DataError(f"{path}: expected Examples with an array of inputs from the definition's `read`")
        for name, array in (("inputs", found.inputs), ("truth", found.truth)):
            if array is not None and not (isinstance(array, np.ndarray) and array.dtype.kind in "biuf"):
                raise DataError(f"{path}: expected {name} as an array of numbers, got {_kind(array)}")
        if found.truth is not None and len(found.truth) != len(found.inputs):
            raise DataError(f"{path}: {len(found.inputs)} inputs, but truth for {len(found.truth)}")
        return found

    def deployable(self, model: nn.Module) -> nn.Module:
        return NamedInput(model, self.defined.input_name)

    def preprocessor(self, folder: Path | None) -> ArrayPreprocessor:  # noqa: ARG002 (the same for both)
        return self._shape

    @cached_property
    def _shape(self) -> ArrayPreprocessor:
        inputs = self._read(self.recipe.data.eval).inputs
        return ArrayPreprocessor(self.defined.input_name, inputs.dtype.name, inputs.shape[1:])

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        assert index == 0
        return example

    def graph(self, width: int, preprocessor: Preprocessor) -> tuple[list[TensorSpec], list[TensorSpec]]:
        assert isinstance(preprocessor, ArrayPreprocessor)
        given = TensorSpec(preprocessor.name, preprocessor.dtype, ("batch", *preprocessor.shape))
        return [given], [TensorSpec(self.defined.output_name, "float32", ("batch", width))]

    def shape_feeds(self, preprocessor: Preprocessor) -> list[Feed]:
        inputs = self._read(self.recipe.data.eval).inputs
        return [preprocessor.collate([inputs[i % len(inputs)] for i in range(batch)]) for batch in _SHAPES]

    def edge_inputs(self) -> list[Any]:
        return [np.zeros(self._shape.shape, self._shape.dtype), np.ones(self._shape.shape, self._shape.dtype)]

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:  # noqa: ARG002
        return outputs

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:
        what = f"{self.recipe.definition}: its metric {_name(self.defined.metric)}"
        with own_code(f"{what} failed", RecipeError):
            found = self.defined.metric(answers, truth)
        if np.ndim(found) or not isinstance(found, float | int | np.number | np.bool_ | np.ndarray):
            raise RecipeError(f"{what}: expected a number, got {_kind(found)}")
        return float(found)

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        """Beside the mean of `teacher`, which says nothing of an input."""
        return agreement(list(zip(outputs, teacher, strict=True)))

    def answer_settings(self, student: Path) -> dict[str, Any]:  # noqa: ARG002
        shape = self._shape
        return {"array": {"name": shape.name, "dtype": shape.dtype, "shape": list(shape.shape)}}


def _outputs(reference: str, error: type[CompressorError], module: nn.Module, inputs: Tensor) -> Tensor:
    """What a module of the user's own gives for a batch, if that is float32 [batch, width]."""
    with own_code(f"{reference}: calling it on {_kind(inputs)} failed", error):
        found = module(inputs)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(inputs) or found.dtype != torch.float32:
        raise error(f"{reference}: expected float32 [{len(inputs)}, width] for {_kind(inputs)}, got {_kind(found)}")
    return found


def _name(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _kind(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
