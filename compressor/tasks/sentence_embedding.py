"""Sentence embedding: text in, a unit vector out; judged by how well cosine tells pairs that mean the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.errors import DataError
from compressor.metrics import auroc, mean_cosine
from compressor.preprocess import Feed, Preprocessor, TextPreprocessor
from compressor.progress import Progress
from compressor.recipe import SentenceEmbeddingRecipe, TextPairs
from compressor.tasks.base import TaskData
from compressor.tasks.tables import read_columns
from compressor.tasks.text import EDGE_TEXTS, GRAPH_INPUTS, distinct, holdout_size, text_preprocessor, text_shape_feeds


class SentenceEncoder(nn.Module):
    """An encoder with mean pooling over the tokens and unit length, as sentence-transformers defines them.

    input_ids, attention_mask int64 [batch, sequence] -> float32 [batch, hidden].
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        # A student narrower than its teacher brings a map to the teacher's width; after the mean it costs one row.
        if (projection := getattr(self.encoder, "output_projection", None)) is not None:
            pooled = projection(pooled)
        return (nn.functional.normalize(pooled, dim=-1),)


@dataclass(frozen=True)
class SentenceEmbedding:
    recipe: SentenceEmbeddingRecipe
    metric_name = "AUROC"
    views = 1

    def load_data(self, cache: Path, progress: Progress) -> TaskData:
        data = self.recipe.data
        columns = read_columns(data.train, data.text, cache)
        sentences = distinct(text for name in data.text for text in columns[name])
        order = np.random.default_rng(self.recipe.distill.seed).permutation(len(sentences))[: data.max_train]
        if len(order) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of distinct sentences, got {len(order)}")
        inputs, pairs, truth = self._pairs(data, cache)
        progress.log(f"  {len(order):,} of {len(sentences):,} training sentences, {len(truth):,} evaluation pairs")
        return TaskData(
            train=[sentences[i] for i in order],
            labels=None,
            holdout=holdout_size(len(order)),
            eval_inputs=inputs,
            truth=truth,
            pairs=pairs,
            described={
                "training": f"{len(order):,} distinct sentences of {data.train.name}",
                "evaluation": f"{len(truth):,} pairs of {data.eval.name}: {data.positive} against {data.negative}",
            },
        )

    def _pairs(self, data: TextPairs, cache: Path) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        columns = read_columns(data.eval, (data.first, data.second, data.label), cache)
        rows = zip(columns[data.first], columns[data.second], columns[data.label], strict=True)
        judged = [
            (a, b, label == data.positive)
            for a, b, label in rows
            if label in (data.positive, data.negative) and all(isinstance(t, str) and t.strip() for t in (a, b))
        ]
        truth = np.array([same for _, _, same in judged], dtype=np.int64)
        if not len(truth) or truth.min() == truth.max():
            found = ", ".join(sorted({repr(value) for value in columns[data.label]})[:5])
            raise DataError(
                f"{data.eval}: expected rows with {data.label} {data.positive!r} and {data.negative!r}, found {found};"
                " set data.positive and data.negative"
            )
        inputs = distinct(text for a, b, _ in judged for text in (a, b))
        row_of = {text: row for row, text in enumerate(inputs)}
        return inputs, np.array([(row_of[a], row_of[b]) for a, b, _ in judged], dtype=np.int64), truth

    def deployable(self, model: nn.Module) -> nn.Module:
        return SentenceEncoder(model)

    def preprocessor(self, folder: Path | None) -> Preprocessor:
        return text_preprocessor(self.recipe, folder)

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        assert index == 0
        return example

    def graph(self, width: int) -> tuple[list[TensorSpec], list[TensorSpec]]:
        # Named as sentence-transformers' own exports name it; a plain "embedding" collides inside torch's graph.
        return GRAPH_INPUTS, [TensorSpec("sentence_embedding", "float32", ("batch", width))]

    def shape_feeds(self, preprocessor: Preprocessor) -> list[Feed]:
        assert isinstance(preprocessor, TextPreprocessor)
        return text_shape_feeds(preprocessor, self.recipe.student.max_length)

    def edge_inputs(self) -> list[Any]:
        return list(EDGE_TEXTS)

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:
        assert data.pairs is not None
        return np.asarray(np.einsum("nd,nd->n", outputs[data.pairs[:, 0]], outputs[data.pairs[:, 1]]))

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:
        return auroc(answers, truth)

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        return mean_cosine(outputs, teacher)

    def answer_settings(self) -> dict[str, Any]:
        return {"max_length": self.recipe.student.max_length}
