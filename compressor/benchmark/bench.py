"""What `compressor bench` does: a run for each combination of settings, and the result as it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compressor import __version__
from compressor.benchmark.measure import measure, problems_of
from compressor.benchmark.request import BenchmarkSettings, Candidate
from compressor.benchmark.result import FORMAT_VERSION, BenchResult, RunFound
from compressor.progress import Progress
from compressor.ssh import Device


def bench(
    candidates: Sequence[Candidate],
    wanted: Sequence[BenchmarkSettings],
    progress: Progress,
    on_change: Callable[[BenchResult], None],
    device: Device | None = None,
) -> BenchResult:
    """Measures the candidates under each of the settings in turn; `on_change` gets the result whenever there is more.

    Ctrl-C ends with what there is. Raises what `measure` raises; what was measured until then `on_change` has got.
    """
    runs: list[RunFound] = []
    begun: list[RunFound] = []  # what there is of the run that goes on
    problems: list[str] = []

    def so_far(complete: bool = False) -> BenchResult:
        return BenchResult(FORMAT_VERSION, __version__, complete, tuple(problems), (*runs, *begun))

    def hear(partial: RunFound) -> None:
        begun[:] = [partial]
        on_change(so_far())

    try:
        for settings in wanted:
            if len(wanted) > 1:
                progress.log(f"{settings.scenario}, {settings.threads} thread(s), optimization {settings.optimization}")
            run = measure(candidates, settings, progress, hear, device)
            begun.clear()
            runs.append(run)
            problems += [problem for problem in problems_of(run, candidates) if problem not in problems]
            if not run.complete:
                break
            on_change(so_far(complete=len(runs) == len(wanted)))
    except KeyboardInterrupt:
        if not so_far().runs:
            raise
    result = so_far(complete=len(runs) == len(wanted) and all(run.complete for run in runs))
    on_change(result)
    return result
