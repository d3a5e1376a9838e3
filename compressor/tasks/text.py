"""What the text tasks share: the graph's inputs, feeds of several shapes, inputs at the edge."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts import TensorSpec
from compressor.errors import TeacherError
from compressor.preprocess import Feed, Preprocessor, TextPreprocessor
from compressor.recipe import TextRecipe

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
    tokenizer = (folder or recipe.teacher.path) / "tokenizer.json"
    if folder is None and not tokenizer.is_file():
        raise TeacherError(f"{recipe.teacher.path}: expected a tokenizer.json in the teacher's folder, found none")
    return TextPreprocessor(tokenizer, recipe.student.max_length)


def text_shape_feeds(preprocessor: Preprocessor, max_length: int) -> list[Feed]:
    """Batch 1, 2 and n at lengths from the shortest to the longest: ids from real words, rows of unequal length."""
    feeds = []
    for batch, words in ((1, 1), (1, 5), (2, 1), (2, 17), (3, 33), (8, max_length)):
        texts = ["a small word " * max(1, words // (3 + row)) for row in range(batch)]
        feeds.append(preprocessor.collate(preprocessor.encode(texts)))
    ids = preprocessor.encode(["word " * max_length])[0]
    feeds.append(preprocessor.collate([np.resize(ids, max_length), ids[:1]]))
    return feeds
