"""Several processes at one run, by `torchrun` or `accelerate launch`: the first leads, the others work with it.

The leader runs the whole pipeline. When it comes to training, or to asking a teacher that is shared among all, it tells
the others what; they load the same models and data, take their share, and wait for the next call. All see the same run
folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import PartialState
from pydantic import TypeAdapter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from compressor.artifacts import OnnxModel, Student, TeacherSignals
from compressor.distill.record import Crew

_PATIENCE = timedelta(days=7)  # the leader may export, quantize and measure between two calls


@dataclass(frozen=True)
class Work:
    """A training: of which student, on what, and where its files go. `control`: on the labels alone. `graph`: in few
    bits, of this float32 model.

    `recorded` None: what the teacher says is to be recorded, into that folder.
    """

    start: Student
    recorded: TeacherSignals | None
    control: bool
    folder: Path
    graph: OnnxModel | None = None


def size() -> int:
    """How many processes there are, by what the launcher put into the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process runs the pipeline."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def together(work: Work) -> Iterator[None]:
    """The leader's side of a training. When it fails, the others are where nobody can call them: the launcher ends
    them, because this process ends.
    """
    if size() == 1:
        yield
        return
    _tell(TypeAdapter(Work).dump_json(work))
    _training.append(work)
    yield
    _training.clear()


def crew() -> Crew:
    """All processes, to record together."""
    return Crew(int(os.environ.get("RANK", "0")), size(), _agree, _collect)


def mesh() -> DeviceMesh:
    """The devices of all processes, in a row."""
    _line()
    return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (size(),))


def take_turns(act: Callable[[], None]) -> None:
    """Has every process do it, one after the other."""
    for turn in range(size()):
        if turn == int(os.environ["RANK"]):
            act()
        torch.distributed.barrier(group=_line())


def dismiss() -> None:
    """The leader has no more work. Nothing happens where there is nobody, or where a training failed."""
    if size() > 1 and not _training:
        _tell(b"")


def leave(exit_code: int) -> NoReturn:
    """Ends this process of several at once. Gloo's threads may still hold tensors of the last message, and where they
    let go of them in an interpreter that is being torn down the process aborts (pytorch#179291).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(exit_code)


def follow(share: Callable[[Work], None]) -> None:
    """The other processes' side: does its share of every training until it is dismissed."""
    while message := _hear():
        share(TypeAdapter(Work).validate_json(message))


_training: list[Work] = []  # under way, or failed


@cache
def _line() -> torch.distributed.ProcessGroup:
    """For messages between the trainings; gloo, whatever the gradients travel by."""
    PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, torch.distributed.ProcessGroup)
    return group


def _tell(message: bytes) -> None:
    line = _line()
    torch.distributed.broadcast(torch.tensor([len(message)]), 0, group=line)
    if message:
        torch.distributed.broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8), 0, group=line)


def _agree(message: bytes) -> bytes:
    if leads():
        _tell(message)
        return message
    return _hear()


def _collect(message: bytes) -> list[bytes]:
    mine = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    found = [torch.empty_like(mine) for _ in range(size())]
    torch.distributed.all_gather(found, mine, group=_line())
    return [each.numpy().tobytes() for each in found]


def _hear() -> bytes:
    line, length = _line(), torch.zeros(1, dtype=torch.int64)
    torch.distributed.broadcast(length, 0, group=line)
    content = torch.zeros(int(length), dtype=torch.uint8)
    if len(content):
        torch.distributed.broadcast(content, 0, group=line)
    return content.numpy().tobytes()
