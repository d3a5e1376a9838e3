"""What do the ranges of a static int8 model cost, in memory and time, against onnxruntime's calibrators?

On a transformer of MiniLM-L6's size with random weights and batches of one text of 128 tokens. Each calibration is a
process of its own; those of one number of batches take turns in random order. First, the ranges are compared: the
extremes must be onnxruntime's, and the percentiles within a bin of each. Where onnxruntime keeps more than is free, it
is not run, and the row says what it would have needed, by the slope of the smaller runs.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench._calibration_process import VOCABULARY, Ranges
from bench._made_onnx import transformer
from compressor.errors import BenchmarkError

Way = tuple[str, str]
WAYS: list[Way] = [
    *(("compressor", method) for method in ("minmax", "percentile", "entropy", "mse")),
    *(("onnxruntime", method) for method in ("minmax", "percentile", "entropy")),
]
COUNTS, QUICK_COUNTS = (32, 128, 512), (8, 64)
ROUNDS = {32: 3, 128: 3, 512: 1}
MOST_OF_FREE = 0.7


def _calibrated(way: Way, model: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench._calibration_process", *way, str(model), str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise BenchmarkError(f"{' '.join(way)} on {count} batches must end well, got {ended.returncode}: {last}")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _check(ours: Ranges, theirs: Ranges, method: str, extremes: Ranges) -> None:
    """Extremes agree up to rounding, percentiles within a bin of each histogram, of 2,048 bins or more."""
    if ours.keys() != theirs.keys():
        raise BenchmarkError(f"{method}: the tensors must be onnxruntime's; differing: {ours.keys() ^ theirs.keys()}")
    for name, (low, high) in extremes.items():
        reach = max(-low, high)
        most = 1e-5 * reach if method == "minmax" else 3 * reach / 2048
        off = max(abs(one - other) for one, other in zip(ours[name], theirs[name], strict=True))
        if not off <= most:
            raise BenchmarkError(f"{method} of {name} must agree within {most:g}, is off by {off:g}; run the tests")


def _free_mib() -> float:
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) / 1024


def _needed_mib(peaks: dict[int, float], count: int) -> float:
    """By the straight line through the two largest counts so far."""
    if len(peaks) < 2:
        return 0.0
    (less, low), (more, high) = sorted(peaks.items())[-2:]
    return high + (high - low) / (more - less) * (count - more)


def _measure(model: Path, counts: tuple[int, ...], rounds: dict[int, int]) -> dict[tuple[Way, int], dict[str, Any]]:
    order = random.Random(0)
    found: dict[tuple[Way, int], dict[str, Any]] = {}
    peaks: dict[Way, dict[int, float]] = {way: {} for way in WAYS}
    for count in counts:
        runs: dict[Way, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(rounds.get(count, 1)):
            for way in order.sample(WAYS, len(WAYS)):
                if _needed_mib(peaks[way], count) < MOST_OF_FREE * _free_mib():
                    runs[way].append(_calibrated(way, model, count))
        extremes = runs["compressor", "minmax"][0]["ranges"]
        for method in ("minmax", "percentile"):
            if theirs := runs["onnxruntime", method]:
                _check(runs["compressor", method][0]["ranges"], theirs[0]["ranges"], method, extremes)
        for way, done in runs.items():
            found[way, count] = _summary(done) if done else {"not_run_needs_mib": _needed_mib(peaks[way], count)}
            if done:
                peaks[way][count] = found[way, count]["peak_mib"]
    return found


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
        "runs": len(runs),
    }


def _bars(found: dict[tuple[Way, int], dict[str, Any]], counts: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    least, middle, most = counts[0], counts[1], counts[-1]
    ours, theirs = ("compressor", "entropy"), ("onnxruntime", "entropy")

    def peak(way: Way, count: int) -> float:
        return float(found[way, count]["peak_mib"])

    over_minmax = peak(ours, middle) / peak(("compressor", "minmax"), middle)
    over_theirs = peak(ours, middle) / peak(theirs, middle)
    flat = peak(ours, most) / peak(ours, least)
    faster = found[theirs, middle]["seconds"] / found[ours, middle]["seconds"]
    return {
        "entropy_peak_over_our_minmax": {"value": over_minmax, "bar": "<= 1.1", "holds": over_minmax <= 1.1},
        "entropy_peak_over_onnxruntimes": {"value": over_theirs, "bar": "<= 0.2", "holds": over_theirs <= 0.2},
        "entropy_peak_from_fewest_to_most": {"value": flat, "bar": "<= 1.1", "holds": flat <= 1.1},
        "entropy_times_faster": {"value": faster, "bar": ">= 3", "holds": faster >= 3},
    }


def run(quick: bool) -> dict[str, Any]:
    counts = QUICK_COUNTS if quick else COUNTS
    with tempfile.TemporaryDirectory() as folder:
        model, _ = transformer(Path(folder), layers=6, hidden=384, heads=12, vocabulary=VOCABULARY)
        found = _measure(model, counts, ROUNDS)
    rows = [{"way": way, "method": method, "batches": count, **row} for ((way, method), count), row in found.items()]
    return {"rows": rows, "bars": _bars(found, counts)}
