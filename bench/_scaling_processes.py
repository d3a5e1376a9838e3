"""Two processes against one: the demo's student trains, the same batches in one process and split over two.

As a program (`python -m bench._scaling_processes FOLDER OUT`, alone or under torchrun) it is one process of a training.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from bench._outcome import EXAMPLES
from bench._scaling_paths import level_mib, memory_mib
from compressor import learning, stages
from compressor.distill import team
from compressor.errors import BenchmarkError
from compressor.materials import Materials
from compressor.progress import SILENT, Bar, Progress
from compressor.recipe import Recipe
from compressor.recipe_file import read_recipe

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Setup:
    """How a training is spread over the cores."""

    processes: int
    threads: int

    @property
    def name(self) -> str:
        return f"{self.processes} x {self.threads}"


ONE, WIDE, TWO = Setup(1, 1), Setup(1, 2), Setup(2, 1)


class _Clock(Progress):
    """When each step of the training was done."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.at_s: list[float] = []

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:  # noqa: ARG002
        yield _Hand(self.at_s)


class _Hand:
    def __init__(self, at_s: list[float]) -> None:
        self._at_s = at_s

    def advance(self, amount: int = 1, note: str = "") -> None:  # noqa: ARG002 (as Bar has it)
        if amount:
            self._at_s.append(time.perf_counter())


def prepare(folder: Path, quick: bool) -> Path:
    """The student's start and the teacher's recorded outputs, once for all trainings; a file that says where."""
    (folder / "start").mkdir(parents=True)
    (folder / "signals").mkdir()
    overrides = [f"data.max_train={512 if quick else 8192}", f"distill.epochs={1 if quick else 2}"]
    at = Materials(_recipe(overrides, folder), SILENT)
    start = stages.student(at, folder / "start")
    work = team.Work(start, learning.signals(at, start, folder / "signals"), False, folder)
    prepared = folder / "prepared.json"
    said = {"overrides": overrides, "work": TypeAdapter(team.Work).dump_python(work, mode="json")}
    prepared.write_text(json.dumps(said), encoding="utf-8")
    return prepared


def train(prepared: Path, setup: Setup, out: Path) -> list[dict[str, Any]]:
    """One training in processes of its own: what each of them says, the first one first."""
    out.mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={setup.processes}"]
    command = [sys.executable, *(launch if setup.processes > 1 else []), "-m", __name__, str(prepared), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(setup.threads)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        raise BenchmarkError(f"training as {setup.name} failed: {ended.stderr.strip()[-500:]}")
    return [json.loads((out / f"rank{rank}.json").read_text("utf-8")) for rank in range(setup.processes)]


def measured(folder: Path, quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each setup; and what bars are about: two processes beside one, times from the same round."""
    prepared, rounds = prepare(folder, quick), 1 if quick else 3
    found: dict[Setup, list[list[dict[str, Any]]]] = {
        setup: [] for setup in ((ONE, TWO) if quick else (ONE, WIDE, TWO))
    }
    for number in range(rounds):
        for setup in list(found)[:: -1 if number % 2 else 1]:
            found[setup].append(train(prepared, setup, folder / f"{setup.processes}-{setup.threads}-{number}"))
    steps_ms = {setup: [statistics.median(said[0]["steps_ms"]) for said in found[setup]] for setup in found}
    alone = found[ONE][0][0]
    values = {"process_memory_of_one": _peak_mib(found[TWO]) / _peak_mib(found[ONE])}
    for setup, trainings in found.items():
        if setup != ONE:
            values[f"loss_difference {setup.name}"] = max(_difference(alone, said[0]) for said in trainings)
            pairs = zip(steps_ms[ONE], steps_ms[setup], strict=True)
            values[f"times_one {setup.name}"] = statistics.median(one / other for one, other in pairs)
    return [_row(setup, steps_ms[setup], found[setup], alone) for setup in found], values


def _peak_mib(trainings: list[list[dict[str, Any]]]) -> float:
    """Of the largest process, in the median training."""
    return statistics.median(max(float(said["peak_mib"]) for said in training) for training in trainings)


def _difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest of the two loss curves, relative."""
    return max(float(abs(a - b) / a) for a, b in zip(one["losses"], other["losses"], strict=True))


def _row(
    setup: Setup, steps_ms: list[float], trainings: list[list[dict[str, Any]]], one: dict[str, Any]
) -> dict[str, Any]:
    first = trainings[0][0]
    return {
        "part": "processes",
        "path": f"processes x threads: {setup.name}",
        "ms": statistics.median(steps_ms),
        "ms_low": min(steps_ms),
        "ms_high": max(steps_ms),
        "peak_mib": _peak_mib(trainings),
        "level_mib": statistics.median(training[0]["level_mib"] for training in trainings),
        "steps": len(first["losses"]),
        "last_loss": first["losses"][-1],
        "held_out": first["scores"][-1],
        "loss_difference": _difference(one, first),
    }


def _recipe(overrides: list[str], out: Path) -> Recipe:
    return read_recipe(EXAMPLES / "sentence-embedding.yaml", [*overrides, f"out={out}"])


def _main(prepared: Path, out: Path) -> None:
    said = json.loads(prepared.read_text("utf-8"))
    work, clock = TypeAdapter(team.Work).validate_python(said["work"]), _Clock()
    at = Materials(_recipe(said["overrides"], out), clock)
    at.data  # noqa: B018 (read before the level is taken)
    level = level_mib()
    history = None
    if team.leads():
        assert work.recorded is not None
        history = learning.distill(at, work.start, work.recorded, out).history
        team.dismiss()
    else:
        team.follow(lambda called: learning.share(at, called))
    took_s = [after - before for before, after in zip(clock.at_s, clock.at_s[1:], strict=False)][WARM_UP_STEPS:]
    found = {
        "level_mib": level,
        "peak_mib": memory_mib("VmHWM"),
        "steps_ms": [1e3 * seconds for seconds in took_s],
        "losses": [] if history is None else [point.loss for point in history.losses],
        "scores": [] if history is None else [point.score for point in history.scores],
    }
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():
        team.leave(0)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
