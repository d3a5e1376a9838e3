"""`bench distillation` for a language model: SmolLM2-135M teaches presidential addresses to four of its thirty layers.

The engine keeps the 512 most probable tokens of each of its teacher's distributions; the losses of torchdistill and
TextBrewer are given whole distributions (2 GB of them), at this program's temperature. The metric is 1 / perplexity.
"""

from __future__ import annotations

from typing import Any

from bench._classroom import Lecture
from bench.distillation import compared


def _lecture(quick: bool) -> Lecture:
    return Lecture(
        "language",
        "text-generation",
        "smollm2-sotu",
        (
            f"data.max_train={32 if quick else 160}",
            f"data.max_eval={4 if quick else 40}",
            f"student.layers=[{'0, 29' if quick else '0, 1, 28, 29'}]",
            f"student.max_length={16 if quick else 64}",
            "distill.batch_size=4",
            f"distill.epochs={1 if quick else 2}",
        ),
    )


def run(quick: bool) -> dict[str, Any]:
    """Bars: those of `compared`."""
    found, _ = compared([_lecture(quick)], [_lecture(quick=True)], quick)
    return found
