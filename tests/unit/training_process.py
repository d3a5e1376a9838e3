"""Started by torchrun in several processes: trains the student of `test_training` or of `test_text_generation`, the
first writes what came.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from test_text_generation import Bigrams, Tokens, token_data
from test_training import Linear, Plain, data

from compressor.distill import Workplace, team, train
from compressor.progress import SILENT
from compressor.recipe_distill import ClassDistillation, Distillation, EmbeddingDistillation, NextTokenDistillation


class Unit(Linear):
    """Outputs of unit length, as embeddings have."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.nn.functional.normalize(super().forward(x)[0], dim=-1),)


def settings_of(values: dict[str, Any]) -> Distillation:
    if "cosine_weight" in values:
        return EmbeddingDistillation(**values)
    return NextTokenDistillation(**values) if "kept_tokens" in values else ClassDistillation(**values)


def main(folder: Path, values: dict[str, Any]) -> None:
    settings = settings_of(values)
    place = Workplace(folder, SILENT)
    if isinstance(settings, NextTokenDistillation):
        module, tokens = Bigrams(), Tokens()
        learnt, weight = token_data(folder, settings), module.table.weight
        history = train(module, tokens, tokens, learnt, settings, place)  # type: ignore[arg-type]
    else:
        student, plain = (Unit() if isinstance(settings, EmbeddingDistillation) else Linear()), Plain()
        weight = student.layer.weight
        history = train(student, plain, plain, data(folder), settings, place)  # type: ignore[arg-type]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        found = {
            "losses": [point.loss for point in history.losses],
            "scores": [point.score for point in history.scores],
            "weight": weight.tolist(),
            "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        }
        (folder / "found.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        team.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
