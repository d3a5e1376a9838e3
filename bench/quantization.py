"""How do models that `compressor quantize` makes compare with those of other quantizers: size, speed and quality?

Three float32 graphs as torch exports them (`_quantization_models`) are quantized by this program and, each in its own
virtual environment (`_quantization_peers`), by onnxruntime, optimum-onnx, Olive and NNCF, with the same calibration
examples. Of each model all results are judged on the same held-out data by the task's metric, and timed in one
interleaved run of the native harness, one thread, batch 1.

A model dominates another where it is no worse in size, speed and metric, and better in one of them. Sizes that differ
by less than 1% are alike; so are speeds whose 95% intervals beside float32 overlap, and metrics where the 95% interval
of the difference (a bootstrap over the held-out examples, both drawn together) has 0 in it. A model is on the front
where no other tool's model dominates it. This program is ahead of a peer on a model where each result of that peer is
dominated by one of this program's; of a peer that gives none that runs, too, which a row of its own then says.

`--quick` takes EfficientNet-Lite0 alone, few images, and of each peer that is installed already one way.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import _quantization_peers as peers
from bench._dominance import Point, difference, dominating
from bench._quantization_models import Amount, Subject, encoder, language_model, network_of_images
from bench._quantization_peers import Result
from compressor.artifacts import Interval
from compressor.benchmark import BenchmarkSettings, Candidate, time_models
from compressor.errors import BenchmarkError, BundleError
from compressor.progress import SILENT
from compressor.quantize import Mixer, load_float_model, quantize
from compressor.quantize.sites import find_sites
from compressor.recipe_quantize import Quantization
from compressor.timings import Latencies

OURS = "compressor"
FLOAT32 = "float32"


@dataclass(frozen=True)
class Work:
    """A model with what this program does to it, by name, and how all are timed."""

    subject: Subject
    settings: dict[str, dict[str, object]]
    timing: BenchmarkSettings


# Where every processor has VNNI, weights that saturate without it need no wider step.
_FOR_VNNI: dict[str, object] = {"precisions": ["static-int8"], "same_everywhere": False}
_AS_IT_IS: dict[str, object] = {**_FOR_VNNI, "migrate": "off", "correct_bias": "off"}


def _of_images(subject: Subject) -> dict[str, dict[str, object]]:
    """The classifier, the last site, has a quarter of the weights."""
    last = find_sites(load_float_model(subject.model.path))[-1].node
    return {
        "static-int8": {"precisions": ["static-int8"]},
        "static-int8, for VNNI": _FOR_VNNI,
        "static-int8, for VNNI, of the model as it is": _AS_IT_IS,
        "static-int8, for VNNI, of the model as it is, classifier weight-int4": {
            **_AS_IT_IS,
            "overrides": {last: "weight-int4"},
        },
        "float16": {"precisions": ["float16"]},
    }


def _of_text(subject: Subject) -> dict[str, dict[str, object]]:
    """With a table goes the product that shares it: the last layer of a language model."""
    sites = find_sites(load_float_model(subject.model.path))
    of_tables = {site.weight for site in sites if site.operator == "Gather"}
    in_four_bits = {"overrides": {site.node: "weight-int4" for site in sites if site.weight in of_tables}}
    return {
        "dynamic-int8": {"precisions": ["dynamic-int8"]},
        "dynamic-int8, tables weight-int4": {"precisions": ["dynamic-int8"], **in_four_bits},
        # Where scales are moved, a Mul more before most products.
        "dynamic-int8, tables weight-int4, of the model as it is": {
            "precisions": ["dynamic-int8"],
            "migrate": "off",
            **in_four_bits,
        },
        "static-int8": {"precisions": ["static-int8"]},
        "static-int8, tables weight-int4": {"precisions": ["static-int8"], **in_four_bits},
        "weight-int8": {"precisions": ["weight-int8"]},
        "weight-int8, block 64, tables weight-int4": {"precisions": ["weight-int8"], "block": 64, **in_four_bits},
        "weight-int4": {"precisions": ["weight-int4"]},
        "weight-int4, block 128": {"precisions": ["weight-int4"], "block": 128},
    }


def run(quick: bool) -> dict[str, Any]:
    """Bars: on the front of every model, and ahead of each peer on two models or more."""
    rows: list[dict[str, Any]] = []
    bars: dict[str, Any] = {}
    ahead: dict[str, int] = {}
    pythons = _pythons(rows, quick)
    for work in _works(quick):
        found, on_front, behind = _compared(work, pythons, quick)
        rows += found
        bars[f"on_front_of_{work.subject.name}"] = {"value": on_front, "bar": ">= 1", "holds": on_front >= 1}
        for peer in pythons:
            ahead[peer] = ahead.get(peer, 0) + (peer in behind)
    if not quick:
        bars |= {f"ahead_of_{peer}": {"value": n, "bar": ">= 2", "holds": n >= 2} for peer, n in ahead.items()}
    return {"rows": rows, "bars": bars}


def _works(quick: bool) -> Iterator[Work]:
    if quick:
        settings = {"static-int8, for VNNI, of the model as it is": _AS_IT_IS}
        yield Work(network_of_images(Amount(8, 16)), settings, BenchmarkSettings(min_samples=60, budget_s=20.0))
        return
    images = network_of_images(Amount(96, 185))
    yield Work(images, _of_images(images), BenchmarkSettings(budget_s=90.0))
    for text, budget_s in ((encoder(Amount(64, 450)), 180.0), (language_model(Amount(16, 24)), 480.0)):
        yield Work(text, _of_text(text), BenchmarkSettings(budget_s=budget_s))


def _pythons(rows: list[dict[str, Any]], quick: bool) -> dict[str, Path]:
    """Of each peer that can be had; the others are rows that say why not."""
    found = {}
    for peer in peers.REQUIREMENTS:
        try:
            found[peer] = peers.python_of(peer, install=not quick)
        except BenchmarkError as error:
            rows.append({"model": "-", "tool": peer, "name": "-", "why_not": str(error)})
    return found


def _compared(work: Work, pythons: dict[str, Path], quick: bool) -> tuple[list[dict[str, Any]], int, set[str]]:
    """Rows; how many results of this program are on the front; the peers that it is ahead of."""
    subject = work.subject
    with tempfile.TemporaryDirectory(prefix="bench-quantization-") as scratch:
        folder = Path(scratch)
        results = [Result(FLOAT32, FLOAT32, subject.model.path)]
        results += _ours(work, folder)
        results += _theirs(subject, pythons, folder, quick)
        answers, results = _judged(subject, results)
        running = [one for one in results if one.path is not None]
        timed = _timed(subject, running, work.timing)
        points = {
            one.name: Point(one.tool, one.name, one.path.stat().st_size, _speed(timed, one.name), answers[one.name])
            for one in running
            if one.path is not None
        }
    ours = [point for point in points.values() if point.tool == OURS]
    others = [point for point in points.values() if point.tool != OURS]
    beaten = {
        **{one.name: dominating(one, others, subject.metric) for one in ours},
        **{one.name: dominating(one, ours, subject.metric) for one in others},
    }
    rows = [_row(subject, one, points, timed, beaten) for one in results]
    rows += [
        {"model": subject.name, "name": f"{peer}: all", "why_not": "none of its results runs: counts as beaten"}
        for peer in pythons
        if not any(one.tool == peer for one in others)
    ]
    ahead = {peer for peer in pythons if all(beaten[one.name] for one in others if one.tool == peer)}
    return rows, sum(not beaten[one.name] for one in ours), ahead


def _ours(work: Work, folder: Path) -> list[Result]:
    """Every candidate by the functions that `compressor quantize` calls."""
    found = []
    for number, (name, chosen) in enumerate(work.settings.items()):
        settings = Quantization.model_validate({**chosen, "calibration_samples": len(work.subject.calibration)})
        target = folder / f"{OURS}-{number}"
        target.mkdir()
        mixer = Mixer.of(work.subject.model, work.subject.calibration, work.subject.preprocessor, settings, folder)
        made = quantize(work.subject.model, mixer, target, SILENT)
        path = next((one.path for one in made.models), None)
        why_not = "" if path else made.refused[0].reason
        found.append(Result(OURS, f"{OURS}: {name}", path, why_not))
    return found


def _theirs(subject: Subject, pythons: dict[str, Path], folder: Path, quick: bool) -> list[Result]:
    calibration = folder / "calibration.npz"
    peers.write_calibration(subject, calibration)
    found = []
    for peer, python in pythons.items():
        for number, way in enumerate(peers.ways_of(peer, subject, quick=quick)):
            scratch = folder / f"{peer}-{number}"
            found.append(peers.quantized(python, peer, way, subject.model.path, calibration, scratch))
    return found


def _judged(subject: Subject, results: Sequence[Result]) -> tuple[dict[str, Any], list[Result]]:
    """The answers of each that runs; one that does not, or gives no finite answers, loses its file."""
    answers: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for one in results:
        if one.path is None:
            continue
        try:
            answers[one.name] = subject.judge(one.path)
        except BundleError as error:
            refused[one.name] = str(error)[:200]
            continue
        if not math.isfinite(subject.metric(answers[one.name], np.arange(len(answers[one.name])))):
            refused[one.name] = "its answers are not finite"
    return answers, [
        replace(one, path=None, why_not=refused[one.name]) if one.name in refused else one for one in results
    ]


def _timed(subject: Subject, running: Sequence[Result], settings: BenchmarkSettings) -> Latencies:
    candidates = [Candidate(one.name, one.path, subject.timed) for one in running if one.path is not None]
    return time_models(candidates, settings, FLOAT32, SILENT)


def _speed(timed: Latencies, name: str) -> Interval:
    return next(one for one in timed.models if one.name == name).speedup


def _row(
    subject: Subject, one: Result, points: dict[str, Point], timed: Latencies, beaten: dict[str, str]
) -> dict[str, Any]:
    row: dict[str, Any] = {"model": subject.name, "name": one.name}
    if one.path is None:
        return {**row, "why_not": one.why_not}
    point = points[one.name]
    latency = next(model for model in timed.models if model.name == one.name)
    lost = difference(point.answers, points[FLOAT32].answers, subject.metric)
    return {
        **row,
        "mb": point.bytes / 1e6,
        "p50_ms": latency.p50_ms,
        "speed": point.speed.value,
        "speed_low": point.speed.low,
        "speed_high": point.speed.high,
        "metric": subject.metric_name,
        "quality": subject.metric(point.answers, np.arange(len(point.answers))),
        "over_float32": lost.value,
        "over_low": lost.low,
        "over_high": lost.high,
        "dominated_by": beaten[one.name],
        "valid": timed.timing.valid,
    }
