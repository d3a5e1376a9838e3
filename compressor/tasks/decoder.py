"""What the tasks of a causal language model share: the graph with its cache, and what it is fed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from compressor.artifacts import TensorSpec
from compressor.errors import StudentError, TeacherError
from compressor.preprocess import CausalPreprocessor, Feed, Preprocessor
from compressor.tasks.text import EDGE_TEXTS, GRAPH_INPUTS
from compressor.teachers.decoder import folder_config

_GOLDEN_TEXTS, _GOLDEN_WORDS = 4, 3  # every token has a row as long as the vocabulary


class CausalLanguageModel(nn.Module):
    """A decoder with its cache of keys and values as inputs and outputs, so that a device need not keep any state.

    input_ids int64 [batch, sequence], attention_mask int64 [batch, past + sequence], and of every layer's past keys
    and values float32 [batch, kv_heads, past, head_dim] -> logits float32 [batch, sequence, vocabulary], and of every
    layer keys and values of past + sequence. Positions count the tokens that the mask has, wherever padding stands.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **past: Tensor) -> tuple[Tensor, ...]:
        values = list(past.values())
        cache = DynamicCache(list(zip(values[::2], values[1::2], strict=True)))
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        present = [part for layer in output.past_key_values.layers for part in (layer.keys, layer.values)]
        return (output.logits, *present)


class DecoderGraph:
    """Those members of a task that are the same wherever a decoder ships."""

    views = 1
    per_token = True
    loss = None

    def deployable(self, model: nn.Module) -> nn.Module:
        return CausalLanguageModel(model)

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        assert index == 0
        return example

    def compared(self, output: NDArray[np.float32], example: NDArray[Any]) -> NDArray[np.float32]:
        """The last token's logits, in which all tokens have a part."""
        return output[len(example) - 1 : len(example)]

    def graph(self, width: int, preprocessor: Preprocessor) -> tuple[list[TensorSpec], list[TensorSpec]]:
        assert isinstance(preprocessor, CausalPreprocessor)
        cache = preprocessor.cache

        def specs(names: Sequence[str], tokens: str) -> list[TensorSpec]:
            shape = ("batch", cache.kv_heads, tokens, cache.head_dim)
            return [TensorSpec(name, "float32", shape) for name in names]

        mask = TensorSpec("attention_mask", "int64", ("batch", "total_sequence"))
        logits = TensorSpec("logits", "float32", ("batch", "sequence", width))
        present = [name.replace("past_key_values", "present") for name in cache.names]
        return (
            [GRAPH_INPUTS[0], mask, *specs(cache.names, "past_sequence")],
            [logits, *specs(present, "total_sequence")],
        )

    def shape_feeds(self, preprocessor: Preprocessor) -> list[Feed]:
        assert isinstance(preprocessor, CausalPreprocessor)
        generator = np.random.default_rng(0)
        feeds: list[Feed] = []
        for batch, sequence, past in (
            (1, 1, 0),
            (1, preprocessor.max_length, 0),
            (2, 7, 0),
            (1, 1, 5),
            (3, 1, 9),
            (2, 11, 7),
        ):
            ids = generator.integers(0, preprocessor.vocabulary_size(), (batch, sequence))
            mask = np.ones((batch, past + sequence), np.int64)
            feed = {"input_ids": ids, "attention_mask": mask}
            feeds.append(feed | preprocessor.cache.filled(batch, past, generator))
        return feeds

    def edge_inputs(self) -> list[Any]:
        return list(EDGE_TEXTS)

    def golden_inputs(self, sample: list[Any]) -> list[Any]:
        return [" ".join(text.split()[:_GOLDEN_WORDS]) or "a" for text in sample[:_GOLDEN_TEXTS]]

    def timed(self, preprocessor: Preprocessor, example: NDArray[Any]) -> Feed:
        """One step of generation after the rest of the passage."""
        assert isinstance(preprocessor, CausalPreprocessor)
        return preprocessor.step(example)


def student_config(folder: Path) -> PretrainedConfig:
    """The config in a student's folder. Raises StudentError."""
    if not (folder / "config.json").is_file():
        raise StudentError(f"{folder}: expected a config.json in the student's folder, found none")
    try:
        return folder_config(folder)
    except TeacherError as error:
        raise StudentError(f"student.folder: {error}") from None


def stop_ids(config: PretrainedConfig) -> list[int]:
    """The tokens that end a text, the one that training ends texts with first."""
    named = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return [i for i in named if i is not None]
