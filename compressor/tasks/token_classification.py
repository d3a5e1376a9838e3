"""Token classification: words in, a class for each of them out; judged by F1 over entities, or word by word."""

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
from compressor.metrics import are_iob2, entities, entity_counts, f1_of_counts
from compressor.preprocess import Feed, Preprocessor, TextPreprocessor, WordPreprocessor, word_positions
from compressor.progress import Progress
from compressor.recipe import TokenClassificationRecipe
from compressor.recipe_data import DataSource
from compressor.tasks.base import TaskData
from compressor.tasks.sources import place
from compressor.tasks.tables import BadRows, Row, enumerate_rows, labels_learnt_from, read_columns, stream_rows
from compressor.tasks.text import (
    EDGE_TEXTS,
    GRAPH_INPUTS,
    class_names,
    class_number,
    holdout_size,
    text_shape_feeds,
    tokenizer_of,
)

_NO_ANSWER = -1  # in place of a class, of a word that a model has no token for
Sentences = tuple[list[list[str]], list[NDArray[np.int64]]]


class TokenClassifier(nn.Module):
    """A token classifier with its softmax in the graph.

    input_ids, attention_mask int64 [batch, sequence] -> logits, probabilities float32 [batch, sequence, classes].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits, logits.softmax(-1)


@dataclass(frozen=True)
class TokenClassification:
    """A word that a model has no token for, because its text was cut off before it, is answered by none of the classes:
    that is wrong where words are counted, and no entity where entities are. Teacher and student are held to it alike.
    """

    recipe: TokenClassificationRecipe
    views = 1
    per_token = True
    loss = None

    @property
    def metric_name(self) -> str:
        return "entity F1" if are_iob2(self.classes()) else "word accuracy"

    def load_data(self, cache: Path, progress: Progress) -> TaskData:
        data = self.recipe.data
        columns = (data.tokens, data.tags)
        with labels_learnt_from(data.tags):
            train, tags = self._training(columns if self.recipe.distill.needs_labels else columns[:1], cache, progress)
        if len(train) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of sentences, got {len(train)}")
        table = read_columns(data.eval, columns, cache, self.classes())
        held_out, truth = self._usable(data.eval, columns, enumerate_rows(table), None, progress)
        judged_on = self._judged_on(truth)
        words = sum(map(len, held_out))
        progress.log(f"  {len(train):,} training sentences, {len(held_out):,} for evaluation, of {words:,} words")
        return TaskData(
            train=train,
            labels=None,
            holdout=holdout_size(len(train)),
            eval_inputs=held_out,
            truth=np.array([len(sentence) for sentence in held_out], dtype=np.int64),
            described={
                "training": f"{len(train):,} sentences of {place(data.train)}",
                "evaluation": f"{len(held_out):,} sentences of {place(data.eval)}, {words:,} words{judged_on}, "
                f"{len(self.classes())} classes",
            },
            train_tags=tags,
            eval_tags=truth,
        )

    def _training(self, columns: Sequence[str], cache: Path, progress: Progress) -> Sentences:
        """Up to `max_train` sentences, in an order that depends on the seed, and their tags where these are read."""
        data, seed = self.recipe.data, self.recipe.distill.seed
        if data.streaming:
            rows = stream_rows(data.train, columns, seed, self.classes())
            return self._usable(data.train, columns, rows, data.max_train, progress)
        table = read_columns(data.train, columns, cache, self.classes())
        sentences, tags = self._usable(data.train, columns, enumerate_rows(table), None, progress)
        order = np.random.default_rng(seed).permutation(len(sentences))[: data.max_train]
        return [sentences[i] for i in order], [tags[i] for i in order] if tags else []

    def _usable(
        self, source: DataSource, columns: Sequence[str], rows: Iterable[Row], most: int | None, progress: Progress
    ) -> Sentences:
        """The sentences of the rows and, where `columns` has tags, their classes; of no more rows than it takes for
        `most` sentences.
        """
        data, classes = self.recipe.data, self.classes()
        bad = BadRows(source, "rows without words" + (" and a tag for each" if len(columns) > 1 else ""))
        sentences: list[list[str]] = []
        tags: list[NDArray[np.int64]] = []
        read = 0
        for row, (words, *labels) in rows:
            read += 1
            if not _is_sentence(words, *labels):
                bad.note(row)
                continue
            sentences.append(words)
            for named in labels:
                numbers = [class_number(label, classes, f"{source}: {data.tags}, row {row}") for label in named]
                tags.append(np.array(numbers, dtype=np.int64))
            if len(sentences) == most:
                break
        if not sentences:
            raise DataError(f"{source}: no row has a list of words in {' and as many tags in '.join(columns)}")
        bad.settle(read, data.max_bad_rows, progress)
        return sentences, tags

    def _judged_on(self, truth: Sequence[NDArray[np.int64]]) -> str:
        """How many entities there are, for the report. Raises DataError where F1 over entities has none to find."""
        classes = self.classes()
        if not are_iob2(classes):
            return ""
        found = sum(len(entities([classes[i] for i in one])) for one in truth)
        if not found:
            raise DataError(
                f"{self.recipe.data.eval}: no entity in it; expected tags in IOB2, where each entity begins with B-"
            )
        return f" and {found:,} entities"

    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the teacher's logits. Raises TeacherError."""
        return class_names(self.recipe.teacher)

    def deployable(self, model: nn.Module) -> nn.Module:
        return TokenClassifier(model)

    def preprocessor(self, folder: Path | None) -> WordPreprocessor:
        return WordPreprocessor(tokenizer_of(self.recipe, folder), self.recipe.student.max_length)

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        assert index == 0
        return example

    def positions(self, example: NDArray[Any]) -> NDArray[np.int64]:
        return word_positions(example)[0]

    def shared(self, mine: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The words that both have a token for: a student's smaller vocabulary may cut a text off earlier."""
        student, teacher = word_positions(mine)[1], word_positions(theirs)[1]
        _, of_mine, of_theirs = np.intersect1d(student, teacher, assume_unique=True, return_indices=True)
        return of_mine, of_theirs

    def labels(self, data: TaskData, examples: Sequence[NDArray[Any]]) -> Sequence[Any] | None:
        if not data.train_tags:
            return None
        return [tags[word_positions(example)[1]] for tags, example in zip(data.train_tags, examples, strict=True)]

    def judged(self, output: NDArray[np.float32], example: NDArray[Any]) -> NDArray[np.float32]:
        """A row of logits for every word of the text, of -inf where it has no token."""
        places, words = word_positions(example)
        rows = np.full((int(example[0, 2]), output.shape[-1]), -np.inf, dtype=np.float32)
        rows[words] = output[places]
        return rows

    def compared(self, output: NDArray[np.float32], example: NDArray[Any]) -> NDArray[np.float32]:
        """The logits that answer for words."""
        return output[self.positions(example)]

    def graph(self, width: int, preprocessor: Preprocessor) -> tuple[list[TensorSpec], list[TensorSpec]]:  # noqa: ARG002
        shape = ("batch", "sequence", width)
        return GRAPH_INPUTS, [TensorSpec(name, "float32", shape) for name in ("logits", "probabilities")]

    def shape_feeds(self, preprocessor: Preprocessor) -> list[Feed]:
        assert isinstance(preprocessor, TextPreprocessor)
        return text_shape_feeds(preprocessor, self.recipe.student.max_length)

    def edge_inputs(self) -> list[Any]:
        return [*([text] for text in EDGE_TEXTS), *(text.split() for text in EDGE_TEXTS)]

    def golden_inputs(self, sample: list[Any]) -> list[Any]:
        return sample

    def timed(self, preprocessor: Preprocessor, example: NDArray[Any]) -> Feed:
        return preprocessor.collate([example])

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:
        """Of each sentence what `f1_of_counts` takes, of entities or of words: int64 [sentences, 3]."""
        classes = self.classes()
        found = np.split(_classes_of(outputs), np.cumsum(data.truth)[:-1])
        if not are_iob2(classes):
            counts = [
                (int((one == true).sum()), len(true), len(true))
                for one, true in zip(found, data.eval_tags, strict=True)
            ]
            return np.array(counts, dtype=np.int64)
        named = [["O" if i == _NO_ANSWER else classes[i] for i in one] for one in found]
        actual = [[classes[i] for i in one] for one in data.eval_tags]
        return np.array([entity_counts(*pair) for pair in zip(named, actual, strict=True)], dtype=np.int64)

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:  # noqa: ARG002
        return f1_of_counts(answers)

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        """The share of words that get the same class, of those that the teacher answers."""
        theirs = _classes_of(teacher)
        return float((_classes_of(outputs) == theirs)[theirs != _NO_ANSWER].mean())

    def answer_settings(self, student: Path) -> dict[str, Any]:  # noqa: ARG002
        return {"max_length": self.recipe.student.max_length, "classes": list(self.classes())}


def _is_sentence(words: object, *labels: object) -> bool:
    if not isinstance(words, list) or not all(isinstance(one, list) and len(one) == len(words) for one in labels):
        return False
    return all(isinstance(word, str) for word in words) and any(word.strip() for word in words)


def _classes_of(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """The most probable class of each word: int64 [words]."""
    found: NDArray[np.int64] = np.where(np.isneginf(rows).all(axis=1), _NO_ANSWER, rows.argmax(axis=1))
    return found
