"""Students: cut from the teacher's weights (transformers), built small (images), or brought along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from compressor.artifacts import Student
from compressor.errors import StudentError
from compressor.recipe import (
    AnsweredGenerationRecipe,
    ImageClassificationRecipe,
    OwnTaskRecipe,
    Recipe,
    TextRecipe,
)
from compressor.recipe_student import ImageStudent
from compressor.students.derive import blank_model, count, vocabulary_of
from compressor.students.existing import load_existing, write_existing
from compressor.students.on_disk import load_student_folder, load_weights, write_module, write_transformer
from compressor.students.separable import SeparableCnn
from compressor.students.text import derive_text, trimmed_for
from compressor.students.vision import derive_vision, load_existing_vision
from compressor.tasks.text import teacher_tokenizer
from compressor.teachers.module import build_module

__all__ = [
    "blank_student",
    "check_student",
    "is_derived",
    "load_student",
    "make_student",
    "new_student",
    "write_student",
]

_NEVER_CUT = OwnTaskRecipe | AnsweredGenerationRecipe


def is_derived(recipe: Recipe) -> bool:
    """Whether the student is cut from the teacher's weights, rather than built small or brought along."""
    return recipe.student.is_cut


def check_student(recipe: Recipe, teacher: nn.Module | None) -> None:
    """Raises StudentError when the recipe's student cannot be built, as far as that is known without the data.

    `teacher` is None where it is a black box.
    """
    if isinstance(recipe, _NEVER_CUT) or not is_derived(recipe):
        _brought(recipe, teacher)
    else:
        source = _source(recipe, teacher)
        blank_model(source, recipe.student, vocabulary_of(source))


def make_student(recipe: Recipe, teacher: nn.Module | None, training: list[NDArray[Any]], folder: Path) -> Student:
    """Writes the untrained student into `folder`.

    `teacher` is None where it is a black box. A student is cut by `training`: the training text's token ids under the
    teacher's tokenizer, int64 [length], or the training images, uint8 [height, width, channels].
    Raises StudentError, also when the student would not be smaller than its teacher.
    """
    torch.manual_seed(recipe.distill.seed)
    if isinstance(recipe, _NEVER_CUT) or not is_derived(recipe):
        student = _write_brought(recipe, _brought(recipe, teacher), folder)
    elif isinstance(recipe, ImageClassificationRecipe):
        student = derive_vision(_source(recipe, teacher), recipe, training, folder)
    else:
        tokenizer = teacher_tokenizer(recipe)
        student = derive_text(_source(recipe, teacher), tokenizer, recipe.student, training, folder)
    if teacher is not None and student.parameters >= count(teacher):
        raise StudentError(
            f"the student has {student.parameters:,} parameters, its teacher {count(teacher):,}:"
            " choose fewer layers or smaller widths"
        )
    return student


def blank_student(recipe: Recipe, teacher: nn.Module | None, training: list[NDArray[Any]]) -> nn.Module:
    """The student's shape, its weights without meaning: what it would weigh and cost. `training` as in `make_student`.

    Raises StudentError.
    """
    if isinstance(recipe, _NEVER_CUT) or not is_derived(recipe):
        return _brought(recipe, teacher)
    source = _source(recipe, teacher)
    if isinstance(recipe, ImageClassificationRecipe):
        return blank_model(source, recipe.student, vocabulary_of(source))
    trimmed = trimmed_for(source.config, teacher_tokenizer(recipe), recipe.student, training)
    return blank_model(source, recipe.student, len(trimmed.kept_ids))


def load_student(recipe: Recipe, folder: Path) -> nn.Module:
    """The raw student model of a folder, in evaluation mode."""
    if is_derived(recipe) or recipe.student.folder is not None:
        return load_student_folder(folder, recipe.task, recipe.student.max_length)
    model = new_student(recipe)
    load_weights(model, folder)
    return model.eval()


def write_student(model: nn.Module, folder: Path) -> None:
    """Weights (and config) of a raw student model into a folder, each file replaced atomically."""
    if isinstance(model, PreTrainedModel):
        write_transformer(model, folder)
    else:
        write_module(model, folder)


def new_student(recipe: Recipe) -> nn.Module:
    """The student that the recipe names by its code or its widths, with random weights. Raises StudentError."""
    if recipe.student.module is not None:
        return build_module(recipe.student.module, StudentError)
    assert isinstance(recipe, ImageClassificationRecipe)
    data, spec = recipe.data, recipe.student
    return SeparableCnn(len(data.mean), len(data.classes), spec.widths, spec.strides)


def _brought(recipe: Recipe, teacher: nn.Module | None) -> nn.Module:
    """The student that is not cut, as it begins."""
    if isinstance(recipe, TextRecipe):
        return load_existing(recipe, teacher)
    if isinstance(recipe, ImageClassificationRecipe) and recipe.student.folder is not None:
        return load_existing_vision(recipe.student.folder, recipe)
    return new_student(recipe)


def _write_brought(recipe: Recipe, model: nn.Module, folder: Path) -> Student:
    if isinstance(recipe, TextRecipe):
        return write_existing(recipe, model, folder)
    write_student(model, folder)
    spec = recipe.student
    if spec.folder is not None:
        note = f"existing student {spec.folder.name}"
    elif spec.module is not None:
        note = spec.module
    else:
        assert isinstance(spec, ImageStudent)
        note = f"widths {', '.join(map(str, spec.widths))}"
    return Student(folder, count(model), (note,))


def _source(recipe: Recipe, teacher: nn.Module | None) -> PreTrainedModel:
    """The teacher that a student is cut from. Raises StudentError where none can be."""
    others = "student.folder or student.module to one that exists"
    if isinstance(recipe, ImageClassificationRecipe):
        others = f"student.widths for a small CNN, or {others}"
    if teacher is None:
        raise StudentError(f"no student can be cut from a black box; set {others}")
    if not isinstance(teacher, PreTrainedModel):
        raise StudentError(f"no student can be cut from a torch module of your own; set {others}")
    if type(teacher).__module__.startswith("transformers_modules."):
        raise StudentError("the teacher is built by code of its own folder: no student can be cut from it")
    return teacher
