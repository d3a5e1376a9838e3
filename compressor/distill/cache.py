"""What the teacher said, on disk: shards of consecutive rows in safetensors files, each with its SHA-256.

A row's signals are `outputs` float32 [width], or what was said at each of its positions that are answered (see
`positions`), and for each tap (`hidden.3`, `qkv.5`: see `taps`) float16 [tokens, width], where a row has as many tokens
as the teacher's tokenizer made of it. A shard has them one after the other: `outputs` [rows, width], each tap [tokens
of all rows, width], and `tokens` int32 [rows], how many each row has; likewise with `positions`.
Shards are memory-mapped: what a batch does not need is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from compressor.artifacts import Shard, TeacherSignals
from compressor.errors import DataError, TeacherError
from compressor.store import sha256_file, stage_of, write_atomic

ROWS = 1024  # of a shard: some seconds of a teacher's work, which an interruption loses at most
OUTPUTS, LOGITS = "outputs", "logits"  # of inputs as a whole; of positions
TEXT = "text"  # in place of these, bytes: what was written (see `texts`)
TOKENS, POSITIONS = "tokens", "positions"
_DONE, _LISTED = "shards.json", TypeAdapter(dict[int, str])


@dataclass(frozen=True)
class RowSignals:
    """Of one row: `outputs` float32 [width], by tap float16 [tokens, width], by name [positions, ...] of any dtype.

    One of `outputs` and `said` is there.
    """

    outputs: Tensor | None
    taps: dict[str, Tensor]
    said: dict[str, Tensor] = field(default_factory=dict)


def shard_file(number: int) -> str:
    """The name of a shard's file."""
    return f"signals-{number:05}.safetensors"


def write_shard(folder: Path, number: int, rows: list[RowSignals]) -> Shard:
    """Writes rows `number * ROWS` and on, whole or not at all. Raises OSError."""
    tensors = {}
    if rows[0].outputs is not None:
        tensors[OUTPUTS] = torch.stack([row.outputs for row in rows if row.outputs is not None])
    for counts, parts in ((TOKENS, [row.taps for row in rows]), (POSITIONS, [row.said for row in rows])):
        for name in parts[0]:
            tensors[name] = torch.cat([part[name] for part in parts])
            tensors[counts] = torch.tensor([len(part[name]) for part in parts], dtype=torch.int32)
    path = folder / shard_file(number)
    content = safetensors.torch.save(tensors)
    write_atomic(path, content)
    return Shard(path, hashlib.sha256(content).hexdigest())


def finished_shards(folder: Path) -> dict[int, Shard]:
    """Of an unfinished or damaged recording: the shards that are as they were written, by number."""
    try:
        listed = _LISTED.validate_json((folder / _DONE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
    shards = {number: Shard(folder / shard_file(number), sha256) for number, sha256 in listed.items()}
    return {number: shard for number, shard in shards.items() if intact(shard)}


def note_shards(folder: Path, shards: dict[int, Shard]) -> None:
    """Remembers what is finished, for `finished_shards`."""
    write_atomic(folder / _DONE, json.dumps({number: one.sha256 for number, one in shards.items()}).encode())


def intact(shard: Shard) -> bool:
    """Whether the file is there and has its SHA-256."""
    try:
        return sha256_file(shard.path) == shard.sha256
    except DataError:
        return False


class SignalReader:
    """The recorded signals, checked and memory-mapped. Raises TeacherError when a shard changed on disk."""

    def __init__(self, signals: TeacherSignals) -> None:
        for shard in signals.shards:
            if not intact(shard):
                raise TeacherError(
                    f"{shard.path}: the recorded teacher outputs are missing or damaged; run again with"
                    f" --from {stage_of(shard.path.parent)}"
                )
        self.rows, self.taps = signals.rows, signals.taps
        try:
            self._shards = [safetensors.torch.load_file(shard.path) for shard in signals.shards]
        except SafetensorError as error:
            raise TeacherError(f"{signals.shards[0].path.parent}: not readable as safetensors: {error}") from None
        self._outputs = [shard[OUTPUTS].numpy() for shard in self._shards if OUTPUTS in shard]
        self._ends = {
            counts: [np.cumsum(shard[counts].numpy()) for shard in self._shards if counts in shard]
            for counts in (TOKENS, POSITIONS)
        }

    @property
    def width(self) -> int | None:
        """Of the outputs; None where not all of them was kept."""
        for name in (OUTPUTS, LOGITS):
            if name in self._shards[0]:
                return int(self._shards[0][name].shape[1])
        return None

    def tap_width(self, name: str) -> int:
        return int(self._shards[0][name].shape[1])

    def outputs(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [len(rows), width]."""
        found = np.empty((len(rows), self._outputs[0].shape[1]), np.float32)
        for place, row in enumerate(rows):
            found[place] = self._outputs[row // ROWS][row % ROWS]
        return found

    def tokens(self, name: str, rows: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """A tap's rows, cut or padded with zeros to `length` tokens: float32 [len(rows), length, width]."""
        found = np.zeros((len(rows), length, self.tap_width(name)), np.float32)
        for place, row in enumerate(rows):
            values = self._of_row(name, TOKENS, int(row))[:length]
            found[place, : len(values)] = values.numpy()
        return found

    def said(self, name: str, rows: NDArray[np.int64], chosen: Sequence[NDArray[np.int64]] | None = None) -> Tensor:
        """What was said at the rows' positions, one row after the other: [positions of all, ...].

        `chosen` int64 of each row: at these of its positions alone, by their place among them.
        """
        found = [self._of_row(name, POSITIONS, int(row)) for row in rows]
        if chosen is not None:
            found = [values[torch.from_numpy(places)] for values, places in zip(found, chosen, strict=True)]
        return torch.cat(found)

    def says(self, name: str) -> bool:
        """Whether that was recorded."""
        return name in self._shards[0]

    def _of_row(self, name: str, counts: str, row: int) -> Tensor:
        shard, within = divmod(row, ROWS)
        ends = self._ends[counts][shard]
        begin = int(ends[within - 1]) if within else 0
        found: Tensor = self._shards[shard][name][begin : int(ends[within])]
        return found
