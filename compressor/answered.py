"""Prompts with what was written in answer to them, as a student reads them and learns to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError
from compressor.preprocess import CausalPreprocessor
from compressor.tokenizer_file import tokenizing


@dataclass(frozen=True)
class Answer:
    """What was written. `ended`: it is all of it, so that the token that ends a text follows; else it was cut off."""

    text: str
    ended: bool


# A prompt as it will be given, and the answer that is to follow it.
Answered = tuple[str, Answer]


@dataclass(frozen=True)
class AnswerPreprocessor(CausalPreprocessor):
    """Tokens of prompts alone, as a CausalPreprocessor makes them, or of prompts with their answers.

    An encoded text is int64 [length, 2]. Of each token: its id; 1 where it is the answer's, else 0. The answer is cut
    into tokens for itself, since a device has the tokens of the prompt before there is an answer. Then comes `end_id`,
    if the answer ended. All of it is cut off at `max_length`, so that a long prompt leaves no room for an answer.
    """

    end_id: int

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[np.int64]]:
        """Prompts, or pairs of a prompt and its Answer, in any order."""
        given = [one if isinstance(one, tuple) else (one, None) for one in inputs]
        prompts = super().encode([prompt for prompt, _ in given])
        answers = iter(self._answers([answer for _, answer in given if answer is not None]))
        nothing = np.empty(0, np.int64)
        return [
            self._example(ids, nothing if answer is None else next(answers))
            for ids, (_, answer) in zip(prompts, given, strict=True)
        ]

    def ids(self, example: NDArray[Any]) -> NDArray[np.int64]:
        ids: NDArray[np.int64] = example[:, 0]
        return ids

    def _answers(self, answers: Sequence[Answer]) -> list[NDArray[np.int64]]:
        if not all(isinstance(answer, Answer) for answer in answers):
            raise DataError("expected a prompt, or a prompt with its Answer")
        texts = [answer.text for answer in answers]
        with tokenizing(self.tokenizer_file):
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            np.array([*encoding.ids, *([self.end_id] if answer.ended else [])], dtype=np.int64)
            for encoding, answer in zip(encodings, answers, strict=True)
        ]

    def _example(self, prompt: NDArray[np.int64], answer: NDArray[np.int64]) -> NDArray[np.int64]:
        ids = np.concatenate([prompt, answer])
        return np.stack([ids, np.arange(len(ids)) >= len(prompt)], axis=-1, dtype=np.int64)[: self.max_length]


def answer_positions(example: NDArray[Any]) -> NDArray[np.int64]:
    """Of what an AnswerPreprocessor encoded: the tokens after which one of the answer's comes; int64 [positions]."""
    return np.flatnonzero(example[1:, 1])
