"""Does `compressor bench` say what is true? On a model of about a millisecond, by whole runs of the measuring program.

- A/A: a model against a copy of itself. A verdict other than inconclusive is wrong.
- Planted: a model of 20 equal layers against one of 21, which is 5% slower. Anything but slower is wrong.
- Hog: other processes spin beside the run, one in half of the tries, twice as many as there are processors in the
  other half. The run must be marked INVALID, or its corrected median lie within 10% of the quiet one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.benchmark import BenchmarkSettings, Candidate, measure
from compressor.benchmark.result import RunFound
from compressor.progress import SILENT

LAYERS, BATCH, WIDTH = 20, 40, 256
TRIES = {"A/A": 200, "planted": 100, "hog": 20}
QUICK_TRIES = {"A/A": 8, "planted": 6, "hog": 4}
BARS = {"A/A": 0.05, "planted": 0.95, "hog": 1.0}
NEAR = 0.10
SETTINGS = BenchmarkSettings(shapes={"batch": BATCH})


def _save(path: Path, layers: int) -> Path:
    """Layers of equal shape and weights, each a product and its activation."""
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32) / np.float32(WIDTH**0.5)
    nodes, value = [], "x"
    for layer in range(layers):
        result = "y" if layer == layers - 1 else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"a{layer}"]))
        nodes.append(helper.make_node("Relu", [f"a{layer}"], [result]))
        value = result
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(weights, f"w{layer}") for layer in range(layers)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@contextmanager
def _hogs(count: int) -> Iterator[None]:
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _p50_ms(run: RunFound) -> float:
    latency = run.models[0].latency
    assert latency is not None
    assert latency.best.p50_ms is not None
    return latency.best.p50_ms.value


def _compared(kind: str, first: Path, second: Path, tries: int) -> dict[str, Any]:
    """The verdicts of so many runs, and how far their speed-ups are apart."""
    verdicts, speedups, excluded, invalid = [], [], 0, 0
    for number in range(tries):
        run = measure([Candidate("first", first), Candidate("second", second)], replace(SETTINGS, seed=number), SILENT)
        (comparison,) = run.comparisons
        verdicts.append(comparison.verdict)
        speedups.append(comparison.speedup.value)
        low, high = comparison.speedup.low, comparison.speedup.high
        excluded += low is not None and high is not None and not low <= 1 <= high
        invalid += run.validity is not None and not run.validity.valid
    row: dict[str, Any] = {"kind": kind, "tries": tries}
    row |= {verdict: verdicts.count(verdict) for verdict in ("faster", "slower", "inconclusive")}
    row |= {"speedup": statistics.median(speedups), "speedup_least": min(speedups), "speedup_most": max(speedups)}
    return row | {"interval_excludes_1": excluded, "invalid": invalid}


def _disturbed(model: Path, tries: int) -> dict[str, Any]:
    asked = [Candidate("model", model)]
    quiet_ms = statistics.median(_p50_ms(measure(asked, SETTINGS, SILENT)) for _ in range(5))
    near, invalid, honest, worst = 0, 0, 0, 0.0
    for number in range(tries):
        with _hogs(1 if number % 2 else 2 * len(os.sched_getaffinity(0))):
            run = measure(asked, replace(SETTINGS, seed=number), SILENT)
        off = abs(_p50_ms(run) / quiet_ms - 1)
        caught = run.validity is not None and not run.validity.valid
        near += off <= NEAR
        invalid += caught
        honest += caught or off <= NEAR
        worst = max(worst, off)
    return {
        "kind": "hog",
        "tries": tries,
        "invalid": invalid,
        "corrected_near": near,
        "honest": honest,
        "quiet_p50_ms": quiet_ms,
        "corrected_off_most": worst,
    }


def run(quick: bool) -> dict[str, Any]:
    tries = QUICK_TRIES if quick else TRIES
    with tempfile.TemporaryDirectory() as scratch:
        model, slower = _save(Path(scratch, "model.onnx"), LAYERS), _save(Path(scratch, "slower.onnx"), LAYERS + 1)
        copy = _save(Path(scratch, "copy.onnx"), LAYERS)
        rows = [
            _compared("A/A", model, copy, tries["A/A"]),
            _compared("planted", model, slower, tries["planted"]),
            _disturbed(model, tries["hog"]),
        ]
    same, planted, hog = rows
    wrong = (same["faster"] + same["slower"]) / same["tries"]
    found, honest = planted["slower"] / planted["tries"], hog["honest"] / hog["tries"]
    bars = {
        "same_but_verdict": {"value": wrong, "bar": BARS["A/A"], "holds": wrong <= BARS["A/A"]},
        "planted_found": {"value": found, "bar": BARS["planted"], "holds": found >= BARS["planted"]},
        "hog_invalid_or_near": {"value": honest, "bar": BARS["hog"], "holds": honest >= BARS["hog"]},
    }
    return {"conditions": {"least_effect": SETTINGS.least_effect, "planted": 1 / LAYERS}, "rows": rows, "bars": bars}
