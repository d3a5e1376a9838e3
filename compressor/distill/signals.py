"""The teacher's outputs on the training inputs, computed once: later epochs and students only read them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import nn

from compressor.artifacts import TeacherSignals
from compressor.errors import TeacherError
from compressor.preprocess import Feed, by_length
from compressor.progress import Progress
from compressor.store import sha256_file, write_atomic
from compressor.tasks import Task
from compressor.teachers import Answers

_BATCH = 64
_SAVE_EVERY_S = 10.0


def outputs_of(module: nn.Module, feed: Feed) -> torch.Tensor:
    """The first output of a deployable module for one feed, on the module's device: float32 [batch, width]."""
    device = next(module.parameters()).device
    outputs: tuple[torch.Tensor, ...] = module(
        **{name: torch.from_numpy(array).to(device) for name, array in feed.items()}
    )
    return outputs[0]


def record_signals(
    answers: Answers,
    task: Task,
    examples: Sequence[Any],
    folder: Path,
    progress: Progress,
) -> TeacherSignals:
    """Writes what the teacher answers to every view of every example.

    Row `view * len(examples) + i` belongs to view `view` of example i. An interrupted recording continues at the last
    saved batch. Raises TeacherError when an output is not finite.
    """
    rows = task.views * len(examples)
    batches = by_length([len(examples[i % len(examples)]) for i in range(rows)], _BATCH)
    path, done_file = folder / "signals.npy", folder / "done.json"
    done = json.loads(done_file.read_text()) if done_file.is_file() and path.is_file() else 0
    started = saved = time.monotonic()
    with progress.bar("teacher", rows, "example") as bar:
        bar.advance(sum(len(batch) for batch in batches[:done]))
        signals: np.memmap[Any, Any] | None = open_memmap(path, "r+") if done else None
        for number, batch in enumerate(batches[done:], done + 1):
            views = [task.view(examples[i % len(examples)], int(i) // len(examples)) for i in batch]
            output = answers(views)
            if not np.isfinite(output).all():
                raise TeacherError("the teacher's outputs are not finite on the training data: its weights are damaged")
            if signals is None:
                signals = _new_array(path, rows, output.shape[1])
            signals[batch] = output
            bar.advance(len(batch))
            if time.monotonic() - saved > _SAVE_EVERY_S:
                signals.flush()
                write_atomic(done_file, json.dumps(number).encode())
                saved = time.monotonic()
    assert signals is not None
    signals.flush()
    done_file.unlink(missing_ok=True)
    return TeacherSignals(path, sha256_file(path), rows, signals.shape[1], round(time.monotonic() - started, 3))


def _new_array(path: Path, rows: int, width: int) -> np.memmap[Any, Any]:
    """A writable .npy of float32 [rows, width]. Raises OSError where the disk has no room for all of it."""
    array = open_memmap(path, "w+", dtype=np.float32, shape=(rows, width))
    # The file is sparse so far: a write through the mapping that finds the disk full would end the process by SIGBUS.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def read_signals(signals: TeacherSignals) -> NDArray[np.float32]:
    """The recorded outputs, memory-mapped: float32 [rows, width]. Raises TeacherError when they changed on disk."""
    if not signals.path.is_file() or sha256_file(signals.path) != signals.sha256:
        stage = signals.path.parent.name.rpartition("-")[0]
        raise TeacherError(
            f"{signals.path}: the recorded teacher outputs are missing or damaged; run again with --from {stage}"
        )
    array: NDArray[np.float32] = np.load(signals.path, mmap_mode="r")
    return array
