"""What the text tasks share: the graph's inputs, feeds of several shapes, inputs at the edge."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts import TensorSpec
from compressor.errors import DataError, TeacherError
from compressor.preprocess import Feed, TextPreprocessor
from compressor.recipe import TextRecipe
from compressor.recipe_base import distinct as distinct_names
from compressor.recipe_teacher import (
    EndpointClassifier,
    EndpointTeacher,
    FolderTeacher,
    GgufTeacher,
    HubTeacher,
    OnnxClassifierTeacher,
)
from compressor.teachers import teacher_folder
from compressor.teachers.gguf import gguf_tokenizer_file

GRAPH_INPUTS = [
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("attention_mask", "int64", ("batch", "sequence")),
]

EDGE_TEXTS = [
    "",
    " ",
    "a",
    "?!",
    "word " * 400,
    "The the THE tHe.",
    "Ünïcödé, naïve café — “quotes”…",
    "数字 と 文字",
    "\U0001f600 smile \u200d zero-width",
    "tab\tnewline\nnull\x00end",
    "a" * 300,
    "1234567890 3.14159 1e-10 -0",
]


def distinct(values: Iterable[Any]) -> list[str]:
    """The non-empty texts among the values, each once, in order."""
    return list(dict.fromkeys(value for value in values if isinstance(value, str) and value.strip()))


def holdout_size(rows: int) -> int:
    """How many training rows are held out to choose the best checkpoint: 5%, at most 1,000, at least one."""
    return max(1, min(1000, rows // 20))


def text_preprocessor(recipe: TextRecipe, folder: Path | None) -> TextPreprocessor:
    """Of a student's folder, or of the teacher. Raises TeacherError where the teacher has no tokenizer.json."""
    return TextPreprocessor(tokenizer_of(recipe, folder), recipe.student.max_length)


def tokenizer_of(recipe: TextRecipe, folder: Path | None) -> Path:
    """The tokenizer.json of a student's folder, or of the teacher. Raises TeacherError where the teacher has none."""
    tokenizer = folder / "tokenizer.json" if folder else teacher_tokenizer(recipe)
    if folder is None and not tokenizer.is_file():
        raise TeacherError(f"{tokenizer.parent}: expected a tokenizer.json in the teacher's folder, found none")
    return tokenizer


def teacher_tokenizer(recipe: TextRecipe) -> Path:
    """The teacher's tokenizer.json. Raises TeacherError for an endpoint, which has none that can be seen."""
    teacher = recipe.teacher
    if isinstance(teacher, FolderTeacher | HubTeacher):
        return teacher_folder(teacher) / "tokenizer.json"
    if isinstance(teacher, GgufTeacher):
        return gguf_tokenizer_file(teacher.gguf, recipe.out / "cache")
    if isinstance(teacher, EndpointTeacher):
        raise TeacherError("an endpoint's tokenizer cannot be had; only its answers can")
    return teacher.tokenizer


def class_names(teacher: FolderTeacher | HubTeacher | OnnxClassifierTeacher | EndpointClassifier) -> tuple[str, ...]:
    """Class names in the order of the teacher's logits. Raises TeacherError."""
    if isinstance(teacher, OnnxClassifierTeacher | EndpointClassifier):
        return teacher.classes
    config = teacher_folder(teacher) / "config.json"
    try:
        id2label = json.loads(config.read_text(encoding="utf-8")).get("id2label")
    except (OSError, ValueError, AttributeError):
        raise TeacherError(f"{config}: expected a JSON object as Hugging Face writes it") from None
    if not isinstance(id2label, dict) or not id2label or not all(key.isdecimal() for key in id2label):
        raise TeacherError(f"{config}: expected id2label with the class names by number, found none")
    names = tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    try:
        return distinct_names(names)
    except ValueError as error:
        raise TeacherError(f"{config}: id2label: expected a name for each class, but {error}") from None


def class_number(label: Any, classes: tuple[str, ...], where: str) -> int:
    """The number of a class that is given by its name, or by its number where no name is one; `where` names the column.

    Raises DataError.
    """
    named_by_numbers = any(name.isdecimal() for name in classes)
    if isinstance(label, int) and not isinstance(label, bool):
        if named_by_numbers and str(label) in classes:
            return classes.index(str(label))
        if not named_by_numbers and 0 <= label < len(classes):
            return label
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    numbers = "" if named_by_numbers else " or its number from 0"
    raise DataError(f"{where}: expected one of {', '.join(classes)}{numbers}, got {label!r}")


def text_shape_feeds(preprocessor: TextPreprocessor, max_length: int) -> list[Feed]:
    """Batch 1, 2 and n at lengths from one token to the longest: ids drawn evenly, every row but the first padded after
    as many as were drawn. The same at every call: what is judged on them must not depend on luck."""
    draw, feeds = np.random.default_rng(0), list[Feed]()
    for batch, longest in ((1, 1), (1, 7), (2, 2), (2, 17), (3, 33), (8, max_length)):
        shape = batch, min(longest, max_length)
        lengths = draw.integers(1, shape[1], (batch, 1), endpoint=True)
        lengths[0] = shape[1]
        ids = draw.integers(preprocessor.vocabulary_size(), size=shape)
        feeds.append({"input_ids": ids, "attention_mask": (np.arange(shape[1]) < lengths).astype(np.int64)})
    return feeds
