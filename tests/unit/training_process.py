"""Started by torchrun in several processes: trains the student of `test_training`, the first writes what came."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from test_training import Linear, Plain, data

from compressor.distill import Workplace, train
from compressor.progress import SILENT
from compressor.recipe_distill import ClassDistillation, Distillation, EmbeddingDistillation


class Unit(Linear):
    """Outputs of unit length, as embeddings have."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.nn.functional.normalize(super().forward(x)[0], dim=-1),)


def settings_of(values: dict[str, Any]) -> Distillation:
    kind = EmbeddingDistillation if "cosine_weight" in values else ClassDistillation
    return kind(**values)


def main(folder: Path, values: dict[str, Any]) -> None:
    settings = settings_of(values)
    module, plain = (Unit() if isinstance(settings, EmbeddingDistillation) else Linear()), Plain()
    history = train(module, plain, plain, data(folder), settings, Workplace(folder, SILENT))  # type: ignore[arg-type]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        found = {
            "losses": [point.loss for point in history.losses],
            "scores": [point.score for point in history.scores],
            "weight": module.layer.weight.tolist(),
            "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        }
        (folder / "found.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
