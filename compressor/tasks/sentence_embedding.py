"""Sentence embedding: text in, a unit vector out; judged by how well cosine tells pairs that mean the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.errors import DataError
from compressor.metrics import auroc, mean_cosine
from compressor.preprocess import Feed, Preprocessor, TextPreprocessor
from compressor.progress import Progress
from compressor.recipe import SentenceEmbeddingRecipe, TextPairs
from compressor.recipe_teacher import OnnxEmbeddingTeacher
from compressor.tasks.base import TaskData, WholeInputs
from compressor.tasks.sources import place
from compressor.tasks.tables import BadRows, enumerate_rows, read_columns, stream_rows
from compressor.tasks.text import EDGE_TEXTS, GRAPH_INPUTS, distinct, holdout_size, text_preprocessor, text_shape_feeds
from compressor.teachers import root_folder
from compressor.teachers.sentence import Dense, Pooling, SentenceHead, read_head


class SentenceEncoder(nn.Module):
    """An encoder, and how its token vectors become one of unit length, as sentence-transformers defines it.

    input_ids, attention_mask int64 [batch, sequence], padded on the right -> float32 [batch, width]. The head is the
    teacher's, for teacher and student alike, and is not trained.
    """

    def __init__(self, encoder: nn.Module, head: SentenceHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.poolings = head.poolings
        self.layers = nn.ModuleList(
            _Dense(layer) if isinstance(layer, Dense) else _Normalize() for layer in head.layers
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.to(hidden.dtype)
        vectors = [_POOL[pooling](hidden, mask) for pooling in self.poolings]
        # A student narrower than its teacher brings a map to the teacher's width; after pooling it costs one row.
        if (projection := getattr(self.encoder, "output_projection", None)) is not None:
            vectors = [projection(vector) for vector in vectors]
        vector = torch.cat(vectors, dim=-1)
        for layer in self.layers:
            vector = layer(vector)
        # Also where the folder has no such module: the task compares by cosine, and a device by the dot product.
        return (nn.functional.normalize(vector, dim=-1),)


class _Dense(nn.Module):
    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Dense) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(layer.weight), persistent=False)
        self.register_buffer("bias", None if layer.bias is None else torch.from_numpy(layer.bias), persistent=False)
        self.activation: nn.Module = getattr(nn, layer.activation)()

    def forward(self, vector: Tensor) -> Tensor:
        activated: Tensor = self.activation(nn.functional.linear(vector, self.weight, self.bias))
        return activated


class _Normalize(nn.Module):
    def forward(self, vector: Tensor) -> Tensor:
        return nn.functional.normalize(vector, dim=-1)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _sum(hidden, mask) / mask.sum(1, keepdim=True).clamp(min=1e-9)


def _mean_sqrt(hidden: Tensor, mask: Tensor) -> Tensor:
    return _sum(hidden, mask) / mask.sum(1, keepdim=True).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weight = mask * mask.cumsum(1)  # the first token counts once, the second twice, ...
    return _sum(hidden, weight) / weight.sum(1, keepdim=True).clamp(min=1e-9)


def _maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001 (padding is on the right)
    return hidden[:, 0]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return _sum(hidden, mask * (mask.cumsum(1) == mask.sum(1, keepdim=True)))


def _sum(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden * weight.unsqueeze(-1)).sum(1)


_POOL: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _maximum,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


@dataclass(frozen=True)
class SentenceEmbedding(WholeInputs):
    recipe: SentenceEmbeddingRecipe
    metric_name = "AUROC"
    views = 1

    @cached_property
    def _head(self) -> SentenceHead:
        teacher = self.recipe.teacher
        return SentenceHead() if isinstance(teacher, OnnxEmbeddingTeacher) else read_head(root_folder(teacher))

    def load_data(self, cache: Path, progress: Progress) -> TaskData:
        data = self.recipe.data
        sentences = self._streamed(data, progress) if data.streaming else self._sentences(data, cache, progress)
        if len(sentences) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of distinct sentences, got {len(sentences)}")
        inputs, pairs, truth = self._pairs(data, cache, progress)
        progress.log(f"  {len(sentences):,} training sentences, {len(truth):,} evaluation pairs")
        return TaskData(
            train=sentences,
            labels=None,
            holdout=holdout_size(len(sentences)),
            eval_inputs=inputs,
            truth=truth,
            pairs=pairs,
            described={
                "training": f"{len(sentences):,} distinct sentences of {place(data.train)}",
                "evaluation": f"{len(truth):,} pairs of {place(data.eval)}: {data.positive} against {data.negative}",
            },
        )

    def _sentences(self, data: TextPairs, cache: Path, progress: Progress) -> list[str]:
        """Up to `max_train` distinct sentences, in an order that depends on the seed."""
        columns = read_columns(data.train, data.text, cache)
        bad = BadRows(data.train)
        rows = list(enumerate_rows(columns))
        for number, texts in rows:
            bad.usable(number, *texts)
        bad.settle(len(rows), data.max_bad_rows, progress)
        sentences = distinct(text for name in data.text for text in columns[name])
        order = np.random.default_rng(self.recipe.distill.seed).permutation(len(sentences))[: data.max_train]
        progress.log(f"  {len(order):,} of {len(sentences):,} distinct sentences")
        return [sentences[i] for i in order]

    def _streamed(self, data: TextPairs, progress: Progress) -> list[str]:
        """The same from no more rows than it takes."""
        bad, read, found = BadRows(data.train), 0, dict[str, None]()
        for row, texts in stream_rows(data.train, data.text, self.recipe.distill.seed):
            read += 1
            bad.usable(row, *texts)
            found.update(dict.fromkeys(distinct(texts)))
            if data.max_train is not None and len(found) >= data.max_train:
                break
        bad.settle(read, data.max_bad_rows, progress)
        return list(found)[: data.max_train]

    def _pairs(
        self, data: TextPairs, cache: Path, progress: Progress
    ) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        columns = read_columns(data.eval, (data.first, data.second, data.label), cache, (data.positive, data.negative))
        rows = list(zip(columns[data.first], columns[data.second], columns[data.label], strict=True))
        bad = BadRows(data.eval)
        judged = [
            (a, b, label == data.positive)
            for number, (a, b, label) in enumerate(rows, 1)
            if label in (data.positive, data.negative) and bad.usable(number, a, b)
        ]
        truth = np.array([same for _, _, same in judged], dtype=np.int64)
        if not len(truth) or truth.min() == truth.max():
            found = ", ".join(sorted({repr(value) for value in columns[data.label]})[:5])
            raise DataError(
                f"{data.eval}: expected rows with {data.label} {data.positive!r} and {data.negative!r}, found {found};"
                " set data.positive and data.negative"
            )
        bad.settle(len(rows), data.max_bad_rows, progress)
        inputs = distinct(text for a, b, _ in judged for text in (a, b))
        row_of = {text: row for row, text in enumerate(inputs)}
        return inputs, np.array([(row_of[a], row_of[b]) for a, b, _ in judged], dtype=np.int64), truth

    def deployable(self, model: nn.Module) -> nn.Module:
        return SentenceEncoder(model, self._head)

    def preprocessor(self, folder: Path | None) -> Preprocessor:
        return text_preprocessor(self.recipe, folder)

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        assert index == 0
        return example

    def graph(self, width: int, preprocessor: Preprocessor) -> tuple[list[TensorSpec], list[TensorSpec]]:  # noqa: ARG002
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

    def answer_settings(self, student: Path) -> dict[str, Any]:  # noqa: ARG002
        return {"max_length": self.recipe.student.max_length}
