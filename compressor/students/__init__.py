"""Students: cut from the teacher's weights (encoders) or built small (images)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from compressor.artifacts import Student
from compressor.errors import StudentError
from compressor.recipe import ImageClassificationRecipe, Recipe
from compressor.store import write_atomic
from compressor.students.encoder import derive_encoder, find_parts, student_config, write_encoder
from compressor.students.separable import SeparableCnn
from compressor.tasks.text import teacher_tokenizer
from compressor.teachers.folder import load_folder
from compressor.teachers.module import build_module

__all__ = ["check_student", "load_student", "make_student", "new_image_student", "write_student"]


def check_student(recipe: Recipe, teacher: nn.Module | None) -> None:
    """Raises StudentError when the recipe's student cannot be built, as far as that is known without the data.

    `teacher` is None where it is a black box.
    """
    if isinstance(recipe, ImageClassificationRecipe):
        new_image_student(recipe)
        return
    if teacher is None:
        raise StudentError("no student can be cut from a black box; expected a teacher whose weights are in reach")
    assert isinstance(teacher, PreTrainedModel)
    if type(teacher).__module__.startswith("transformers_modules."):
        raise StudentError("the teacher is built by code of its own folder: no student can be cut from it")
    student_config(teacher.config, find_parts(teacher), recipe.student, teacher.config.vocab_size)


def make_student(
    recipe: Recipe, teacher: nn.Module | None, training_ids: list[NDArray[np.int64]], folder: Path
) -> Student:
    """Writes the untrained student into `folder`.

    `teacher` is None where it is a black box. `training_ids` are the training text's token ids under the teacher's
    tokenizer; unused for images.
    Raises StudentError, also when the student would not be smaller than its teacher.
    """
    if isinstance(recipe, ImageClassificationRecipe):
        torch.manual_seed(recipe.distill.seed)
        model = new_image_student(recipe)
        write_student(model, folder)
        student = Student(
            folder, _count(model), (recipe.student.module or f"widths {', '.join(map(str, recipe.student.widths))}",)
        )
    else:
        assert isinstance(teacher, PreTrainedModel)
        tokenizer = teacher_tokenizer(recipe)
        student = derive_encoder(teacher, tokenizer, recipe.student, training_ids, folder)
    if teacher is not None and student.parameters >= _count(teacher):
        raise StudentError(
            f"the student has {student.parameters:,} parameters, its teacher {_count(teacher):,}:"
            " choose fewer layers or smaller widths"
        )
    return student


def load_student(recipe: Recipe, folder: Path) -> nn.Module:
    """The raw student model of a folder, in evaluation mode."""
    if isinstance(recipe, ImageClassificationRecipe):
        model = new_image_student(recipe)
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        return model.eval()
    return load_folder(folder, recipe.task, recipe.student.max_length)


def write_student(model: nn.Module, folder: Path) -> None:
    """Weights (and config) of a raw student model into a folder, each file replaced atomically."""
    if isinstance(model, PreTrainedModel):
        write_encoder(model, folder)
    else:
        state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
        write_atomic(folder / "model.safetensors", safetensors.torch.save(state))


def new_image_student(recipe: ImageClassificationRecipe) -> nn.Module:
    """The student that the recipe names, with random weights. Raises StudentError."""
    spec = recipe.student
    if spec.module is not None:
        return build_module(spec.module, StudentError)
    return SeparableCnn(len(recipe.data.mean), len(recipe.data.classes), spec.widths, spec.strides)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
