"""Text classification: text in, one of a fixed set of classes out; judged by accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.errors import DataError
from compressor.metrics import accuracy, same_top1
from compressor.preprocess import Feed, Preprocessor, TextPreprocessor
from compressor.progress import Progress
from compressor.recipe import TextClassificationRecipe
from compressor.recipe_data import DataSource
from compressor.tasks.base import TaskData, WholeInputs
from compressor.tasks.sources import place
from compressor.tasks.tables import BadRows, Row, enumerate_rows, labels_learnt_from, read_columns, stream_rows
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
        data, labelled = self.recipe.data, self.recipe.distill.needs_labels
        with labels_learnt_from(data.label):
            train = self._training((data.text, data.label) if labelled else (data.text,), cache, progress)
        if len(train) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of texts, got {len(train)}")
        columns = read_columns(data.eval, (data.text, data.label), cache, self.classes())
        held_out = self._usable(data.eval, enumerate_rows(columns), None, progress)
        progress.log(f"  {len(train):,} training texts, {len(held_out):,} for evaluation")
        return TaskData(
            train=[text for text, *_ in train],
            labels=np.array([label for _, label in train], dtype=np.int64) if labelled else None,
            holdout=holdout_size(len(train)),
            eval_inputs=[text for text, _ in held_out],
            truth=np.array([label for _, label in held_out], dtype=np.int64),
            described={
                "training": f"{len(train):,} texts of {place(data.train)}",
                "evaluation": f"{len(held_out):,} texts of {place(data.eval)}, {len(self.classes())} classes",
            },
        )

    def _training(self, columns: Sequence[str], cache: Path, progress: Progress) -> list[tuple[Any, ...]]:
        """Up to `max_train` usable rows, in an order that depends on the seed."""
        data, seed = self.recipe.data, self.recipe.distill.seed
        if data.streaming:
            rows = stream_rows(data.train, columns, seed, self.classes())
            return self._usable(data.train, rows, data.max_train, progress)
        table = read_columns(data.train, columns, cache, self.classes())
        found = self._usable(data.train, enumerate_rows(table), None, progress)
        return [found[i] for i in np.random.default_rng(seed).permutation(len(found))[: data.max_train]]

    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the teacher's logits. Raises TeacherError."""
        return class_names(self.recipe.teacher)

    def _usable(
        self, source: DataSource, rows: Iterable[Row], most: int | None, progress: Progress
    ) -> list[tuple[Any, ...]]:
        """Text and, where the rows have a label, number of its class; of no more rows than it takes for `most`."""
        data, classes = self.recipe.data, self.classes()
        found: list[tuple[Any, ...]] = []
        bad, read = BadRows(source), 0
        for row, (text, *labels) in rows:
            read += 1
            if not bad.usable(row, text):
                continue
            where = f"{source}: {data.label}, row {row}"
            found.append((text, *(class_number(label, classes, where) for label in labels)))
            if len(found) == most:
                break
        if not found:
            raise DataError(f"{source}: no row has text in {data.text}")
        bad.settle(read, data.max_bad_rows, progress)
        return found

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
        return same_top1(outputs, teacher)

    def answer_settings(self, student: Path) -> dict[str, Any]:  # noqa: ARG002
        return {"max_length": self.recipe.student.max_length, "classes": list(self.classes())}
