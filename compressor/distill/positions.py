"""What a teacher says at single positions, and how it is kept: logits as they are, or of many classes a few.

Of a large vocabulary the K most probable classes, or K draws, are kept: `top.ids` (uint16 or int32) [positions, K],
and unless they are draws `top.codes` uint8 [positions, K] and `top.scale` float16 [positions, 2]. A code counts steps
down from the most probable class, on the scale of log-probability; the scale is that step, and the log of the mass that
the K classes have together. So K classes take 3 K + 4 bytes a position, or 5 K + 4 from 65,536 classes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.distill.cache import LOGITS, SignalReader
from compressor.kernels import SparseTeacher
from compressor.recipe_distill import ClassDistillation, NextTokenDistillation

IDS, CODES, SCALE = "top.ids", "top.codes", "top.scale"
_FAINTEST = 25.0  # nats below the most probable class: what is less probable counts as e^-25 of it
_LEVELS = 255


def said(logits: Tensor, settings: ClassDistillation, generator: torch.Generator) -> dict[str, Tensor]:
    """What is kept of logits, float [positions, classes], by name. `generator` makes the draws, on the CPU."""
    if not isinstance(settings, NextTokenDistillation):
        return {LOGITS: logits.float().cpu()}
    log_probabilities = (logits.float() / settings.temperature).log_softmax(-1)
    kept = min(settings.kept_tokens, logits.shape[-1])
    if settings.teacher_signal == "sampled":
        draws = torch.multinomial(log_probabilities.exp().cpu(), kept, replacement=True, generator=generator)
        return {IDS: _small_ids(draws, logits.shape[-1])}
    values, ids = log_probabilities.topk(kept, dim=-1)
    codes, scale = packed(values.cpu())
    return {IDS: _small_ids(ids.cpu(), logits.shape[-1]), CODES: codes, SCALE: scale}


def teacher_at(
    signals: SignalReader, rows: NDArray[np.int64], chosen: Sequence[NDArray[np.int64]] | None = None
) -> Tensor | SparseTeacher:
    """What the loss takes for the teacher at the rows' positions, or those `chosen`: see `SignalReader.said`."""
    names = [name for name in (LOGITS, IDS, CODES, SCALE) if signals.says(name)]
    return as_teacher({name: signals.said(name, rows, chosen) for name in names})


def as_teacher(kept: dict[str, Tensor]) -> Tensor | SparseTeacher:
    """What the loss takes for the teacher, of what `said` gives."""
    if LOGITS in kept:
        return kept[LOGITS]
    ids = kept[IDS].to(torch.int64)
    if CODES not in kept:
        return SparseTeacher(ids, torch.full(ids.shape, -float(np.log(ids.shape[1]))), "sampled")
    return SparseTeacher(ids, unpacked(kept[CODES], kept[SCALE]), "ghost")


def as_drawn(tokens: Tensor) -> SparseTeacher:
    """What the loss takes for a teacher that one token is known of at each position, int64 [positions]: the one that it
    wrote. The loss of the student is then the cross-entropy of these tokens.
    """
    return SparseTeacher(tokens[:, None], torch.zeros(len(tokens), 1), "sampled")


def packed(log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [positions, K] and scale float16 [positions, 2] of float32 [positions, K], the largest first."""
    below = (log_probabilities[:, :1] - log_probabilities).clamp(max=_FAINTEST)
    step = (below[:, -1:] / _LEVELS).half()
    mass = log_probabilities.logsumexp(-1, keepdim=True).clamp(max=0.0).half()
    # A step that float16 rounds to nothing: all are equally probable.
    codes = torch.where(step > 0, below / step.float().clamp(min=1e-12), 0.0).round().clamp(0, _LEVELS)
    return codes.to(torch.uint8), torch.cat([step, mass], dim=-1)


def unpacked(codes: Tensor, scale: Tensor) -> Tensor:
    """Log-probabilities float32 [positions, K] whose mass together is the one that was kept."""
    step, mass = scale[:, :1].float(), scale[:, 1:].float()
    below = -step * codes.float()
    found: Tensor = below - below.logsumexp(-1, keepdim=True) + mass
    return found


def _small_ids(ids: Tensor, classes: int) -> Tensor:
    return ids.to(torch.uint16 if classes <= 2**16 else torch.int32)
