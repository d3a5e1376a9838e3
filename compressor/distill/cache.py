"""What the teacher said, on disk: shards of consecutive rows in safetensors files, each with its SHA-256.

A row's signals are `outputs` float32 [width], and for each tap (`hidden.3`, `qkv.5`: see `taps`) float16
[tokens, width], where a row has as many tokens as the teacher's tokenizer made of it. A shard has them one after the
other: `outputs` [rows, width], each tap [tokens of all rows, width], and `tokens` int32 [rows], how many each row has.
Shards are memory-mapped: what a batch does not need is not read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from compressor.artifacts import Shard, TeacherSignals
from compressor.errors import DataError, TeacherError
from compressor.store import sha256_file, write_atomic

ROWS = 1024  # of a shard: some seconds of a teacher's work, which an interruption loses at most
OUTPUTS, TOKENS = "outputs", "tokens"
_DONE = "shards.json"


@dataclass(frozen=True)
class RowSignals:
    """Of one row: `outputs` float32 [width], and by tap float16 [tokens, width]."""

    outputs: Tensor
    taps: dict[str, Tensor]


def shard_file(number: int) -> str:
    """The name of a shard's file."""
    return f"signals-{number:05}.safetensors"


def write_shard(folder: Path, number: int, rows: list[RowSignals]) -> Shard:
    """Writes rows `number * ROWS` and on, whole or not at all. Raises OSError."""
    names = list(rows[0].taps)
    tensors = {OUTPUTS: torch.stack([row.outputs for row in rows])}
    tensors |= {name: torch.cat([row.taps[name] for row in rows]) for name in names}
    if names:
        tensors[TOKENS] = torch.tensor([len(row.taps[names[0]]) for row in rows], dtype=torch.int32)
    path = folder / shard_file(number)
    content = safetensors.torch.save(tensors)
    write_atomic(path, content)
    return Shard(path, hashlib.sha256(content).hexdigest())


def finished_shards(folder: Path) -> dict[int, Shard]:
    """Of an unfinished or damaged recording: the shards that are as they were written, by number."""
    try:
        listed = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    shards = {int(n): Shard(folder / shard_file(int(n)), str(sha256)) for n, sha256 in listed.items()}
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
                stage = shard.path.parent.name.rpartition("-")[0]
                raise TeacherError(
                    f"{shard.path}: the recorded teacher outputs are missing or damaged; run again with --from {stage}"
                )
        self.rows, self.taps = signals.rows, signals.taps
        try:
            self._shards = [safetensors.torch.load_file(shard.path) for shard in signals.shards]
        except SafetensorError as error:
            raise TeacherError(f"{signals.shards[0].path.parent}: not readable as safetensors: {error}") from None
        self._outputs = [shard[OUTPUTS].numpy() for shard in self._shards]
        self.width = int(self._outputs[0].shape[1])
        self._ends = [np.cumsum(shard[TOKENS].numpy()) if TOKENS in shard else None for shard in self._shards]

    def tap_width(self, name: str) -> int:
        return int(self._shards[0][name].shape[1])

    def outputs(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [len(rows), width]."""
        found = np.empty((len(rows), self.width), np.float32)
        for place, row in enumerate(rows):
            found[place] = self._outputs[row // ROWS][row % ROWS]
        return found

    def tokens(self, name: str, rows: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """A tap's rows, cut or padded with zeros to `length` tokens: float32 [len(rows), length, width]."""
        found: NDArray[Any] | None = None
        for place, row in enumerate(rows):
            shard, within = divmod(int(row), ROWS)
            ends = self._ends[shard]
            assert ends is not None
            begin, end = (int(ends[within - 1]) if within else 0), int(ends[within])
            end = min(end, begin + length)
            values = self._shards[shard][name][begin:end].numpy()
            if found is None:
                found = np.zeros((len(rows), length, values.shape[1]), np.float32)
            found[place, : len(values)] = values
        assert found is not None
        return found
