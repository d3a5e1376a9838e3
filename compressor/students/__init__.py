"""Students: cut from the teacher's weights (transformers), built small (images), or brought along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from compressor.artifacts import Student
from compressor.errors import StudentError
from compressor.recipe import ImageClassificationRecipe, OwnTaskRecipe, Recipe
from compressor.students.derive import blank_model, count
from compressor.students.encoder import (
    derive_encoder,
    load_student_folder,
    load_weights,
    trimmed_for,
    write_encoder,
    write_module,
)
from compressor.students.existing import load_existing, write_existing
from compressor.students.separable import SeparableCnn
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


def is_derived(recipe: Recipe) -> bool:
    """Whether the student is cut from the teacher's weights, rather than built small or brought along."""
    if isinstance(recipe, ImageClassificationRecipe | OwnTaskRecipe):
        return False
    return recipe.student.folder is None and recipe.student.module is None


def check_student(recipe: Recipe, teacher: nn.Module | None) -> None:
    """Raises StudentError when the recipe's student cannot be built, as far as that is known without the data.

    `teacher` is None where it is a black box.
    """
    if isinstance(recipe, ImageClassificationRecipe | OwnTaskRecipe):
        new_student(recipe)
    elif not is_derived(recipe):
        load_existing(recipe, teacher)
    else:
        source = _source(teacher)
        blank_model(source, recipe.student, source.config.vocab_size)


def make_student(
    recipe: Recipe, teacher: nn.Module | None, training_ids: list[NDArray[np.int64]], folder: Path
) -> Student:
    """Writes the untrained student into `folder`.

    `teacher` is None where it is a black box. `training_ids` are the training text's token ids under the teacher's
    tokenizer; unused for images.
    Raises StudentError, also when the student would not be smaller than its teacher.
    """
    torch.manual_seed(recipe.distill.seed)
    if isinstance(recipe, ImageClassificationRecipe | OwnTaskRecipe):
        model = new_student(recipe)
        write_student(model, folder)
        note = recipe.student.module or f"widths {', '.join(map(str, getattr(recipe.student, 'widths', ())))}"
        student = Student(folder, count(model), (note,))
    elif not is_derived(recipe):
        student = write_existing(recipe, load_existing(recipe, teacher), folder)
    else:
        tokenizer = teacher_tokenizer(recipe)
        student = derive_encoder(_source(teacher), tokenizer, recipe.student, training_ids, folder)
    if teacher is not None and student.parameters >= count(teacher):
        raise StudentError(
            f"the student has {student.parameters:,} parameters, its teacher {count(teacher):,}:"
            " choose fewer layers or smaller widths"
        )
    return student


def blank_student(recipe: Recipe, teacher: nn.Module | None, training_ids: list[NDArray[np.int64]]) -> nn.Module:
    """The student's shape, its weights without meaning: what it would weigh and cost. Raises StudentError."""
    if isinstance(recipe, ImageClassificationRecipe | OwnTaskRecipe):
        return new_student(recipe)
    if not is_derived(recipe):
        return load_existing(recipe, teacher)
    source = _source(teacher)
    trimmed = trimmed_for(source.config, teacher_tokenizer(recipe), recipe.student, training_ids)
    return blank_model(source, recipe.student, len(trimmed.kept_ids))


def load_student(recipe: Recipe, folder: Path) -> nn.Module:
    """The raw student model of a folder, in evaluation mode."""
    if isinstance(recipe, ImageClassificationRecipe | OwnTaskRecipe):
        return _loaded(new_student(recipe), folder)
    if recipe.student.module is not None:
        return _loaded(build_module(recipe.student.module, StudentError), folder)
    return load_student_folder(folder, recipe.task, recipe.student.max_length)


def write_student(model: nn.Module, folder: Path) -> None:
    """Weights (and config) of a raw student model into a folder, each file replaced atomically."""
    if isinstance(model, PreTrainedModel):
        write_encoder(model, folder)
    else:
        write_module(model, folder)


def new_student(recipe: ImageClassificationRecipe | OwnTaskRecipe) -> nn.Module:
    """The student that the recipe names, with random weights. Raises StudentError."""
    if isinstance(recipe, OwnTaskRecipe):
        return build_module(recipe.student.module, StudentError)
    spec = recipe.student
    if spec.module is not None:
        return build_module(spec.module, StudentError)
    return SeparableCnn(len(recipe.data.mean), len(recipe.data.classes), spec.widths, spec.strides)


def _source(teacher: nn.Module | None) -> PreTrainedModel:
    """The teacher that a student is cut from. Raises StudentError where none can be."""
    if teacher is None:
        raise StudentError(
            "no student can be cut from a black box; set student.folder or student.module to one that exists"
        )
    assert isinstance(teacher, PreTrainedModel)
    if type(teacher).__module__.startswith("transformers_modules."):
        raise StudentError("the teacher is built by code of its own folder: no student can be cut from it")
    return teacher


def _loaded(model: nn.Module, folder: Path) -> nn.Module:
    load_weights(model, folder)
    return model.eval()
