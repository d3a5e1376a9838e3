"""How do memory and time of a distillation step grow with vocabulary and sequence length; and over two processes?

A step goes from hidden states of the student (and of the teacher) to the loss, forward KL at temperature 2 with half of
it cross-entropy, and back to the gradients of hidden states and last layer. Five ways there:

    torch dense     logits of both, log_softmax, kl_div, cross_entropy: what a user writes
    dense           logits of both, `distillation_loss`
    linear          `linear_distillation_loss` with the teacher's last layer: no logits of all rows
    dense top-k     logits of the student, `distillation_loss` with the teacher's 64 top classes
    linear top-k    `linear_distillation_loss` with these

First each is held against float64 at every width that is measured. Then each shape has five processes, one for each
way, one thread each. Memory is that of a process's first step on that shape: the peak (VmHWM, reset once the operands
are there) less what was resident before it; so gradients count, operands do not. The processes then take turns, one
step each, the order reversed every round. They use the C library's allocator as it is, so that large buffers come from
the system page by page; `user_ms` leaves that out.

`logits_a_row` is the slope of that memory along the rows, in rows of logits: how many [N, V] matrices a way holds.
Exponents are slopes of least squares between logarithms.

The second part trains the demo's student (needs `python examples/fetch.py minilm-snli`) with the same batches of 64 in
one process and split over two, by torchrun over gloo: milliseconds of a step, the peak of a process as it stands, and
how far the loss curves are from that of one process with one thread. Two cores are needed, and quiet ones.

Predicted before anything was measured: 8 matrices for `torch dense`, 3 for `dense`, none for the linear ways beyond the
weight's gradient and a chunk's logits; `linear` 1.0 to 1.3 times as slow as `dense`, since every chunk passes over the
weight; two processes 1.6 to 1.8 times as fast as one, as fast as two threads, each with the memory of one.
Found at first: 6 and 3; but `linear` held 1 where heaps fragmented, as every chunk's logits were allocated anew, and
took 1.36 times as long, with chunks of 64 rows. Chunks now share their memory and have 128 rows.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from bench import _scaling_processes
from bench._scaling_paths import WAYS, Shape, check
from bench._scaling_processes import TWO
from compressor.errors import BenchmarkError

HIDDEN = 384
FULL = (
    *(Shape(vocabulary, 512, HIDDEN) for vocabulary in (8192, 32000, 49152, 128256)),
    *(Shape(49152, rows, HIDDEN) for rows in (128, 256, 1024, 2048)),
    *(Shape(49152, 512, hidden) for hidden in (256, 576)),
    Shape(128256, 2048, HIDDEN),
)
QUICK = (Shape(8192, 128, HIDDEN), Shape(8192, 512, HIDDEN))
LARGEST = FULL[-1]
ROUNDS, QUICK_ROUNDS = 5, 3

# At most. Where the largest shape was measured; of one way's memory or time as a share of another's:
SHARES = {
    ("linear", "torch dense", "peak_mib"): 0.10,
    ("linear", "dense", "peak_mib"): 0.15,
    ("linear top-k", "dense top-k", "peak_mib"): 0.20,
    ("linear", "torch dense", "ms"): 1.0,
    ("linear", "dense", "ms"): 1.3,
}
LOGITS_A_ROW = 0.1  # at most, of the linear ways
LOSS_DIFFERENCE = 1e-3  # at most, relative
TIMES_ONE, PROCESS_MEMORY = 1.3, 1.25  # at least; at most

Row = dict[str, Any]


class _Process:
    """One way, waiting for its turn."""

    def __init__(self, name: str, shape: Shape, log: IO[str]) -> None:
        self._name, self._log = name, log
        command = [sys.executable, "-m", "bench._scaling_paths", name]
        self._process = subprocess.Popen(
            [*command, f"{shape.vocabulary}x{shape.rows}x{shape.hidden}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def step(self) -> dict[str, float]:
        """The first time memory, then times. Raises BenchmarkError where the process is no more."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()  # the end of its input is its end

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            last = self._log.read().strip()[-300:] or "killed, as for memory"
            raise BenchmarkError(f"{self._name}: the process ended with {code}: {last}")
        answer: dict[str, float] = json.loads(line)
        return answer


def _measure(shape: Shape, rounds: int) -> list[Row]:
    """One row for each way."""
    with ExitStack() as stack:
        processes = {}
        for name in WAYS:
            log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            processes[name] = _Process(name, shape, log)
            stack.callback(processes[name].close)
        memory = {name: process.step() for name, process in processes.items()}
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
        for number in range(-1, rounds):  # one round warms up
            for name in list(WAYS)[:: -1 if number % 2 else 1]:
                taken[name].append(processes[name].step())
        return [_row(name, shape, memory[name], taken[name][1:]) for name in WAYS]


