"""Text generation by a causal language model: tokens in, the next token out; judged by perplexity on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from compressor.artifacts import TensorSpec
from compressor.errors import DataError, StudentError
from compressor.preprocess import CausalPreprocessor, Feed, Preprocessor
from compressor.progress import Progress
from compressor.recipe import TextGenerationRecipe
from compressor.recipe_data import DataSource
from compressor.tasks.base import TaskData
from compressor.tasks.sources import place
from compressor.tasks.tables import BadRows, read_columns
from compressor.tasks.text import EDGE_TEXTS, GRAPH_INPUTS, holdout_size, teacher_tokenizer
from compressor.teachers.decoder import cache_shape, decoder_config, folder_config, start_id

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


@dataclass(frozen=True)
class TextGeneration:
    recipe: TextGenerationRecipe
    metric_name = "1/perplexity"
    views = 1
    per_token = True
    loss = None

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

    def deployable(self, model: nn.Module) -> nn.Module:
        return CausalLanguageModel(model)

    def preprocessor(self, folder: Path | None) -> CausalPreprocessor:
        config = decoder_config(self.recipe.teacher) if folder is None else folder_config(folder)
        tokenizer = teacher_tokenizer(self.recipe) if folder is None else folder / "tokenizer.json"
        return CausalPreprocessor(tokenizer, self.recipe.student.max_length, cache_shape(config), start_id(config))

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        assert index == 0
        return example

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
        longest = self.recipe.student.max_length
        feeds: list[Feed] = []
        for batch, sequence, past in ((1, 1, 0), (1, longest, 0), (2, 7, 0), (1, 1, 5), (3, 1, 9), (2, 11, 7)):
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

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:
        """Of each passage its log-probability and its number of tokens: float64 [passages, 2]."""
        begins = np.concatenate([[0], np.cumsum(data.truth)[:-1]])
        return np.stack([np.add.reduceat(outputs[:, 0].astype(np.float64), begins), data.truth], axis=-1)

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:  # noqa: ARG002
        """1 / perplexity: the geometric mean of the probabilities of the true tokens."""
        return float(np.exp(answers[:, 0].sum() / answers[:, 1].sum()))

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        return float((outputs[:, 1] == teacher[:, 1]).mean())

    def answer_settings(self) -> dict[str, Any]:
        config = decoder_config(self.recipe.teacher)
        stop = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        return {
            "max_length": self.recipe.student.max_length,
            "start_id": start_id(config),
            "stop_ids": [i for i in stop if i is not None],
        }
