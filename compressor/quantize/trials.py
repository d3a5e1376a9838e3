"""What a search for precisions has found, in a folder that several processes, also of several machines, may share.

Each finding is a line of its own, written when it is made, and none is made by two processes at once.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from compressor.locks import hold
from compressor.recipe_quantize import NodePrecision
from compressor.store import key_of, write_atomic

Chosen = Mapping[str, NodePrecision]

SENSITIVITY, TRIALS, UNFIT, PARETO = "sensitivity.jsonl", "trials.jsonl", "unfit.jsonl", "pareto.json"


@dataclass(frozen=True)
class Trial:
    """A mixture and what came of it. `agreement`: with float32, 1 is equal."""

    chosen: dict[str, NodePrecision]
    agreement: float
    bytes: int
    p50_ms: float
    speed: float


@dataclass(frozen=True)
class Unfit:
    """A mixture that this graph cannot have, and why."""

    chosen: dict[str, NodePrecision]
    reason: str


@dataclass(frozen=True)
class Sensitivity:
    """What one node alone in few bits does to the whole: agreement with float32, and times as fast. `precision` is
    float32 where it cannot have another.
    """

    node: str
    operator: str
    precision: NodePrecision
    agreement: float
    speed: float


def trials_in(folder: Path) -> dict[str, Trial]:
    """By the key of what was chosen."""
    return {mixture_key(one.chosen): one for one in (Trial(**row) for row in _rows(folder / TRIALS))}


def tried_in(folder: Path) -> dict[str, Trial | Unfit]:
    """The same, and what cannot be."""
    unfit = {mixture_key(one.chosen): one for one in (Unfit(**row) for row in _rows(folder / UNFIT))}
    return {**unfit, **trials_in(folder)}


def sensitivities_in(folder: Path) -> dict[str, Sensitivity]:
    """By node. Of two, the first, so that all processes rank alike."""
    return {row["node"]: Sensitivity(**row) for row in reversed(_rows(folder / SENSITIVITY))}


def record(found: Trial | Unfit | Sensitivity, folder: Path) -> None:
    """Writes it down; after a trial, the Pareto set of agreement, bytes and speed as well."""
    file = {Trial: TRIALS, Unfit: UNFIT, Sensitivity: SENSITIVITY}[type(found)]
    with (folder / ".lock").open("w") as lock:
        hold(lock, lambda: None)
        with (folder / file).open("a", encoding="utf-8") as lines:
            # Of its own also after half a line, which a process that died has left.
            lines.write("\n" + json.dumps(asdict(found)) + "\n")
        if isinstance(found, Trial):
            front = [asdict(one) for one in pareto(trials_in(folder).values())]
            write_atomic(folder / PARETO, json.dumps(front, indent=2).encode())


@contextmanager
def claimed(folder: Path, what: str, *, wait: bool) -> Iterator[bool]:
    """Holds `what` against the other processes; without `wait`, false where another holds it. A process that dies
    holds nothing.
    """
    path = folder / f".{key_of(what)[:16]}.claim"
    while True:
        with path.open("w") as file:
            if wait:
                hold(file, lambda: None)
            else:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield False
                    return
            if not _lies_at(file, path):  # whoever held it has taken it away: another may hold a new one
                continue
            yield True
            path.unlink(missing_ok=True)
            return


def _lies_at(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def pareto(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Those that no other matches in agreement, bytes and speed and beats in one; the best agreement first."""
    all_trials = tuple(trials)
    front = [one for one in all_trials if not any(_dominates(other, one) for other in all_trials)]
    return tuple(sorted(front, key=lambda one: -one.agreement))


def mixture_key(chosen: Chosen) -> str:
    """Equal for equal mixtures."""
    return json.dumps(dict(chosen), sort_keys=True)


def _dominates(one: Trial, other: Trial) -> bool:
    better = (one.agreement - other.agreement, other.bytes - one.bytes, one.speed - other.speed)
    return min(better) >= 0 and max(better) > 0


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, which may not be there yet; of a process that died while it wrote, not the half of one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = []
    for line in filter(None, lines):
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]