def _row(name: str, shape: Shape, memory: dict[str, float], steps: list[dict[str, float]]) -> Row:
    times = [one["ms"] for one in steps]
    return {
        "part": "paths",
        "path": name,
        "vocabulary": shape.vocabulary,
        "rows": shape.rows,
        "hidden": shape.hidden,
        "ms": statistics.median(times),
        "ms_low": min(times),
        "ms_high": max(times),
        "user_ms": statistics.median(one["user_ms"] for one in steps),
        "system_ms": statistics.median(one["system_ms"] for one in steps),
        "peak_mib": memory["peak_mib"],
        "level_mib": memory["level_mib"],
    }


def _sweep(rows: list[Row], name: str, by: str) -> list[Row]:
    """The rows of one way at the width of `HIDDEN` along `by`, where the other size is the one with most rows."""
    other = "rows" if by == "vocabulary" else "vocabulary"
    mine = [row for row in rows if row["path"] == name and row["hidden"] == HIDDEN]
    fixed = statistics.mode(row[other] for row in mine)
    return sorted((row for row in mine if row[other] == fixed), key=lambda row: int(row[by]))


def exponent(sizes: list[float], values: list[float]) -> float:
    """The e of values ~ sizes^e, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _growth(rows: list[Row], name: str) -> Row:
    row: Row = {"part": "growth", "path": name}
    for by in ("vocabulary", "rows"):
        sweep = _sweep(rows, name, by)
        sizes = [float(one[by]) for one in sweep]
        for value in ("peak_mib", "ms") if len(sizes) > 1 else ():
            row[f"{value.split('_')[0]}_by_{by}"] = exponent(sizes, [float(one[value]) for one in sweep])
    heights, peaks = [one["rows"] for one in sweep], [one["peak_mib"] for one in sweep]
    row["logits_a_row"] = float(np.polyfit(heights, peaks, 1)[0]) * 2**20 / (4 * sweep[0]["vocabulary"])
    return row


def _at_most(value: float, bar: float) -> dict[str, Any]:
    return {"value": value, "bar": f"<= {bar:g}", "holds": value <= bar}


def _path_bars(rows: list[Row], growth: list[Row]) -> dict[str, dict[str, Any]]:
    bars = {}
    largest = {
        row["path"]: row for row in rows if (row["vocabulary"], row["rows"]) == (LARGEST.vocabulary, LARGEST.rows)
    }
    for (mine, other, value), bar in SHARES.items():
        if largest:
            share = largest[mine][value] / largest[other][value]
            bars[f"{value} of {mine} / {other}"] = _at_most(share, bar)
    for row in growth:
        if row["path"].startswith("linear"):
            bars[f"logits_a_row of {row['path']}"] = _at_most(row["logits_a_row"], LOGITS_A_ROW)
    return bars


def _process_bars(values: dict[str, float], quick: bool) -> dict[str, dict[str, Any]]:
    bars = {name: _at_most(value, LOSS_DIFFERENCE) for name, value in values.items() if name.startswith("loss")}
    bars["process_memory_of_one"] = _at_most(values["process_memory_of_one"], PROCESS_MEMORY)
    if not quick:  # a few steps do not tell
        name = f"times_one {TWO.name}"
        bars[name] = {"value": values[name], "bar": f">= {TIMES_ONE}", "holds": values[name] >= TIMES_ONE}
    return bars


def run(quick: bool) -> dict[str, Any]:
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchmarkError("two processes against one need two cores, got one; leave out taskset")
    torch.set_num_threads(1)  # of what is not measured; two that wait for each other on busy cores take far longer
    shapes = QUICK if quick else FULL
    errors = {}
    for name, way in WAYS.items():
        found = [check(way, vocabulary, HIDDEN) for vocabulary in sorted({shape.vocabulary for shape in shapes})]
        errors[name] = {"loss_error": max(one[0] for one in found), "gradient_error": max(one[1] for one in found)}
    rows: list[Row] = []
    for shape in shapes:
        rows += _measure(shape, QUICK_ROUNDS if quick else ROUNDS)
    growth = [{**_growth(rows, name), **errors[name]} for name in WAYS]
    with tempfile.TemporaryDirectory() as scratch:
        trained, values = _scaling_processes.measured(Path(scratch), quick)
    bars = _path_bars(rows, growth) | _process_bars(values, quick)
    return {"rows": [*rows, *growth, *trained], "bars": bars, "processes": values}
