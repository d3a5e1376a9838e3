"""What is to be measured, and the files that carry it to the measuring process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compressor.errors import BenchmarkError

# The fewest independent samples of which the largest exceeds the 99th percentile with 99% confidence.
MIN_P99_SAMPLES = 459
BUDGET_OVERRUN = 3.0  # times the budget, then the measurement gives up
SAMPLES_FILE = "samples.npz"

Task = Literal["time", "load", "describe"]
_FILE = "request.json"


@dataclass(frozen=True)
class Candidate:
    """A model to measure. `inputs`: one or more realistic feeds (input name -> array), taken in turn."""

    name: str
    model: Path
    inputs: tuple[Mapping[str, NDArray[Any]], ...]


@dataclass(frozen=True)
class BenchmarkSettings:
    """How to measure.

    Every model gets at least `min_samples` inferences (459 or more, else there is no p99). `budget_s` bounds the timing
    of all models together: when it is spent, sampling ends at 459 samples, and gives up at three times the budget.
    `batch` says how many examples one feed holds. `library` is an ONNX Runtime library other than the installed one.
    """

    threads: int = 1
    min_samples: int = 500
    budget_s: float = 40.0
    batch: int = 1
    warmup_s: float = 0.3
    seed: int = 0
    library: Path | None = None

    def __post_init__(self) -> None:
        if self.min_samples < MIN_P99_SAMPLES:
            raise BenchmarkError(f"min_samples must be {MIN_P99_SAMPLES} or more for a p99, got {self.min_samples}")
        if self.threads < 1 or self.batch < 1:
            raise BenchmarkError(f"threads and batch must be 1 or more, got {self.threads} and {self.batch}")
        if not self.budget_s > 0:
            raise BenchmarkError(f"budget_s must be above 0, got {self.budget_s}")


@dataclass(frozen=True)
class Model:
    """A model as the measuring process sees it: each feed maps an input's name to an `.npy` file beside the request."""

    name: str
    path: str
    feeds: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Request:
    task: Task
    library: str
    models: tuple[Model, ...]
    threads: int
    min_samples: int
    budget_s: float
    warmup_s: float
    seed: int


def make_request(task: Task, library: Path, models: tuple[Model, ...], settings: BenchmarkSettings) -> Request:
    """A request from the settings of a measurement."""
    return Request(
        task=task,
        library=str(library),
        models=models,
        threads=settings.threads,
        min_samples=settings.min_samples,
        budget_s=settings.budget_s,
        warmup_s=settings.warmup_s,
        seed=settings.seed,
    )


def save_feeds(candidate: Candidate, prefix: str, folder: Path) -> Model:
    """Writes the candidate's arrays to `folder`, each file's name beginning with `prefix`."""
    feeds = []
    for row, arrays in enumerate(candidate.inputs):
        feed = {}
        for column, (name, array) in enumerate(arrays.items()):
            feed[name] = f"{prefix}_{row}_{column}.npy"
            np.save(folder / feed[name], np.asarray(array), allow_pickle=False)
        feeds.append(feed)
    return Model(candidate.name, str(candidate.model.resolve()), tuple(feeds))


def load_feed(feed: Mapping[str, str], folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of one feed that `save_feeds` wrote."""
    return {name: np.load(folder / file, allow_pickle=False) for name, file in feed.items()}


def write_request(request: Request, folder: Path) -> None:
    """Writes the request where `read_request` finds it."""
    (folder / _FILE).write_text(json.dumps(asdict(request)), encoding="utf-8")


def read_request(folder: Path) -> Request:
    """The request that `write_request` left in the folder."""
    raw = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    models = tuple(Model(m["name"], m["path"], tuple(m["feeds"])) for m in raw.pop("models"))
    return Request(models=models, **raw)


def check_model_file(path: Path) -> None:
    """Raises BenchmarkError when there is no such file, or nothing in it."""
    if not path.is_file():
        raise BenchmarkError(f"{path} must be an ONNX file, got {'a folder' if path.is_dir() else 'nothing'}")
    if path.stat().st_size == 0:
        raise BenchmarkError(f"{path} must be an ONNX file, got an empty file; write it again")
