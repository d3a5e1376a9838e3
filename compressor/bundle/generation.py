"""Generation token by token with a decoder that takes and gives its cache. Needs no torch."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.onnxrt import run_one
from compressor.preprocess import CausalPreprocessor


def generate(
    session: Any,
    preprocessor: CausalPreprocessor,
    prompt: str,
    stop_ids: Set[int],
    max_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """The text after `prompt`, of at most `max_tokens` tokens; the most probable ones at temperature 0.

    `session` is an onnxruntime session of a decoder. Raises BundleError when the model refuses an input.
    """
    generator = np.random.default_rng(seed)
    feed = preprocessor.collate(preprocessor.encode([prompt]))
    said: list[int] = []
    while len(said) < max_tokens:
        logits, *present = run_one(session, feed)
        token = next_token(logits[0, -1], temperature, generator)
        if token in stop_ids:
            break
        said.append(token)
        mask = np.ones((1, feed["attention_mask"].shape[1] + 1), np.int64)
        feed = {"input_ids": np.array([[token]]), "attention_mask": mask}
        feed |= dict(zip(preprocessor.cache.names, present, strict=True))
    return preprocessor.decode(said)


def next_token(logits: NDArray[np.float32], temperature: float, generator: np.random.Generator) -> int:
    """A token by its logits [vocabulary]: the most probable one, or one drawn from softmax(logits / temperature)."""
    if temperature <= 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(generator.choice(len(weights), p=weights / weights.sum()))
