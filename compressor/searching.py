"""The part of the stage `quantize` in which precisions are searched: how a mixture is made, judged and timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts import OnnxModel
from compressor.benchmark import BenchmarkSettings, Candidate, latencies_of, measure
from compressor.errors import MissingDependencyError
from compressor.materials import BENCHMARK_INPUTS, Materials
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import first_outputs
from compressor.preprocess import Preprocessor
from compressor.progress import SILENT
from compressor.quantize import Mixer
from compressor.recipe import Search
from compressor.store import key_of, sha256_file

# Held-out training inputs that a mixture's agreement with float32 is judged on; fewer where each token is answered.
_INPUTS, _TEXTS = 256, 32
# A trial's timing: enough for three sittings of a small model. What ships is timed again, with all others.
_SAMPLES, _BUDGET_S = 60, 1.0


def search_precisions(
    at: Materials, exported: OnnxModel, preprocessor: Preprocessor, mixer: Mixer, settings: Search, folder: Path
) -> tuple[OnnxModel, ...]:
    """The best mixtures of precisions that the time allows, written into `folder`, the closest to float32 first.

    Trials are kept in the run folder's cache: a search that was interrupted, or is given more time, goes on there.
    Raises MissingDependencyError without Optuna.
    """
    try:
        from compressor.quantize import search as searching
    except ImportError:
        raise MissingDependencyError("quantize.search needs optuna; install compressor[search]") from None
    inputs = at.data.train[-at.data.holdout :][: _TEXTS if at.task.per_token else _INPUTS]
    examples = preprocessor.encode(inputs)
    feeds = tuple(at.task.timed(preprocessor, one) for one in preprocessor.encode(at.sample(BENCHMARK_INPUTS, 2)))
    float32 = Candidate(exported.name, exported.path, feeds)

    def outputs(path: Path) -> NDArray[np.float32]:
        return first_outputs(
            path, preprocessor, examples, batch_size=1, progress=SILENT, title="", keep=at.task.judged
        )

    expected = outputs(exported.path)

    def timed(path: Path) -> searching.Timed:
        run = measure(
            [float32, Candidate("mixture", path, feeds)],
            BenchmarkSettings(threads=at.recipe.benchmark.threads, min_samples=_SAMPLES, budget_s=_BUDGET_S),
            SILENT,
        )
        if not run.complete:
            raise KeyboardInterrupt
        mixture = latencies_of(run, exported.name).models[1]
        return searching.Timed(mixture.p50_ms, mixture.speedup.value)

    bench = searching.Bench(mixer.write, lambda path: at.task.agreement(outputs(path), expected), timed)
    limits = searching.Limits(
        settings.hours, settings.trials, settings.max_mb and int(settings.max_mb * 1e6), settings.max_ms
    )
    kept = at.recipe.out / "cache" / f"search-{key_of(sha256_file(exported.path), mixer.block, len(examples))[:16]}"
    kept.mkdir(parents=True, exist_ok=True)
    found = searching.search(mixer.sites, bench, limits, kept, at.recipe.distill.seed, at.progress)
    models = []
    for number, trial in enumerate(found, 1):
        name = f"{exported.name}-mixed-{number}"
        path = folder / f"{name}.onnx"
        mixer.write(trial.chosen, path)
        models.append(describe_onnx(path, name, "mixed", exported.parameters))
    return tuple(models)
