"""A text student that exists already: a folder in Hugging Face layout, or a module of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.artifacts import Student
from compressor.errors import StudentError, TeacherError, first_line
from compressor.preprocess import TextPreprocessor
from compressor.recipe import TextClassificationRecipe, TextRecipe, TokenClassificationRecipe
from compressor.recipe_teacher import EndpointClassifier, OnnxClassifierTeacher
from compressor.store import write_atomic
from compressor.students.derive import count
from compressor.students.on_disk import load_student_folder, write_module, write_transformer
from compressor.students.vocabulary import for_device
from compressor.tasks.text import class_names, teacher_tokenizer
from compressor.teachers.bounds import NOT_LOADED
from compressor.teachers.folder import check_classes
from compressor.teachers.module import build_module


def load_existing(recipe: TextRecipe, teacher: nn.Module | None) -> nn.Module:
    """The student that the recipe names, with the weights that it comes with. Raises StudentError.

    It takes int64 `input_ids` and `attention_mask` [batch, sequence] and gives what the teacher gives: an output with
    `last_hidden_state` float32 [batch, sequence, hidden], or `logits` [batch, classes] (of every token, where tokens
    are classified [batch, sequence, classes]), as wide as the teacher's. Of a black box (None) only the number of
    classes is known.
    """
    spec = recipe.student
    if spec.folder is not None:
        try:
            student: nn.Module = load_student_folder(spec.folder, recipe.task, spec.max_length)
        except (TeacherError, *NOT_LOADED) as error:
            reason = first_line(error)
            raise StudentError(f"student.folder: {reason.removeprefix(f'{spec.folder}: ')} ({spec.folder})") from None
        tokenizer = spec.folder / "tokenizer.json"
        if not tokenizer.is_file():
            raise StudentError(f"{spec.folder}: expected a tokenizer.json in the student's folder, found none")
    else:
        assert spec.module is not None
        student, tokenizer = build_module(spec.module, StudentError), teacher_tokenizer(recipe)
    name = "last_hidden_state" if recipe.task == "sentence-embedding" else "logits"
    last = TextPreprocessor(tokenizer, spec.max_length).last_id
    wanted, given = _width(recipe, teacher, name), _output(student, name, last)
    if given is None or (wanted is None and teacher is not None) or wanted not in (None, given.shape[-1]):
        found = "none" if given is None else f"one of {given.shape[-1]}"
        width = "" if wanted is None else f" as wide as the teacher's {wanted}"
        raise StudentError(f"{spec.folder or spec.module}: expected a {name}{width}, found {found}")
    if spec.folder is not None and isinstance(recipe, TextClassificationRecipe | TokenClassificationRecipe):
        _check_classes(spec.folder, student, class_names(recipe.teacher))
    return student.eval()


def write_existing(recipe: TextRecipe, student: nn.Module, folder: Path) -> Student:
    """Weights (and config) into `folder`, with the student's own tokenizer, or the teacher's for a module."""
    spec = recipe.student
    if spec.folder is not None:
        assert isinstance(student, PreTrainedModel)
        write_transformer(student, folder)
    else:
        write_module(student, folder)
    tokenizer = spec.folder / "tokenizer.json" if spec.folder else teacher_tokenizer(recipe)
    write_atomic(folder / "tokenizer.json", for_device(tokenizer.read_text("utf-8"), spec.max_length).encode())
    named = spec.folder.name if spec.folder is not None else str(spec.module).rpartition("/")[2]
    return Student(folder, count(student), (f"existing student {named}",))


def _check_classes(folder: Path, student: nn.Module, classes: Sequence[str]) -> None:
    assert isinstance(student, PreTrainedModel)
    remedy = "bring its names, and the rows of its last layer, into that order"
    try:
        check_classes(folder, student, classes, "its teacher", remedy)
    except TeacherError as error:
        raise StudentError(f"student.folder: {error}") from None


def _width(recipe: TextRecipe, teacher: nn.Module | None, name: str) -> int | None:
    if teacher is not None:
        found = _output(teacher, name, 0)
        return None if found is None else int(found.shape[-1])
    black_box = recipe.teacher
    return len(black_box.classes) if isinstance(black_box, OnnxClassifierTeacher | EndpointClassifier) else None


def _output(model: nn.Module, name: str, last: int) -> Tensor | None:
    """What a model answers to three tokens, the number of one of them `last`."""
    ids = torch.tensor([[0, last, 0]])
    try:
        with torch.inference_mode():
            found: Any = getattr(model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)), name, None)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = first_line(error)
        raise StudentError(
            f"student.module: calling it with input_ids (0 to {last}, as its tokenizer has them) and attention_mask,"
            f" int64 [1, 3], failed: {reason}"
        ) from None
    return found if isinstance(found, Tensor) else None
