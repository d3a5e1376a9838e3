"""What the teacher says on the training inputs, computed once: later epochs and students only read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import Shard, TeacherSignals
from compressor.distill.cache import ROWS, RowSignals, finished_shards, note_shards, write_shard
from compressor.distill.taps import Taps
from compressor.errors import TeacherError
from compressor.preprocess import Feed, by_length
from compressor.progress import Progress
from compressor.teachers import Answers

_BATCH = 64


@dataclass(frozen=True)
class Inputs:
    """Examples as the teacher takes them. Row `view * len(examples) + i` is example i as `view` shows it."""

    examples: Sequence[Any]
    views: int
    view: Callable[[Any, int], Any]

    @property
    def rows(self) -> int:
        return self.views * len(self.examples)

    def example(self, row: int) -> Any:
        return self.view(self.examples[row % len(self.examples)], row // len(self.examples))


def outputs_of(module: nn.Module, feed: Feed) -> Tensor:
    """The first output of a deployable module for one feed, on the module's device: float [batch, width]."""
    device = next(module.parameters()).device
    outputs: tuple[Tensor, ...] = module(**{name: torch.from_numpy(array).to(device) for name, array in feed.items()})
    return outputs[0]


def record_signals(
    answers: Answers, inputs: Inputs, taps: Taps | None, folder: Path, progress: Progress
) -> TeacherSignals:
    """Writes what the teacher answers to every row, and what its taps show meanwhile, in shards.

    An interrupted recording continues with the shards that are not whole yet. Raises TeacherError when an output is not
    finite, OSError where the disk has no room.
    """
    started = time.monotonic()
    shards = finished_shards(folder)
    counts = {number: min(ROWS, inputs.rows - number * ROWS) for number in range(-(-inputs.rows // ROWS))}
    with progress.bar("teacher", inputs.rows, "example") as bar:
        bar.advance(sum(counts[number] for number in shards))
        for number in sorted(set(counts) - set(shards)):
            first = number * ROWS
            rows = _signals(answers, inputs, range(first, first + counts[number]), taps, bar.advance)
            shards[number] = write_shard(folder, number, rows)
            note_shards(folder, shards)
    return _sealed(shards, inputs.rows, time.monotonic() - started)


def write_outputs(outputs: NDArray[np.float32], folder: Path, seconds: float) -> TeacherSignals:
    """The same of outputs that are known already: float32 [rows, width]."""
    shards = {}
    for number, first in enumerate(range(0, len(outputs), ROWS)):
        rows = [RowSignals(torch.from_numpy(row), {}) for row in outputs[first : first + ROWS]]
        shards[number] = write_shard(folder, number, rows)
    return _sealed(shards, len(outputs), seconds)


def _sealed(shards: dict[int, Shard], rows: int, seconds: float) -> TeacherSignals:
    return TeacherSignals(tuple(shards[number] for number in sorted(shards)), rows, round(seconds, 3))


def _signals(
    answers: Answers, inputs: Inputs, rows: range, taps: Taps | None, advance: Callable[[int], None]
) -> list[RowSignals]:
    examples = [inputs.example(row) for row in rows]
    found: dict[int, RowSignals] = {}
    for batch in by_length([len(example) for example in examples], _BATCH):
        outputs = torch.from_numpy(answers([examples[i] for i in batch]))
        values = {name: value.half().cpu() for name, value in taps.take().items()} if taps else {}
        if not all(bool(torch.isfinite(value).all()) for value in (outputs, *values.values())):
            raise TeacherError("the teacher's outputs are not finite on the training data: its weights are damaged")
        for place, i in enumerate(batch):
            tokens = {name: value[place, : len(examples[i])].clone() for name, value in values.items()}
            found[int(i)] = RowSignals(outputs[place].clone(), tokens)
        advance(len(batch))
    return [found[i] for i in range(len(examples))]
