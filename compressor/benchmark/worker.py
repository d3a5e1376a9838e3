"""The measuring process: `python -m compressor.benchmark.worker FOLDER PIPE`.

Reads the request from FOLDER and writes one JSON event a line to the file descriptor PIPE. It never imports onnxruntime
nor torch: a second copy of the runtime would count in its memory. Nothing but clock and inference is inside the timed
loop, which is C++; between blocks control comes back here.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from compressor import native
from compressor.benchmark.request import (
    BUDGET_OVERRUN,
    MIN_P99_SAMPLES,
    SAMPLES_FILE,
    Model,
    Request,
    load_feed,
    read_request,
)
from compressor.errors import BenchmarkError, CompressorError

if TYPE_CHECKING:
    from compressor.native import Inputs, Library, Session

_MIN_ROUNDS = 30
_MIN_ROUNDS_FOR_INTERVAL = 6  # the fewest that give a 95% interval of a median
_BLOCK_TARGET_NS = 5e6  # short against the scheduler's and the neighbours' moods, long against the switch of models
_BLOCK_RANGE = (10, 1000)
_EVENT_INTERVAL_S = 0.5  # each event wakes the parent, on a machine that is measuring
_LOAD_RUNS = 5


class Emit(Protocol):
    def __call__(self, event: str, **values: object) -> None: ...


@dataclass(frozen=True)
class _Loaded:
    name: str
    session: Session
    inputs: list[Inputs]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _open(model: Model, request: Request, library: Library) -> Session:
    module = native.load()
    try:
        session: Session = module.Session(library, model.path, threads=request.threads)
    except module.OrtError as error:
        raise BenchmarkError(f"{model.name}: ONNX Runtime does not load it: {_one_line(error)}") from None
    return session


def _prepare(model: Model, session: Session, folder: Path) -> list[Inputs]:
    try:
        return [session.prepare(load_feed(feed, folder)) for feed in model.feeds]
    except ValueError as error:
        raise BenchmarkError(f"{model.name}: {_one_line(error)}") from None


def _run_block(loaded: _Loaded, start: int, count: int) -> tuple[NDArray[np.int64], int]:
    try:
        elapsed_ns, _, process_cpu_ns = loaded.session.run_block(loaded.inputs, start, count)
    except native.load().OrtError as error:
        raise BenchmarkError(f"{loaded.name}: an inference fails: {_one_line(error)}") from None
    return elapsed_ns, process_cpu_ns


def _warm_up(loaded: _Loaded, warmup_s: float) -> float:
    """Runs every feed, twice and for `warmup_s` at least; returns the median nanoseconds of the last pass."""
    start = time.monotonic()
    passes = 0
    while True:
        elapsed_ns, _ = _run_block(loaded, 0, len(loaded.inputs))
        passes += 1
        if passes >= 2 and time.monotonic() - start >= warmup_s:
            return float(np.median(elapsed_ns))


def _round_orders(count: int, seed: int) -> Callable[[int], Sequence[int]]:
    """The order of models in each round: shuffled, and every second round the mirror of the one before."""
    generator = random.Random(seed)
    order = list(range(count))

    def order_of(done: int) -> Sequence[int]:
        if done % 2:
            order.reverse()
        else:
            generator.shuffle(order)
        return order

    return order_of


def _sample(
    models: Sequence[_Loaded], block: int, request: Request, emit: Emit
) -> tuple[list[list[NDArray[np.int64]]], list[list[int]]]:
    """Rounds of one block per model, until there are enough; per model, the blocks and their processor time."""
    wanted = max(_MIN_ROUNDS, ceil(request.min_samples / block))
    enough = max(_MIN_ROUNDS_FOR_INTERVAL, ceil(MIN_P99_SAMPLES / block))
    order_of = _round_orders(len(models), request.seed)
    elapsed: list[list[NDArray[np.int64]]] = [[] for _ in models]
    cpu: list[list[int]] = [[] for _ in models]
    emit("timing", rounds=wanted)
    begin = told = time.monotonic()
    for done in range(wanted):
        spent = time.monotonic() - begin
        if spent >= request.budget_s and done >= enough:
            break
        if spent >= BUDGET_OVERRUN * request.budget_s:
            raise BenchmarkError(
                f"{MIN_P99_SAMPLES} samples per model are needed for a p99, got {done * block} in {spent:.0f} s; "
                f"raise the budget of {request.budget_s:g} s, or measure fewer models"
            )
        for index in order_of(done):
            _run_block(models[index], done * block, 1)  # not counted: it pays for the caches the others took
            elapsed_ns, cpu_ns = _run_block(models[index], done * block, block)
            elapsed[index].append(elapsed_ns)
            cpu[index].append(cpu_ns)
        if time.monotonic() - told >= _EVENT_INTERVAL_S:
            told = time.monotonic()
            emit("round", done=done + 1)
    return elapsed, cpu


def _time(request: Request, folder: Path, emit: Emit) -> dict[str, object]:
    """Times all models in turn; leaves `elapsed_ns_I` [rounds, block] and `cpu_ns_I` [rounds] in SAMPLES_FILE."""
    library = native.load().Library(request.library)
    models, slowest_ns = [], 1.0
    for model in request.models:
        emit("model", model=model.name)
        session = _open(model, request, library)
        loaded = _Loaded(model.name, session, _prepare(model, session, folder))
        slowest_ns = max(slowest_ns, _warm_up(loaded, request.warmup_s))
        models.append(loaded)
    block = int(np.clip(_BLOCK_TARGET_NS / slowest_ns, *_BLOCK_RANGE))
    elapsed, cpu = _sample(models, block, request, emit)
    arrays = {f"elapsed_ns_{i}": np.stack(blocks) for i, blocks in enumerate(elapsed)}
    arrays |= {f"cpu_ns_{i}": np.array(costs) for i, costs in enumerate(cpu)}
    np.savez(folder / SAMPLES_FILE, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for flags
    return {"version": library.version}


def _load(request: Request, folder: Path, emit: Emit) -> dict[str, object]:
    """Loads one model into this fresh process and runs it a few times: the time of the former, the memory of both."""
    module = native.load()
    (model,) = request.models
    emit("model", model=model.name)
    resident_bytes, _ = module.memory_use()
    library = module.Library(request.library)
    start_ns = time.perf_counter_ns()
    session = _open(model, request, library)
    session_ns = time.perf_counter_ns() - start_ns
    loaded = _Loaded(model.name, session, _prepare(model, session, folder))
    _run_block(loaded, 0, max(_LOAD_RUNS, len(loaded.inputs)))
    _, peak_bytes = module.memory_use()
    if resident_bytes < 0 or peak_bytes < 0:
        raise BenchmarkError("peak memory needs VmRSS and VmHWM in /proc/self/status, got neither; use Linux")
    return {"session_ms": session_ns / 1e6, "peak_memory_mib": (peak_bytes - resident_bytes) / 2**20}


def _describe(request: Request, _folder: Path, emit: Emit) -> dict[str, object]:
    """The inputs of every model, as ONNX Runtime sees them."""
    library = native.load().Library(request.library)
    described = []
    for model in request.models:
        emit("model", model=model.name)
        session = _open(model, request, library)
        described.append(
            [{"name": i.name, "dtype": i.dtype, "shape": i.shape, "symbols": i.symbols} for i in session.inputs]
        )
    return {"inputs": described}


_TASKS = {"time": _time, "load": _load, "describe": _describe}


def main(folder: Path, pipe: int) -> int:
    """Carries out the request in the folder, reports events through the pipe, and returns the exit code."""
    # The parent decides what Ctrl-C means, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(pipe, "w", buffering=1, encoding="utf-8") as events:

        def emit(event: str, **values: object) -> None:
            events.write(json.dumps({"event": event, **values}) + "\n")

        request = read_request(folder)
        try:
            result = _TASKS[request.task](request, folder, emit)
        except (CompressorError, native.load().OrtError) as error:
            emit("failed", message=_one_line(error))
            return 1
        emit("done", **result)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
