"""Text generation by a causal language model: tokens in, the next token out; judged by perplexity on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError, StudentError
from compressor.preprocess import CausalPreprocessor
from compressor.progress import Progress
from compressor.recipe import TextGenerationRecipe
from compressor.recipe_data import DataSource
from compressor.tasks.base import TaskData
from compressor.tasks.decoder import DecoderGraph, stop_ids, student_config
from compressor.tasks.sources import place
from compressor.tasks.tables import BadRows, read_columns
from compressor.tasks.text import holdout_size, teacher_tokenizer
from compressor.teachers.decoder import cache_shape, decoder_config, most_tokens, start_id


@dataclass(frozen=True)
class TextGeneration(DecoderGraph):
    recipe: TextGenerationRecipe
    metric_name = "1/perplexity"

    def load_data(self, cache: Path, progress: Progress) -> TaskData:
        data = self.recipe.data
        train = self._passages(data.train, cache, progress)
        order = np.random.default_rng(self.recipe.distill.seed).permutation(len(train))[: data.max_train]
        if len(order) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of passages, got {len(order)}")
        held_out = list(dict.fromkeys(self._passages(data.eval, cache, progress)))
        chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[: data.max_eval])
        passages = [held_out[i] for i in chosen]
        progress.log(f"  {len(order):,} of {len(train):,} training passages, {len(passages):,} for evaluation")
        counts = [len(self.positions(ids)) for ids in self._reader.encode(passages)]
        return TaskData(
            train=[train[i] for i in order],
            labels=None,
            holdout=holdout_size(len(order)),
            eval_inputs=passages,
            truth=np.asarray(counts, dtype=np.int64),
            described={
                "training": f"{len(order):,} passages of {place(data.train)}",
                "evaluation": f"{len(passages):,} passages of {place(data.eval)}, {sum(counts):,} tokens",
            },
        )

    def _passages(self, source: DataSource, cache: Path, progress: Progress) -> list[str]:
        """The texts in passages of at most `student.max_length` tokens, those of two tokens and more."""
        data = self.recipe.data
        texts, bad = read_columns(source, (data.text,), cache)[data.text], BadRows(source)
        usable = [text for row, text in enumerate(texts, 1) if bad.usable(row, text)]
        bad.settle(len(texts), data.max_bad_rows, progress)
        passages = [passage for text in usable for passage in self._reader.passages(text) if passage.strip()]
        found = [p for p, ids in zip(passages, self._reader.encode(passages), strict=True) if len(ids) > 1]
        if not found:
            raise DataError(f"{source}: no row has a text of two tokens or more in {data.text}")
        return found

    @cached_property
    def _reader(self) -> CausalPreprocessor:
        return self.preprocessor(None)

    def preprocessor(self, folder: Path | None) -> CausalPreprocessor:
        student = self.recipe.student
        if folder is None:
            config, tokenizer = decoder_config(self.recipe.teacher), teacher_tokenizer(self.recipe)
            return CausalPreprocessor(tokenizer, student.max_length, cache_shape(config), start_id(config))
        config = student_config(folder)
        length = most_tokens(student, config)
        return CausalPreprocessor(folder / "tokenizer.json", length, cache_shape(config), start_id(config))

    def positions(self, example: NDArray[Any]) -> NDArray[np.int64]:
        return np.arange(len(example) - 1)

    def shared(self, mine: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All of them: the next token means something to the student in the teacher's own tokens alone."""
        if not np.array_equal(mine, theirs):
            raise StudentError(
                "the student's tokenizer cuts text otherwise than its teacher's; text generation needs it"
            )
        everywhere = self.positions(mine)
        return everywhere, everywhere

    def labels(self, data: TaskData, examples: Sequence[NDArray[Any]]) -> Sequence[Any]:  # noqa: ARG002
        return [example[1:] for example in examples]

    def judged(self, output: NDArray[np.float32], example: NDArray[Any]) -> NDArray[np.float32]:
        """Of each token but the first: its log-probability, and the token that was thought most probable."""
        logits = output[: len(example) - 1].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        true = np.take_along_axis(logits, example[1:, None], axis=-1)[:, 0] - np.log(np.exp(logits).sum(axis=-1))
        return np.stack([true, logits.argmax(axis=-1)], axis=-1).astype(np.float32)

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:
        """Of each passage its log-probability and its number of tokens: float64 [passages, 2]."""
        begins = np.concatenate([[0], np.cumsum(data.truth)[:-1]])
        return np.stack([np.add.reduceat(outputs[:, 0].astype(np.float64), begins), data.truth], axis=-1)

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:  # noqa: ARG002
        """1 / perplexity: the geometric mean of the probabilities of the true tokens."""
        return float(np.exp(answers[:, 0].sum() / answers[:, 1].sum()))

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        """The share of equal most probable tokens, where both models begin one: of a trimmed vocabulary, elsewhere it
        is -1 (`verify.same_text`).
        """
        both = outputs[:, 1] >= 0
        return float((outputs[both, 1] == teacher[both, 1]).mean())

    def answer_settings(self, student: Path) -> dict[str, Any]:
        trimmed = self.recipe.student.vocab is not None  # then its tokens have other numbers
        config = student_config(student) if trimmed else decoder_config(self.recipe.teacher)
        return {
            "max_length": most_tokens(self.recipe.student, config),
            "start_id": start_id(config),
            "stop_ids": stop_ids(config),
        }
