"""A search for precisions, held together: mixtures are written, judged beside float32, and timed natively."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compressor import __version__
from compressor.artifacts import OnnxModel
from compressor.benchmark import BenchmarkSettings, Candidate, time_models
from compressor.error_attribution import Closeness
from compressor.errors import MissingDependencyError
from compressor.metrics import same_top1, snr_between_db
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import first_outputs
from compressor.preprocess import Feed, Preprocessor
from compressor.processor import measured_on
from compressor.progress import SILENT, Progress
from compressor.quantize import Mixer
from compressor.quantize.calibration_file import sha256_feeds
from compressor.quantize.sites import assign, sharing
from compressor.recipe_quantize import NodePrecision, Search
from compressor.store import key_of

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
    """`closeness(path)` of a model's answers to float32's on what has the hash `judged_on`; what an inference is fed to
    time it.
    """

    closeness: Callable[[Path], Closeness]
    judged_on: str
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
        lambda path: closeness_of(path, outputs(path), expected, agreement),
        sha256_feeds(preprocessor.collate([one]) for one in examples),
        feeds,
        at.recipe.benchmark.threads,
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

    Trials are kept in `cache`, or where `settings.study` says: a search that was interrupted, or is given more time,
    goes on there. Raises MissingDependencyError without Optuna, QuantizationError where the mixer's overrides name
    nothing, or more examples than permitted cannot be calibrated on.
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

    max_bytes = None if settings.max_mb is None else settings.max_mb * 1e6
    limits = searching.Limits(settings.hours, settings.trials, max_bytes, settings.max_ms)
    overrides = mixer.settings.overrides
    assigned = assign(mixer.sites, "float32", overrides)
    settled = [site for site in mixer.sites if {site.node, site.operator} & overrides.keys()]
    fixed = {one.node: assigned[one.node] for site in settled for one in sharing(mixer.sites, site)}
    bench = searching.Bench(mixer.start, mixer.write, lambda path: judging.closeness(path).agreement, timed)
    kept = (settings.study or cache) / f"search-{_study_key(mixer, judging)[:16]}"
    kept.mkdir(parents=True, exist_ok=True)
    space = searching.Space(mixer.sites, fixed)
    found = searching.search(space, bench, limits, kept, settings.seed, progress)
    if not found:
        progress.log("  no mixture that was tried is faster than float32, close to it and within the limits")
    mixtures: list[Mixture] = []
    for number, trial in enumerate(found, 1):
        name = f"{exported.name}-mixed-{number}"
        path = folder / f"{name}.onnx"
        mixer.ship(trial.chosen, path)
        mixtures.append((describe_onnx(path, name, "mixed", exported.parameters), trial.chosen))
    return tuple(mixtures)


def _study_key(mixer: Mixer, judging: Judging) -> str:
    """Of all that a trial's agreement, size and times depend on."""
    examples = [mixer.preprocessor.collate([one]) for one in mixer.held_out]
    return key_of(
        __version__,
        hashlib.sha256(mixer.source.SerializeToString(deterministic=True)).hexdigest(),
        mixer.settings.model_dump(exclude={"precisions", "search", "qat"}),
        [sha256_feeds(mixer.batches()), sha256_feeds(examples), judging.judged_on, sha256_feeds(judging.feeds)],
        [judging.threads, *measured_on()],
    )
