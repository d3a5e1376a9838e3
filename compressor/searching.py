"""A search for precisions, held together: mixtures are written, judged beside float32, and timed natively."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts import OnnxModel
from compressor.benchmark import BenchmarkSettings, Candidate, time_models
from compressor.error_attribution import Closeness
from compressor.errors import MissingDependencyError
from compressor.metrics import same_top1, snr_between_db
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import first_outputs
from compressor.preprocess import Feed, Preprocessor
from compressor.progress import SILENT, Progress
from compressor.quantize import Mixer
from compressor.recipe_quantize import NodePrecision, Search
from compressor.store import key_of, sha256_file

if TYPE_CHECKING:
    from compressor.materials import Materials

# Held-out inputs that mixtures are judged on; fewer where each token of a text is answered.
_INPUTS, _TEXTS = 256, 32
# A trial's timing: enough for three sittings of a small model. What goes on is timed again, with all others.
_SAMPLES, _BUDGET_S = 60, 1.0


Agreement = Callable[[NDArray[np.float32], NDArray[np.float32]], float]
# A quantized model, and the precision of every node that could have one.
Mixture = tuple[OnnxModel, Mapping[str, NodePrecision]]


@dataclass(frozen=True)
class Judging:
    """`closeness(path)` of a model's answers to float32's; what an inference is fed to time it."""

    closeness: Callable[[Path], Closeness]
    feeds: tuple[Feed, ...]
    threads: int


def judging_of(at: Materials, exported: OnnxModel, preprocessor: Preprocessor) -> Judging:
    """Mixtures are judged on held-out training inputs: the evaluation data are for what goes on."""
    from compressor.materials import BENCHMARK_INPUTS  # torch, which `compressor quantize` goes without

    most = _TEXTS if at.task.per_token else _INPUTS
    examples = preprocessor.encode(at.data.train[-at.data.holdout :][:most])
    # A teacher that writes is known by its answers alone, which are not here: what would come after the prompt is.
    keep, agreement = (at.task.compared, same_top1) if at.writes else (at.task.judged, at.task.agreement)

    def outputs(path: Path) -> NDArray[np.float32]:
        return first_outputs(path, preprocessor, examples, batch_size=1, progress=SILENT, title="", keep=keep)

    expected = outputs(exported.path)
    feeds = tuple(at.task.timed(preprocessor, one) for one in preprocessor.encode(at.sample(BENCHMARK_INPUTS, 2)))
    return Judging(
        lambda path: closeness_of(path, outputs(path), expected, agreement), feeds, at.recipe.benchmark.threads
    )


def closeness_of(
    path: Path, got: NDArray[np.float32], expected: NDArray[np.float32], agreement: Agreement
) -> Closeness:
    """Of the model at `path`, by its answers and float32's, [rows, width] each; answers not finite agree in nothing."""
    agrees = agreement(got, expected) if np.isfinite(got).all() else 0.0
    return Closeness(agrees, snr_between_db(got, expected), path.stat().st_size)


def search_precisions(
    exported: OnnxModel, mixer: Mixer, judging: Judging, settings: Search, cache: Path, folder: Path, progress: Progress
) -> tuple[Mixture, ...]:
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
        short = BenchmarkSettings(threads=judging.threads, min_samples=_SAMPLES, budget_s=_BUDGET_S)
        both = [float32, Candidate("mixture", path, judging.feeds)]
        mixture = time_models(both, short, exported.name, SILENT).models[1]
        return searching.Timed(mixture.p50_ms, mixture.speedup.value)

    max_bytes = None if settings.max_mb is None else int(settings.max_mb * 1e6)
    limits = searching.Limits(settings.hours, settings.trials, max_bytes, settings.max_ms)
    wanted = mixer.settings
    made_by = wanted.block, wanted.calibration, len(mixer.calibration), wanted.migrate, wanted.correct_bias
    kept = cache / f"search-{key_of(sha256_file(exported.path), made_by)[:16]}"
    kept.mkdir(parents=True, exist_ok=True)
    bench = searching.Bench(mixer.write, lambda path: judging.closeness(path).agreement, timed)
    mixtures: list[Mixture] = []
    for number, trial in enumerate(searching.search(mixer.sites, bench, limits, kept, settings.seed, progress), 1):
        name = f"{exported.name}-mixed-{number}"
        path = folder / f"{name}.onnx"
        mixer.ship(trial.chosen, path)
        mixtures.append((describe_onnx(path, name, "mixed", exported.parameters), trial.chosen))
    return tuple(mixtures)
