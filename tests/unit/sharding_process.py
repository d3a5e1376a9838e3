"""Started by torchrun: records what a tiny sharded teacher says; each process writes how much of it it held."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from compressor.artifacts import TeacherSignals
from compressor.distill import (
    ALONE,
    Crew,
    Inputs,
    Taps,
    answers_at,
    outputs_of,
    record_signals,
    sharded,
    team,
    whole_answers,
)
from compressor.distill import cache as cache_module
from compressor.distill import record as record_module
from compressor.errors import TeacherError
from compressor.progress import SILENT
from compressor.recipe_distill import NextTokenDistillation

ROWS, EXAMPLES, BATCH = 8, 37, 3  # five shards, the last of five rows
SAMPLED = NextTokenDistillation(teacher_signal="sampled", kept_tokens=4)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = BertModel(
            BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64)
        )

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(input_ids=input_ids).last_hidden_state.mean(1),)


class Tied(nn.Module):
    """The token table is the head as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=50,
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=64,
                tie_word_embeddings=True,
            )
        )

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(input_ids=input_ids).logits,)


TEACHERS: dict[str, Callable[[], nn.Module]] = {"pooled": Pooled, "tied": Tied}


def load(name: str) -> nn.Module:
    return TEACHERS[name]().eval().requires_grad_(False)


def feed(examples: list[NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    longest = max(len(example) for example in examples)
    return {"input_ids": np.stack([np.pad(example, (0, longest - len(example))) for example in examples])}


def record(name: str, module: nn.Module, folder: Path, crew: Crew = ALONE) -> TeacherSignals:
    """Of texts of different lengths: outputs and taps of one teacher, draws from the other."""
    cache_module.ROWS = record_module.ROWS = ROWS  # type: ignore[misc]
    draws = np.random.default_rng(0)
    examples = [draws.integers(1, 50, length) for length in draws.integers(3, 12, EXAMPLES)]

    def says(batch: list[Any]) -> torch.Tensor:
        with torch.inference_mode():
            return outputs_of(module, feed(batch))

    taps = Taps(module, ["hidden.1", "qkv.2"], TeacherError) if name == "pooled" else None
    if name == "pooled":
        ask = whole_answers(lambda batch: says(list(batch)).numpy(), taps)
    else:
        ask = answers_at(says, lambda example: np.arange(len(example) - 1), SAMPLED, None)
    return record_signals(ask, Inputs(examples, 1, lambda example, _: example), folder, SILENT, BATCH, crew)


def main(name: str, folder: Path) -> None:
    module = sharded(lambda: load(name))
    record(name, module, folder, team.crew())
    held = [parameter.to_local().numel() for parameter in module.parameters()]  # type: ignore[operator]
    (folder / f"held-{torch.distributed.get_rank()}.json").write_text(json.dumps(sum(held)))
    team.leave(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
