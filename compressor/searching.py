"""A search for precisions, held together: mixtures are written, judged beside float32, and timed natively."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts import OnnxModel
from compressor.benchmark import BenchmarkSettings, Candidate, latencies_of, measure
from compressor.errors import MissingDependencyError
from compressor.onnx_file import describe_onnx
from compressor.preprocess import Feed
from compressor.progress import SILENT, Progress
from compressor.quantize import Mixer
from compressor.recipe import Search
from compressor.store import key_of, sha256_file

# A trial's timing: enough for three sittings of a small model. What goes on is timed again, with all others.
_SAMPLES, _BUDGET_S = 60, 1.0


@dataclass(frozen=True)
class Judging:
    """`agreement(path)` of a model's answers with float32's, 1 is equal; what an inference is fed to time it."""

    agreement: Callable[[Path], float]
    feeds: tuple[Feed, ...]
    threads: int


def search_precisions(
    exported: OnnxModel, mixer: Mixer, judging: Judging, settings: Search, cache: Path, folder: Path, progress: Progress
) -> tuple[OnnxModel, ...]:
    """The best mixtures of precisions that the time allows, written into `folder`, the closest to float32 first.

    Trials are kept in `cache`: a search that was interrupted, or is given more time, goes on there. Raises
    MissingDependencyError without Optuna.
    """
    try:
        from compressor.quantize import search as searching
    except ImportError:
        raise MissingDependencyError("quantize.search needs optuna; install compressor[search]") from None
    float32 = Candidate(exported.name, exported.path, judging.feeds)

    def timed(path: Path) -> searching.Timed:
        run = measure(
            [float32, Candidate("mixture", path, judging.feeds)],
            BenchmarkSettings(threads=judging.threads, min_samples=_SAMPLES, budget_s=_BUDGET_S),
            SILENT,
        )
        if not run.complete:
            raise KeyboardInterrupt
        mixture = latencies_of(run, exported.name).models[1]
        return searching.Timed(mixture.p50_ms, mixture.speedup.value)

    max_bytes = None if settings.max_mb is None else int(settings.max_mb * 1e6)
    limits = searching.Limits(settings.hours, settings.trials, max_bytes, settings.max_ms)
    ranges = mixer.settings.calibration, len(mixer.calibration)
    kept = cache / f"search-{key_of(sha256_file(exported.path), mixer.settings.block, ranges)[:16]}"
    kept.mkdir(parents=True, exist_ok=True)
    bench = searching.Bench(mixer.write, judging.agreement, timed)
    models = []
    for number, trial in enumerate(searching.search(mixer.sites, bench, limits, kept, settings.seed, progress), 1):
        name = f"{exported.name}-mixed-{number}"
        path = folder / f"{name}.onnx"
        mixer.write(trial.chosen, path)
        mixer.certify(path)
        models.append(describe_onnx(path, name, "mixed", exported.parameters))
    return tuple(models)
