"""What a training works on, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.distill.cache import TEXT, SignalReader
from compressor.distill.on_policy import Score
from compressor.distill.positions import as_drawn, teacher_at
from compressor.kernels import SparseTeacher
from compressor.progress import Progress
from compressor.store import CHECKPOINT


@dataclass(frozen=True)
class TrainingData:
    """Encoded training examples, the last `holdout` of them held out, and what the teacher said of every view of each.

    Where single tokens are answered, `positions` says for each example which, int64 [positions], and `labels` has for
    each an int64 [positions] too. Where the teacher was asked at others as well, `recorded` says which of its answers
    these are, int64 [positions]; None where all. `aligned` bool [examples]: which of them teacher and student cut into
    the same tokens; None where that is all. `score` asks the teacher anew, for what the student says itself.
    """

    examples: list[NDArray[Any]]
    signals: SignalReader
    labels: Sequence[Any] | NDArray[np.int64] | None
    holdout: int
    positions: Sequence[NDArray[np.int64]] | None = None
    aligned: NDArray[np.bool_] | None = None
    score: Score | None = None
    recorded: Sequence[NDArray[np.int64]] | None = None

    @property
    def rows(self) -> int:
        """Examples to train on."""
        return len(self.examples) - self.holdout

    def labels_of(self, rows: NDArray[np.int64]) -> torch.Tensor | None:
        """int64 [rows], or of all their positions, one row after the other; None where there are none."""
        if self.labels is None:
            return None
        if self.positions is None:
            return torch.from_numpy(np.asarray(self.labels)[rows])
        return torch.from_numpy(np.concatenate([self.labels[i] for i in rows]))

    def answers_of(self, outputs: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        """What counts of the student's outputs for the rows: [rows, width], or [positions of all rows, width]."""
        if self.positions is None:
            return outputs
        lengths = [len(self.positions[i]) for i in rows]
        batch = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
        chosen = torch.from_numpy(np.concatenate([self.positions[i] for i in rows]))
        return outputs[batch.to(outputs.device), chosen.to(outputs.device)]

    def taught(self, rows: NDArray[np.int64]) -> torch.Tensor | SparseTeacher:
        """What the teacher said there, of recorded rows: as `answers_of`, or what of it was kept."""
        if self.positions is None:
            return torch.from_numpy(self.signals.outputs(rows))
        if self.signals.says(TEXT):
            written = self.labels_of(rows)
            assert written is not None
            return as_drawn(written)
        chosen = None if self.recorded is None else [self.recorded[i % len(self.examples)] for i in rows]
        return teacher_at(self.signals, rows, chosen)

    def answered(self, rows: NDArray[np.int64]) -> int:
        """How many answers that is."""
        return len(rows) if self.positions is None else sum(len(self.positions[i]) for i in rows)


@dataclass(frozen=True)
class Workplace:
    """Where a training keeps its checkpoint, whom it tells how it goes, and where TensorBoard looks (None: it is not
    tracked). `parameters` are what it is called with, for MLflow.
    """

    folder: Path
    progress: Progress
    events: Path | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """The file that is replaced as training goes, and goes when its stage is finished."""
        return self.folder / CHECKPOINT

    @property
    def mlflow_note(self) -> Path:
        """The file that names the run of MLflow, also when the stage is finished."""
        return self.folder / "mlflow-run"
