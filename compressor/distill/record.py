"""What the teacher says on the training inputs, computed once: later epochs and students only read it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import Shard, TeacherSignals
from compressor.distill.cache import ROWS, RowSignals, finished_shards, note_shards, shard_file, write_shard
from compressor.distill.memory import exhausted_memory
from compressor.distill.positions import said
from compressor.distill.taps import Taps
from compressor.errors import TeacherError
from compressor.preprocess import Feed, by_length
from compressor.progress import Bar, Progress
from compressor.recipe_distill import ClassDistillation
from compressor.teachers import Answers


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


# What a teacher says of examples, a row for each; the generator is for what it draws.
Ask = Callable[[list[Any], torch.Generator], list[RowSignals]]


@dataclass(frozen=True)
class Crew:
    """The processes that record together: each makes a shard of its own, and all ask the teacher as often.

    `agree` gives every process what the first one said, `collect` what each said, in their order and of equal length.
    """

    rank: int
    size: int
    agree: Callable[[bytes], bytes]
    collect: Callable[[bytes], list[bytes]]


ALONE = Crew(0, 1, lambda said: said, lambda said: [said])


def record_signals(
    ask: Ask, inputs: Inputs, folder: Path, progress: Progress, batch_size: int, crew: Crew = ALONE
) -> TeacherSignals:
    """Writes what the teacher says of every row, in shards.

    An interrupted recording continues with the shards that are not whole yet. Raises TeacherError when an output is not
    finite, OSError where the disk has no room.
    """
    started = time.monotonic()
    shards = finished_shards(folder) if crew.rank == 0 else {}
    counts = {number: min(ROWS, inputs.rows - number * ROWS) for number in range(-(-inputs.rows // ROWS))}
    missing = json.loads(crew.agree(json.dumps(sorted(set(counts) - set(shards))).encode()))
    done = inputs.rows - sum(counts[number] for number in missing)
    with progress.bar("teacher", inputs.rows, "example", done=done) as bar:
        recording = _Recording(ask, inputs, folder, batch_size, bar)
        for first in range(0, len(missing), crew.size):
            numbers = missing[first : first + crew.size]
            mine = numbers[crew.rank] if crew.rank < len(numbers) else None
            digest, asked = (bytes(32), 0) if mine is None else recording.shard(mine, counts[mine])
            recording.idle(-(-max(counts[n] for n in numbers) // batch_size) - asked)
            for number, made in zip(numbers, crew.collect(digest), strict=False):
                shards[number] = Shard(folder / shard_file(number), made.hex())
            bar.advance(sum(counts[n] for n in numbers if n != mine))
            if crew.rank == 0:
                note_shards(folder, shards)
    return _sealed(shards, inputs.rows, time.monotonic() - started)


@dataclass(frozen=True)
class _Recording:
    ask: Ask
    inputs: Inputs
    folder: Path
    batch_size: int
    bar: Bar

    def shard(self, number: int, rows: int) -> tuple[bytes, int]:
        """Writes one. Its SHA-256, and how often the teacher was asked for it."""
        examples = [self.inputs.example(row) for row in range(number * ROWS, number * ROWS + rows)]
        generator = torch.Generator().manual_seed(number)  # the same draws, wherever a recording goes on
        found: dict[int, RowSignals] = {}
        batches = by_length([len(example) for example in examples], self.batch_size)
        for batch in batches:
            with exhausted_memory(
                f"where the teacher answers {len(batch)} examples at once; shorten student.max_length, or free memory"
            ):
                found |= zip(batch.tolist(), self.ask([examples[i] for i in batch], generator), strict=True)
            self.bar.advance(len(batch))
        made = write_shard(self.folder, number, [found[i] for i in range(rows)])
        return bytes.fromhex(made.sha256), len(batches)

    def idle(self, times: int) -> None:
        """A teacher that is shared answers all processes or none, so who has nothing to ask asks all the same."""
        for _ in range(times):
            self.ask([self.inputs.example(0)], torch.Generator())


def whole_answers(answers: Answers, taps: Taps | None) -> Ask:
    """Of a teacher that answers an input as a whole: its outputs, and what its taps show meanwhile."""

    def ask(examples: list[Any], _: torch.Generator) -> list[RowSignals]:
        outputs = torch.from_numpy(answers(examples))
        _require_finite(outputs)
        inside = _of_taps(taps, examples)
        return [RowSignals(output.clone(), tokens) for output, tokens in zip(outputs, inside, strict=True)]

    return ask


def answers_at(
    logits: Callable[[list[Any]], Tensor | Sequence[Tensor]],
    positions: Callable[[Any], NDArray[np.int64]],
    settings: ClassDistillation,
    taps: Taps | None,
) -> Ask:
    """Of a teacher that answers tokens: what is kept (see `positions`) of `logits`, float [sequence, classes] of each,
    at each example's positions, and what its taps show meanwhile.
    """

    def ask(examples: list[Any], generator: torch.Generator) -> list[RowSignals]:
        batch = logits(examples)
        at = [positions(example) for example in examples]
        chosen = torch.cat([row[torch.from_numpy(where)] for row, where in zip(batch, at, strict=True)])
        _require_finite(chosen)
        kept = said(chosen, settings, generator)
        parts = {name: torch.split(values, [len(where) for where in at]) for name, values in kept.items()}
        inside = _of_taps(taps, examples)
        return [
            RowSignals(None, inside[i], {name: values[i].clone() for name, values in parts.items()})
            for i in range(len(examples))
        ]

    return ask


def _of_taps(taps: Taps | None, examples: Sequence[Any]) -> list[dict[str, Tensor]]:
    values = {name: value.half().cpu() for name, value in taps.take().items()} if taps else {}
    _require_finite(*values.values())
    return [{name: value[i, : len(e)].clone() for name, value in values.items()} for i, e in enumerate(examples)]


def _require_finite(*tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(values).all()) for values in tensors):
        raise TeacherError(
            "the teacher's outputs are not finite on the training data: its weights are damaged, or the data hold"
            " numbers that are not finite"
        )


def write_outputs(outputs: NDArray[np.float32], folder: Path, seconds: float) -> TeacherSignals:
    """The same of outputs that are known already: float32 [rows, width]."""
    return write_rows((RowSignals(torch.from_numpy(row), {}) for row in outputs), folder, seconds)


def write_rows(rows: Iterable[RowSignals], folder: Path, seconds: float) -> TeacherSignals:
    """Writes rows that are known already, in shards. Raises OSError where the disk has no room."""
    left, count = iter(rows), 0
    shards: dict[int, Shard] = {}
    while part := list(islice(left, ROWS)):
        shards[len(shards)] = write_shard(folder, len(shards), part)
        count += len(part)
    return _sealed(shards, count, seconds)


def _sealed(shards: dict[int, Shard], rows: int, seconds: float) -> TeacherSignals:
    return TeacherSignals(tuple(shards[number] for number in sorted(shards)), rows, round(seconds, 3))
