"""What a training works on, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.distill.cache import SignalReader
from compressor.progress import Progress


@dataclass(frozen=True)
class TrainingData:
    """Encoded training examples, the last `holdout` of them held out, and what the teacher said of every view of each.

    `aligned` bool [examples]: which of them teacher and student cut into the same tokens; None where that is all.
    """

    examples: list[NDArray[Any]]
    signals: SignalReader
    labels: NDArray[np.int64] | None
    holdout: int
    aligned: NDArray[np.bool_] | None = None

    @property
    def rows(self) -> int:
        """Examples to train on."""
        return len(self.examples) - self.holdout


@dataclass(frozen=True)
class Workplace:
    """Where a training keeps its checkpoint, whom it tells how it goes, and where TensorBoard looks (None: nowhere)."""

    folder: Path
    progress: Progress
    events: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """The file that is replaced as training goes."""
        return self.folder / "checkpoint.pt"
