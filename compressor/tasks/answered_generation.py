"""Text generation taught by a black box: prompts in, and after them, token by token, what the teacher wrote.

The teacher's own distribution is unknown, so that it has no perplexity to be compared with. Where it is asked for its
most probable words, what it wrote is what it would write again: a student that after the teacher's own beginning finds
the teacher's next token the most probable one, agrees with it there. The share of these tokens is the metric; the
teacher's is 1. A student that agrees at every token of an answer would have written that answer, word for word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.answered import Answer, AnswerPreprocessor, answer_positions
from compressor.errors import DataError, StudentError
from compressor.progress import Progress
from compressor.recipe import AnsweredGenerationRecipe
from compressor.recipe_data import DataSource
from compressor.tasks.base import TaskData
from compressor.tasks.decoder import DecoderGraph, stop_ids, student_config
from compressor.tasks.sources import place
from compressor.tasks.tables import BadRows, read_columns
from compressor.tasks.text import holdout_size
from compressor.teachers.decoder import cache_shape, start_id


@dataclass(frozen=True)
class AnsweredGeneration(DecoderGraph):
    """`load_data` has the prompts; what was answered to them comes in by `lessons` and `held_out`."""

    recipe: AnsweredGenerationRecipe
    metric_name = "token agreement"

    def load_data(self, cache: Path, progress: Progress) -> TaskData:
        data = self.recipe.data
        train = self._prompts(data.train, cache, progress)
        order = np.random.default_rng(self.recipe.distill.seed).permutation(len(train))[: data.max_train]
        if len(order) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of prompts, got {len(order)}")
        held_out = self._prompts(data.eval, cache, progress)
        chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[: data.max_eval])
        progress.log(f"  {len(order):,} of {len(train):,} training prompts, {len(chosen):,} for evaluation")
        return TaskData(
            train=[train[i] for i in order],
            labels=None,
            holdout=holdout_size(len(order)),
            eval_inputs=[held_out[i] for i in chosen],
            truth=np.zeros(len(chosen), dtype=np.int64),  # how long the answers are is not known yet
            described={
                "training": f"{len(order):,} prompts of {place(data.train)}",
                "evaluation": f"{len(chosen):,} prompts of {place(data.eval)}",
            },
        )

    def _prompts(self, source: DataSource, cache: Path, progress: Progress) -> list[str]:
        """Each distinct one once. What is too long is refused, or where it is little, asked about and then left out:
        which prompts these are depends on the student, and what was asked about does not.
        """
        data = self.recipe.data
        texts, bad = read_columns(source, (data.text,), cache)[data.text], BadRows(source)
        first_row: dict[str, int] = {}
        for row, text in enumerate(texts, 1):
            if bad.usable(row, text):
                first_row.setdefault(text, row)
        bad.settle(len(texts), data.max_bad_rows, progress)
        if not first_row:
            raise DataError(f"{source}: no row has text in {data.text}")
        too_long = BadRows(source, f"prompts that fill student.max_length ({self.recipe.student.max_length} tokens)")
        for text, ids in zip(first_row, self._reader.encode(list(first_row)), strict=True):
            if len(ids) >= self.recipe.student.max_length:
                too_long.note(first_row[text])
        too_long.settle(len(texts), data.max_bad_rows, progress)
        return list(first_row)

    def lessons(self, data: TaskData, answers: Sequence[Answer | None]) -> TaskData:
        """The same data, its training prompts with their answers; without those that teach nothing. Raises DataError
        where too few are left.
        """
        pairs = self._pairs(data.train, answers)
        if len(pairs) < 2 * self.recipe.distill.batch_size:
            raise DataError(
                f"{self.recipe.data.train}: expected at least two batches of prompts with an answer, got {len(pairs)}"
            )
        return replace(data, train=pairs, holdout=holdout_size(len(pairs)))

    def held_out(self, data: TaskData, answers: Sequence[Answer | None]) -> TaskData:
        """The same data, its held-out prompts with their answers, and as truth how many tokens these have. Raises
        DataError where there are none.
        """
        pairs = self._pairs(data.eval_inputs, answers)
        if not pairs:
            raise DataError(f"{self.recipe.data.eval}: expected prompts with an answer, got none")
        counts = [len(self.positions(example)) for example in self._reader.encode(pairs)]
        return replace(data, eval_inputs=pairs, truth=np.asarray(counts, dtype=np.int64))

    def _pairs(
        self, prompts: Sequence[Any] | NDArray[Any], answers: Sequence[Answer | None]
    ) -> list[tuple[str, Answer]]:
        """Those with an answer of which at least one token is read."""
        given = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer is not None]
        examples = self._reader.encode(given)
        return [pair for pair, example in zip(given, examples, strict=True) if len(self.positions(example))]

    @cached_property
    def _reader(self) -> AnswerPreprocessor:
        return self.preprocessor(None)

    def preprocessor(self, folder: Path | None) -> AnswerPreprocessor:
        """Of a student's folder; for None of the one that the recipe names, since the teacher reads text itself."""
        folder = folder or self.recipe.student.folder
        config = student_config(folder)
        if not (folder / "tokenizer.json").is_file():
            raise StudentError(f"{folder}: expected a tokenizer.json in the student's folder, found none")
        if not stop_ids(config):
            raise StudentError(f"{folder}: expected an eos_token_id in its config.json, the token that ends an answer")
        if stop_ids(config)[0] >= config.vocab_size:
            raise StudentError(
                f"{folder}: its config.json ends an answer with token {stop_ids(config)[0]} (eos_token_id) of"
                f" {config.vocab_size} (vocab_size); expected one that it has"
            )
        length, cache = self.recipe.student.max_length, cache_shape(config)
        return AnswerPreprocessor(folder / "tokenizer.json", length, cache, start_id(config), stop_ids(config)[0])

    def positions(self, example: NDArray[Any]) -> NDArray[np.int64]:
        return answer_positions(example)

    def shared(self, mine: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        raise NotImplementedError("the teacher's tokens are unknown")

    def labels(self, data: TaskData, examples: Sequence[NDArray[Any]]) -> Sequence[Any]:  # noqa: ARG002
        return [example[self.positions(example) + 1, 0] for example in examples]

    def judged(self, output: NDArray[np.float32], example: NDArray[Any]) -> NDArray[np.float32]:
        """Of each token of the answer: 1 where it is the one that was thought most probable; 1 where it is the first
        of its answer.
        """
        places = self.positions(example)
        return _judged(output[places].argmax(axis=-1) == example[places + 1, 0])

    def teacher_rows(self, data: TaskData) -> NDArray[np.float32]:
        """What `judged` gives of the teacher itself, to data that `held_out` made: it would write the same again."""
        return np.concatenate([_judged(np.ones(count, dtype=np.bool_)) for count in data.truth])

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:
        """Of each answer how many tokens the model agrees at, and how many there are: float64 [answers, 2]."""
        return np.stack([np.add.reduceat(outputs[:, 0].astype(np.float64), _begins(outputs)), data.truth], axis=-1)

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:  # noqa: ARG002
        """The share of the tokens of all answers."""
        return float(answers[:, 0].sum() / answers[:, 1].sum())

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        """The share of the answers that are the same from the first token to the last."""
        same = outputs[:, 0] == teacher[:, 0]
        return float(np.logical_and.reduceat(same, _begins(outputs)).mean())

    def answer_settings(self, student: Path) -> dict[str, Any]:
        config = student_config(student)
        return {
            "max_length": self.recipe.student.max_length,
            "start_id": start_id(config),
            "stop_ids": stop_ids(config),
        }


def _judged(agrees: NDArray[np.bool_]) -> NDArray[np.float32]:
    """float32 [tokens of one answer, 2]."""
    return np.stack([agrees, np.arange(len(agrees)) == 0], axis=-1).astype(np.float32)


def _begins(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.flatnonzero(rows[:, 1])
