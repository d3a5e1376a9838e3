"""Text classification: text in, one of a fixed set of classes out; judged by accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.errors import DataError
from compressor.metrics import accuracy
from compressor.preprocess import Feed, Preprocessor, TextPreprocessor
from compressor.progress import Progress
from compressor.recipe import TextClassificationRecipe
from compressor.recipe_data import DataSource
from compressor.tasks.base import TaskData, WholeInputs
from compressor.tasks.sources import place
from compressor.tasks.tables import BadRows, Row, enumerate_rows, read_columns, stream_rows
from compressor.tasks.text import (
    EDGE_TEXTS,
    GRAPH_INPUTS,
    class_names,
    class_number,
    holdout_size,
    text_preprocessor,
    text_shape_feeds,
)


class TextClassifier(nn.Module):
    """A sequence classifier with its softmax in the graph.

    input_ids, attention_mask int64 [batch, sequence] -> logits, probabilities float32 [batch, classes].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits, logits.softmax(-1)


@dataclass(frozen=True)
class TextClassification(WholeInputs):
    recipe: TextClassificationRecipe
    metric_name = "accuracy"
    views = 1

    def load_data(self, cache: Path, progress: Progress) -> TaskData:
        data = self.recipe.data
        texts, labels = self._training(cache, progress)
        if len(texts) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of labelled texts, got {len(texts)}")
        eval_texts, truth = self._labelled(data.eval, self._rows(data.eval, cache), None, progress)
        progress.log(f"  {len(texts):,} training texts, {len(truth):,} for evaluation")
        return TaskData(
            train=texts,
            labels=labels,
            holdout=holdout_size(len(texts)),
            eval_inputs=eval_texts,
            truth=truth,
            described={
                "training": f"{len(texts):,} texts of {place(data.train)}",
                "evaluation": f"{len(truth):,} texts of {place(data.eval)}, {len(self.classes())} classes",
            },
        )

    def _training(self, cache: Path, progress: Progress) -> tuple[list[str], NDArray[np.int64]]:
        """Up to `max_train` texts and labels, in an order that depends on the seed."""
        data, seed = self.recipe.data, self.recipe.distill.seed
        if data.streaming:
            rows = stream_rows(data.train, (data.text, data.label), seed, self.classes())
            return self._labelled(data.train, rows, data.max_train, progress)
        texts, labels = self._labelled(data.train, self._rows(data.train, cache), None, progress)
        order = np.random.default_rng(seed).permutation(len(texts))[: data.max_train]
        return [texts[i] for i in order], labels[order]

    def _rows(self, source: DataSource, cache: Path) -> Iterator[Row]:
        data = self.recipe.data
        columns = read_columns(source, (data.text, data.label), cache, self.classes())
        return enumerate_rows(columns)

    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the teacher's logits. Raises TeacherError."""
        return class_names(self.recipe.teacher)

    def _labelled(
        self, source: DataSource, rows: Iterable[Row], most: int | None, progress: Progress
    ) -> tuple[list[str], NDArray[np.int64]]:
        """The texts of the rows and their classes; of no more rows than it takes for `most` texts."""
        data, classes = self.recipe.data, self.classes()
        texts, labels, bad, read = [], [], BadRows(source), 0
        for row, (text, label) in rows:
            read += 1
            if not bad.usable(row, text):
                continue
            texts.append(text)
            labels.append(class_number(label, classes, f"{source}: {data.label}"))
            if len(texts) == most:
                break
        if not texts:
            raise DataError(f"{source}: no row has text in {data.text}")
        bad.settle(read, data.max_bad_rows, progress)
        return texts, np.asarray(labels, dtype=np.int64)

    def deployable(self, model: nn.Module) -> nn.Module:
        return TextClassifier(model)

    def preprocessor(self, folder: Path | None) -> Preprocessor:
        return text_preprocessor(self.recipe, folder)

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        assert index == 0
        return example

    def graph(self, width: int, preprocessor: Preprocessor) -> tuple[list[TensorSpec], list[TensorSpec]]:  # noqa: ARG002
        return GRAPH_INPUTS, [TensorSpec(name, "float32", ("batch", width)) for name in ("logits", "probabilities")]

    def shape_feeds(self, preprocessor: Preprocessor) -> list[Feed]:
        assert isinstance(preprocessor, TextPreprocessor)
        return text_shape_feeds(preprocessor, self.recipe.student.max_length)

    def edge_inputs(self) -> list[Any]:
        return list(EDGE_TEXTS)

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:  # noqa: ARG002
        return np.asarray(outputs.argmax(axis=1))

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:
        return accuracy(answers, truth)

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        return accuracy(outputs.argmax(axis=1), teacher.argmax(axis=1))

    def answer_settings(self, student: Path) -> dict[str, Any]:  # noqa: ARG002
        return {"max_length": self.recipe.student.max_length, "classes": list(self.classes())}
