"""Whether the engine and the plain loop of `_training` teach the same, given the same loss written twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench._training import Loss, Objective, Pupil, by_engine, by_loop
from compressor.distill import outputs_of
from compressor.preprocess import by_length
from compressor.recipe_distill import Distillation

_EXAMPLES, _BATCH = 64, 8


def engine_against_loop(
    pupil: Callable[[], Pupil], settings: Distillation, loss: Loss, for_loop: Callable[[], Pupil] | None = None
) -> tuple[float, float]:
    """Trains the same student twice for an epoch, in the engine with `settings` and in the loop with `loss`, which
    must be the same: the largest relative difference of their losses, step by step, and how far their answers then
    are from each other, as a share of how far they have moved. Weights would not do: a bias before a batch norm has
    no effect and a gradient of rounding errors, which Adam turns into whole steps. `for_loop` gives that student
    where the loop is told of its teacher otherwise.
    """
    once = settings.model_copy(update={"epochs": 1})
    before, engine, loop = pupil(), pupil(), (for_loop or pupil)()
    engines, loops = by_engine(engine, once), by_loop(loop, once, Objective(loss))
    assert len(engines) == len(loops), "every step's loss, which the engine keeps of up to 399 steps"
    apart = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(engines, loops, strict=True))
    begin, a, b = (_answers(one) for one in (before, engine, loop))
    return apart, float((a - b).norm() / (b - begin).norm())


def _answers(pupil: Pupil) -> Tensor:
    """To the first examples: float64 [answers, width]."""
    examples = pupil.data.examples[:_EXAMPLES]
    module = pupil.module.eval()
    with torch.inference_mode():
        batches = [
            (rows, outputs_of(module, pupil.preprocessor.collate([examples[i] for i in rows])))
            for rows in by_length([len(example) for example in examples], _BATCH)
        ]
        return torch.cat([pupil.data.answers_of(output, np.asarray(rows)) for rows, output in batches]).double()
