"""What a teacher says to a student that has a part of its tokens, in these.

Teacher and student read a text each in its own tokens. Where both begin a token at the same place, the teacher's
distribution is one over what comes next: each of its tokens is begun, by the student, with one of the student's, so the
probability of the student's token is the sum over all that it begins. Where the student begins one within a token of
the teacher's, it spells what the teacher has said already: there is nothing to choose, the next token is certain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.token_map import TokenMap, begins

Logits = Callable[[list[Any]], Tensor | Sequence[Tensor]]
_IMPOSSIBLE = -1e4  # nats, and finite: e^-1e4 is 0 at any temperature


@dataclass(frozen=True)
class Respelled:
    """A text as the teacher reads it, `ids` int64 [length], and of each of the student's tokens but the first, `next`
    int64 [positions]: after which of `ids` the teacher says what comes there, `after` int64 [positions]; -1 where that
    is within one of the teacher's.
    """

    ids: NDArray[np.int64]
    next: NDArray[np.int64]
    after: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


def respelled(mine: NDArray[np.int64], theirs: NDArray[np.int64], tokens: TokenMap) -> Respelled:
    """Of one text as student and as teacher read it, int64 [length] each."""
    my_begins = begins([tokens.my_bytes[i] for i in mine])[1:]
    their_begins = begins([tokens.their_bytes[i] for i in theirs])[1:]
    place = np.searchsorted(their_begins, my_begins).clip(max=max(0, len(their_begins) - 1))
    there = their_begins[place] == my_begins if len(their_begins) else np.zeros(len(my_begins), np.bool_)
    return Respelled(theirs, mine[1:], np.where(there, place, -1))


def positions(example: Respelled) -> NDArray[np.int64]:
    """The student's, all of them: int64 [positions]."""
    return np.arange(len(example.next))


def of_texts(logits: Logits, tokens: TokenMap) -> Logits:
    """Of Respelled texts what a teacher that gives `logits` says at the student's positions, for each text
    log-probabilities float32 [positions, student's tokens].
    """

    def ask(examples: list[Respelled]) -> list[Tensor]:
        return [
            _at_mine(said, one, tokens) for said, one in zip(logits([e.ids for e in examples]), examples, strict=True)
        ]

    return ask


def of_own_words(logits: Logits, tokens: TokenMap) -> Logits:
    """The same of texts in the student's tokens, int64 [length], as they are: the teacher reads them so, for what the
    student says itself may be no text that it could cut otherwise. For each text [length, student's tokens].
    """

    def ask(examples: list[NDArray[np.int64]]) -> list[Tensor]:
        return [in_its_tokens(said, tokens) for said in logits([tokens.ids[example] for example in examples])]

    return ask


def in_its_tokens(logits: Tensor, tokens: TokenMap) -> Tensor:
    """Of logits over the teacher's tokens, float [positions, teacher's], log-probabilities over the student's, float32
    [positions, student's].
    """
    known = np.flatnonzero(tokens.first >= 0)
    shares = logits[..., torch.from_numpy(known).to(logits.device)].float().softmax(-1)
    found = shares.new_zeros(*shares.shape[:-1], len(tokens.ids))
    found.index_add_(-1, torch.from_numpy(tokens.first[known]).to(logits.device), shares)
    return found.clamp_min(torch.finfo(torch.float32).tiny).log()


def _at_mine(logits: Tensor, example: Respelled, tokens: TokenMap) -> Tensor:
    found = torch.full((len(example.next), len(tokens.ids)), _IMPOSSIBLE, device=logits.device)
    found[torch.arange(len(example.next)), torch.from_numpy(example.next)] = 0.0
    both = np.flatnonzero(example.after >= 0)
    found[torch.from_numpy(both)] = in_its_tokens(logits[torch.from_numpy(example.after[both])], tokens)
    return found
