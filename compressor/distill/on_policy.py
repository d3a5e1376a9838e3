"""Learning from one's own words: the student goes on where a passage is cut, the teacher scores what it says.

Agarwal et al. 2024, "On-Policy Distillation of Language Models" (GKD): the student is taught on what it will itself
come to, and not on other people's texts alone. No gradient goes through the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.kernels import SparseTeacher
from compressor.preprocess import CausalPreprocessor

# What a teacher that is there during training says at the positions of examples, one after the other; the generator is
# for what of it is drawn.
Score = Callable[[Sequence[Any], torch.Generator], Tensor | SparseTeacher]


def is_on_policy(share: float, seed: int, step: int) -> bool:
    """Whether this step's batch is the student's own; the same in every process, and when a run is resumed."""
    return bool(np.random.default_rng((seed, 2, step)).random() < share)


def continued(
    student: nn.Module,
    head: Sequence[Tensor],
    preprocessor: CausalPreprocessor,
    examples: Sequence[NDArray[np.int64]],
    generator: torch.Generator,
) -> list[NDArray[np.int64]]:
    """The examples, int64 [length], as the student goes on from half of the shortest one, each to its own length.

    `student` takes and gives its cache (`tasks.text_generation`); `head` is the weight (and bias) that its outputs are
    to be multiplied by, if they are no logits yet. Tokens are drawn from its distribution at temperature 1.
    """
    begin = max(1, min(len(example) for example in examples) // 2)
    device = next(student.parameters()).device
    said = [torch.from_numpy(np.stack([example[:begin] for example in examples])).to(device)]
    feed = {name: torch.from_numpy(array).to(device) for name, array in _prompts(preprocessor, said[0]).items()}
    with torch.no_grad():
        for length in range(begin + 1, max(len(example) for example in examples) + 1):
            output, *present = student(**feed)
            last = output[:, -1].float()
            logits = nn.functional.linear(last, *(part.float() for part in head)) if head else last
            tokens = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator).to(device)
            said.append(tokens)
            mask = torch.ones(len(examples), length, dtype=torch.int64, device=device)
            feed = {"input_ids": tokens, "attention_mask": mask}
            feed |= dict(zip(preprocessor.cache.names, present, strict=True))
    whole = torch.cat(said, dim=1).cpu().numpy()
    return [row[: len(example)] for row, example in zip(whole, examples, strict=True)]


def _prompts(preprocessor: CausalPreprocessor, ids: Tensor) -> dict[str, NDArray[Any]]:
    return preprocessor.collate(list(ids.cpu().numpy()))
