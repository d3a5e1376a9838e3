"""One run of the measuring program, here or on a device, and what it found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor import native
from compressor.benchmark.device import PROGRAM, machine_of, run_there
from compressor.benchmark.local import Event, OnEvent, run_here
from compressor.benchmark.profile import operator_shares
from compressor.benchmark.request import BenchmarkSettings, Candidate, check_candidates
from compressor.benchmark.result import RunFound, run_found
from compressor.benchmark.work import PROFILE, Work, runner_flags, write_work
from compressor.errors import BenchmarkError
from compressor.progress import Progress
from compressor.ssh import Device

Partial = Callable[[RunFound], None]

LIBRARY = "libonnxruntime.so"  # its name on a device


def measure(
    candidates: Sequence[Candidate],
    settings: BenchmarkSettings,
    progress: Progress,
    on_partial: Partial | None = None,
    device: Device | None = None,
) -> RunFound:
    """Times the candidates, the first being the baseline of all comparisons. `on_partial` gets what there is so far.

    On a `device` the same files are used: the measuring program and ONNX Runtime's library must be built for it.

    The models are opened in processes of their own: one each for `load`, one for the timing of all. Ctrl-C ends early
    with what there is; the result then is not `complete`.

    Raises BenchmarkError when a model is missing, does not load or run, kills its process or hangs, and when the device
    cannot be used; MissingDependencyError without the native part or ONNX Runtime's library; KeyboardInterrupt after a
    Ctrl-C before there is anything.
    """
    asked = tuple(candidates)
    check_candidates(asked)
    program, library = native.runner(settings.runner), native.onnxruntime_library(settings.library)
    with tempfile.TemporaryDirectory(prefix="compressor-bench-") as scratch:
        folder = Path(scratch)
        work = write_work(asked, folder)
        with events_shown(progress, on_partial) as on_event:
            if device is None:
                told = _here(program, library, work, settings, on_event)
            else:
                told = _there(device, program, library, work, settings, on_event)
        return found(told["result"], folder)


def _here(program: Path, library: Path, work: Work, settings: BenchmarkSettings, on_event: OnEvent) -> Event:
    flags = runner_flags(
        work,
        settings,
        library=str(library.resolve()),
        model_path=lambda i: str(work.models[i][0]),
        folder=str(work.folder),
    )
    return run_here([str(program.resolve()), *flags], work.folder, on_event)


def _there(
    device: Device, program: Path, library: Path, work: Work, settings: BenchmarkSettings, on_event: OnEvent
) -> Event:
    if machine_of(program) != machine_of(library):
        raise BenchmarkError(
            f"the measuring program and the library must be for one machine, got {machine_of(program)} and "
            f"{machine_of(library)}; give --runner and --ort for the device"
        )
    files = [(program, PROGRAM), (library, LIBRARY)]
    for i, model in enumerate(work.models):
        files += [(path, f"model-{i}/{path.relative_to(model[0].parent)}") for path in model]
    files += [(path, f"{path.parent.name}/{path.name}") for path in sorted(work.folder.glob("cases-*/*"))]
    flags = runner_flags(
        work,
        settings,
        library=f"./{LIBRARY}",
        model_path=lambda i: f"model-{i}/{work.models[i][0].name}",
        folder=".",
    )
    return run_there(device, files, flags, PROFILE, work.folder, on_event)


@contextmanager
def events_shown(progress: Progress, on_partial: Partial | None) -> Iterator[OnEvent]:
    """What takes the events of a run: a progress bar shows them, `on_partial` gets the partial results."""
    # Until the rounds begin their number is not known; the bar counts thousandths of them.
    with progress.bar("benchmark", total=1000, unit="per mille") as bar:
        reached = 0

        def show(event: Event) -> None:
            nonlocal reached
            now = reached
            if event["event"] == "progress":
                now = 1000 * event["progress"]["done"] // max(event["progress"]["of"], 1)
            elif event["event"] == "result":
                now = 1000
            elif event["event"] == "partial" and on_partial is not None:
                on_partial(run_found(event["result"]))
            if now > reached:
                bar.advance(now - reached)
                reached = now

        yield show


def found(told: dict[str, Any], folder: Path) -> RunFound:
    """The run that was told, with the profiles that lie in `folder` added up."""
    for model in told["models"]:
        if "profile" in model:
            model["profile"] = operator_shares(folder / Path(model["profile"]).name)
    return run_found(told)


def problems_of(run: RunFound, candidates: Sequence[Candidate]) -> list[str]:
    """What is wrong with the models' answers, one line each: not finite, not to be compared with the expected ones, or
    further off than a tolerance allows.
    """
    problems = []
    for model, candidate in zip(run.models, candidates, strict=True):
        if model.outputs_finite is False:
            problems.append(f"{model.name}: its outputs are not finite")
            continue
        if candidate.expected and model.answers_unknown is not None:
            problems.append(f"{model.name}: the timed outputs cannot be compared: {model.answers_unknown}")
            continue
        answers, tolerance = model.answers, candidate.tolerance
        if answers is None or tolerance is None or answers.against != "expected":
            continue
        if answers.min_cosine is None or answers.min_cosine < tolerance.min_cosine:
            problems.append(
                f"{model.name}: the timed outputs must have a cosine of {tolerance.min_cosine:g} or more with the "
                f"expected ones, got {answers.min_cosine}"
            )
        elif tolerance.max_abs_error is not None and not (answers.max_abs_error or 0.0) <= tolerance.max_abs_error:
            problems.append(
                f"{model.name}: the timed outputs may differ by {tolerance.max_abs_error:g} at most from the expected "
                f"ones, got {answers.max_abs_error}"
            )
    return problems
