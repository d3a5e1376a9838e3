"""Measures several models against the first of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compressor import native
from compressor.artifacts import Latency
from compressor.benchmark.child import Event, run_worker
from compressor.benchmark.request import (
    BUDGET_OVERRUN,
    SAMPLES_FILE,
    BenchmarkSettings,
    Candidate,
    Model,
    check_model_file,
    make_request,
    save_feeds,
)
from compressor.benchmark.summary import Samples, summarise
from compressor.errors import BenchmarkError
from compressor.progress import Progress

# Silence of a measuring process for longer than this, beside its budget, means that it hangs.
SILENCE_LIMIT_S = 120.0


def measure(candidates: Sequence[Candidate], settings: BenchmarkSettings, progress: Progress) -> tuple[Latency, ...]:
    """Latency, processor time and memory of each candidate, in their order; the first is the baseline of `speedup`.

    One fresh process holds all models and times them in turn, block by block; then one more per model loads it alone.
    `session_ms` is one creation of the session. `peak_memory_mib` is what the peak of resident memory lies above
    the process before it opened ONNX Runtime: the runtime, the model and its activations.

    Raises BenchmarkError when a model is missing, does not load or run, kills its process, or is too slow for the
    budget; MissingDependencyError without the native module or ONNX Runtime's library.
    """
    _check(candidates)
    native.load()
    library = native.onnxruntime_library(settings.library)
    with tempfile.TemporaryDirectory(prefix="compressor-bench-") as scratch:
        folder = Path(scratch)
        models = tuple(save_feeds(c, str(i), folder) for i, c in enumerate(candidates))
        samples, version = _time(models, library, settings, folder, progress)
        loads = [
            run_worker(make_request("load", library, (model,), settings), folder, limit_s=SILENCE_LIMIT_S)
            for model in models
        ]
    return tuple(
        summarise(
            model.name,
            own,
            samples[0],
            session_ms=load["session_ms"],
            peak_memory_mib=load["peak_memory_mib"],
            threads=settings.threads,
            batch=settings.batch,
            runtime=f"onnxruntime {version} (native C API)",
        )
        for model, own, load in zip(models, samples, loads, strict=True)
    )


def _check(candidates: Sequence[Candidate]) -> None:
    if not candidates:
        raise BenchmarkError("one model or more is needed, got none")
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise BenchmarkError(f"the models must have different names, got {', '.join(names)}")
    for candidate in candidates:
        check_model_file(candidate.model)
        if not candidate.inputs:
            raise BenchmarkError(f"{candidate.name}: one feed or more is needed, got none")


def _time(
    models: tuple[Model, ...], library: Path, settings: BenchmarkSettings, folder: Path, progress: Progress
) -> tuple[list[Samples], str]:
    request = make_request("time", library, models, settings)
    # Until the rounds begin their number is not known; the bar counts thousandths of them.
    with progress.bar("benchmark", total=1000, unit="per mille") as bar:
        rounds, shown = 1, 0

        def show(event: Event) -> None:
            nonlocal rounds, shown
            rounds = event.get("rounds", rounds)
            reached = 1000 if event["event"] == "done" else 1000 * event.get("done", 0) // rounds
            if reached > shown:
                bar.advance(reached - shown)
                shown = reached

        limit_s = BUDGET_OVERRUN * settings.budget_s + SILENCE_LIMIT_S
        done = run_worker(request, folder, limit_s=limit_s, on_event=show)
    with np.load(folder / SAMPLES_FILE) as saved:
        samples = [Samples(saved[f"elapsed_ns_{i}"], saved[f"cpu_ns_{i}"]) for i in range(len(models))]
    return samples, done["version"]
