"""From the flags of `compressor bench` to what is measured, and where the result goes."""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, get_args

from compressor.benchmark.request import BenchmarkSettings, Candidate, Optimization, Tolerance
from compressor.bundle.golden import golden_cases
from compressor.device.manifest import MANIFEST
from compressor.errors import BenchmarkError, StorageError, UsageError
from compressor.intake.onnx_model import check_onnx
from compressor.store import check_writable


def json_file(given: str | None) -> Path | None:
    """The file of --json, or None without one.

    Raises UsageError or StorageError where it could not be written, before anything is measured.
    """
    if given in (None, "-"):
        return None
    path = Path(given)
    if given.endswith(".onnx"):
        raise UsageError(f"--json {given}: that is a model; put --json after the models")
    try:
        if not path.parent.is_dir():
            raise UsageError(f"--json {given}: its folder does not exist; make it first")
        if path.exists() and not path.is_file():
            found = "a folder" if path.is_dir() else "a device"
            raise UsageError(f"--json {given}: expected a file to write or to replace, got {found}; name a file")
        check_writable(path)
    except OSError as error:
        raise unwritten(path, error) from None
    return path


def unwritten(path: Path, error: OSError) -> StorageError:
    """The error of a --json file that cannot be written."""
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return StorageError(f"--json {path}: this file cannot be written: {reason}; name another")


def settings_of(options: argparse.Namespace) -> list[BenchmarkSettings]:
    """One for each combination of the axes; the first axis named changes slowest."""
    spins = {"off": False, "on": True}
    axes = itertools.product(
        _choices(options.optimization, "--optimization", get_args(Optimization)),
        _words(options.provider, "--provider"),
        _choices(options.spin, "--spin", spins),
        _shape_sets(options.shape),
        _whole_numbers(options.threads, "--threads"),
    )
    of_scenario = _of_scenario(options)
    limit = None if options.memory_limit is None else _one_or_more(options.memory_limit, "--memory-limit")
    return [
        BenchmarkSettings(
            scenario=options.scenario,
            threads=threads,
            optimization=optimization,  # type: ignore[arg-type]  # one of the choices
            spin=spins[spin],
            provider=provider,
            min_samples=_one_or_more(options.samples, "--samples"),
            budget_s=_seconds(options.budget, "--budget"),
            batch=shapes.get("batch", 1),
            shapes=shapes,
            least_effect=_share(options.min_effect, "--min-effect"),
            library=Path(options.ort) if options.ort else None,
            runner=Path(options.runner) if options.runner else None,
            memory_limit_mib=limit,
            silence_s=_seconds(options.silence, "--silence"),
            profile=options.profile,
            **of_scenario,
        )
        for optimization, provider, spin, shapes, threads in axes
    ]


def _of_scenario(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that belong to the scenario, where their flags are given. Raises UsageError on another's flag."""
    flags: list[tuple[str, Any, str, str, Callable[[Any, str], float]]] = [
        ("--period-ms", options.period_ms, "paced", "period_ms", _period),
        ("--sessions", options.sessions, "throughput", "sessions", _one_or_more),
        ("--callers", options.callers, "throughput", "callers", _one_or_more),
        ("--duration", options.duration, "sustained", "duration_s", _seconds),
        ("--processes", options.processes, "cold", "processes", _one_or_more),
    ]
    given = [each for each in flags if each[1] is not None]
    for flag, _, scenario, _, _ in given:
        if scenario != options.scenario:
            raise UsageError(
                f"{flag} belongs to --scenario {scenario}, got --scenario {options.scenario}; "
                "leave it out, or change the scenario"
            )
    if options.scenario == "paced" and not given:
        raise UsageError("--scenario paced needs a period: add --period-ms, such as --period-ms 33")
    return {setting: checked(value, flag) for flag, value, _, setting, checked in given}


def candidates_of(options: argparse.Namespace) -> list[Candidate]:
    """The baseline comes first. Bundles are timed on their golden inputs, and ONNX files beside a bundle on the same
    (the first bundle's), so that the comparison is of models; ONNX files alone on made-up ones.

    Raises BenchmarkError for what is no ONNX file; that one crashes or hangs, the measuring program finds.
    """
    paths = [Path(model) for model in options.models]
    if options.baseline is not None:
        baseline = Path(options.baseline)
        paths = [baseline, *(path for path in paths if path != baseline)]
    bundles = {path: golden_cases(path) for path in paths if (path / MANIFEST).is_file()}
    if bundles and options.shape:
        raise UsageError("--shape: bundles are timed on their golden inputs; name their model.onnx to choose a shape")
    shared = next(iter(bundles.values())).inputs if bundles else ()
    candidates = []
    for path, name in zip(paths, distinct_names([path.resolve() for path in paths]), strict=True):
        golden = bundles.get(path)
        check_onnx(path if golden is None else golden.model, BenchmarkError)
        if golden is None:
            candidates.append(Candidate(name, path, shared))
        else:
            tolerance = Tolerance(golden.check.min_cosine, golden.check.max_abs_error)
            candidates.append(Candidate(name, golden.model, golden.inputs, golden.outputs, tolerance))
    return candidates


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many more as it takes to tell them apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-parts:])).removesuffix(".onnx") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UsageError("the same model is named twice")


def _shape_sets(given: Sequence[str]) -> list[dict[str, int]]:
    """Every combination of the sizes that are given for each dimension."""
    sizes: dict[str, list[int]] = {}
    for item in given:
        name, _, text = item.rpartition("=")
        if not name:
            raise UsageError(f"--shape {item}: expected NAME=SIZE, such as sequence=32")
        sizes[name] = _whole_numbers(text, f"--shape {name}")
    return [dict(zip(sizes, chosen, strict=True)) for chosen in itertools.product(*sizes.values())]


def _words(text: str, flag: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if "" in words:
        raise UsageError(f"{flag} {text}: expected a value, or several with commas between them")
    return words


def _choices(text: str, flag: str, choices: Collection[str]) -> list[str]:
    words = _words(text, flag)
    if not all(word in choices for word in words):
        raise UsageError(f"{flag} {text}: expected {', '.join(choices)}, or several with commas between them")
    return words


def _one_or_more(value: int, flag: str) -> int:
    if value < 1:
        raise UsageError(f"{flag} {value}: expected a whole number of 1 or more")
    return value


def _period(value: float, flag: str) -> float:
    if not 0 < value < math.inf:
        raise UsageError(f"{flag} {value:g}: expected a time in milliseconds above 0, such as 33")
    return value


def _whole_numbers(text: str, flag: str) -> list[int]:
    words = _words(text, flag)
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(f"{flag} {text}: expected whole numbers of 1 or more, with commas between them")
    return [int(word) for word in words]


def _share(text: str, flag: str) -> float:
    """2% or 0.02."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{flag} {text}: expected a share such as 2% or 0.02")
    return value


def _seconds(text: str, flag: str) -> float:
    unit = {"s": 1, "m": 60}.get(text[-1:])
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"{flag} {text}: expected a time such as 60s or 2m")
    return value
