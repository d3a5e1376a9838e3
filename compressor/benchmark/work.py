"""One run's work as the measuring program takes it: files in a folder, and the command line that names them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor import native
from compressor.benchmark.request import BenchmarkSettings, Candidate
from compressor.errors import BenchmarkError

CASES = "cases.tsv"
PROFILE = "profile"


@dataclass(frozen=True)
class Work:
    """What is needed on the measuring machine.

    `folder` holds the cases of the models, in folders `cases-I`; `models` are the files of each model, the ONNX file
    first, then its external data.
    """

    folder: Path
    candidates: tuple[Candidate, ...]
    models: tuple[tuple[Path, ...], ...]


def write_work(candidates: tuple[Candidate, ...], folder: Path) -> Work:
    """Writes the cases of the candidates. Raises BenchmarkError on a name that a table cannot hold."""
    for number, candidate in enumerate(candidates):
        if candidate.inputs:
            _write_cases(candidate, folder / f"cases-{number}")
    return Work(folder, candidates, tuple(_files_of(candidate.model) for candidate in candidates))


def _write_cases(candidate: Candidate, folder: Path) -> None:
    folder.mkdir()
    rows = []
    expected = candidate.expected or ({},) * len(candidate.inputs)
    for case, (inputs, outputs) in enumerate(zip(candidate.inputs, expected, strict=True)):
        for kind, arrays in (("input", inputs), ("expected", outputs)):
            for column, (name, array) in enumerate(arrays.items()):
                if any(character in name for character in "\t\n\r"):
                    raise BenchmarkError(f"{candidate.name}: a tensor's name must have no tab or line break: {name!r}")
                file = f"{case}-{kind}-{column}.npy"
                np.save(folder / file, np.ascontiguousarray(array), allow_pickle=False)
                rows.append(f"{case}\t{kind}\t{name}\t{file}\n")
    (folder / CASES).write_text("".join(rows), encoding="utf-8")


def _files_of(model: Path) -> tuple[Path, ...]:
    """The model's file, and those that hold its external data. Raises BenchmarkError where one lies elsewhere."""
    own = model.resolve()
    files = [own]
    for place in native.load().external_data(str(own)):
        path = own.parent / os.fsdecode(place)
        if not path.resolve().is_relative_to(own.parent) or not path.is_file():
            raise BenchmarkError(f"{model}: its external data must be a file in its folder, got {os.fsdecode(place)}")
        files.append(path)
    return tuple(files)


def runner_flags(
    work: Work, settings: BenchmarkSettings, *, library: str, model_path: Callable[[int], str], folder: str
) -> list[str]:
    """The command line without the program. `library`, `model_path(i)` and `folder` are as on the measuring machine."""
    flags = ["--events", "--ort", library]
    for number, candidate in enumerate(work.candidates):
        flags += ["--model", model_path(number), "--name", candidate.name]
        if candidate.name == settings.also_against and number > 0:
            flags.append("--also-against")
        if candidate.inputs:
            flags += ["--cases", f"{folder}/cases-{number}"]
    for name, size in settings.shapes.items():
        flags += ["--shape", f"{name}={size}"]
    flags += [
        *("--scenario", settings.scenario),
        *("--threads", str(settings.threads)),
        *("--optimization", settings.optimization),
        *("--provider", settings.provider),
        *("--samples", str(settings.min_samples)),
        *("--budget", f"{settings.budget_s:g}"),
        *("--batch", str(settings.batch)),
        *("--sessions", str(settings.sessions)),
        *("--callers", str(settings.callers)),
        *("--duration", f"{settings.duration_s:g}"),
        *("--processes", str(settings.processes)),
        *("--least-effect", f"{settings.least_effect:g}"),
        *("--seed", str(settings.seed)),
        *("--silence", f"{settings.silence_s:g}"),
    ]
    if settings.spin:
        flags.append("--spin")
    if settings.period_ms is not None:
        flags += ["--period-ms", f"{settings.period_ms:g}"]
    if settings.memory_limit_mib is not None:
        flags += ["--memory-limit", str(settings.memory_limit_mib)]
    if settings.profile:
        flags += ["--profile", f"{folder}/{PROFILE}"]
    return flags
