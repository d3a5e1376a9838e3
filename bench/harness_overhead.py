"""What does the harness add to an inference, beside the bare C function and beside Python's ways?

On models from one operator to a transformer. Outputs are first compared bit by bit; then blocks of all take turns, and
each turn is one paired sample: `bare` calls the C function on tensors that stay where they are and reads the clock
twice a block; `harness` is the loop that `compressor bench` times with, one reading before and one after each
inference; `python run` and `python io-binding` are onnxruntime's InferenceSession, the latter on bound tensors.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper

from bench._made_onnx import FLOAT, Feed, save_onnx, transformer
from compressor import native
from compressor.errors import BenchmarkError

ROUNDS, QUICK_ROUNDS = 2001, 501
BLOCK_S = 0.002  # of the bare calls: short, so that what disturbs the machine falls into few of the rounds
WARM_CALLS = 5
BAR_US = 0.3  # what the harness may add to a call


def _one_operator(folder: Path) -> tuple[Path, Feed]:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save_onnx(folder / "relu.onnx", [node], [("x", FLOAT, [1, 32])], [("y", FLOAT, [1, 32])], {})
    return path, {"x": np.linspace(-1, 1, 32, dtype=np.float32)[None]}


def _mlp(folder: Path) -> tuple[Path, Feed]:
    normal = np.random.default_rng(0).standard_normal
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    weights = {"w1": normal((32, 64), np.float32), "w2": normal((64, 10), np.float32)}
    path = save_onnx(folder / "mlp.onnx", nodes, [("x", FLOAT, [1, 32])], [("y", FLOAT, [1, 10])], weights)
    return path, {"x": np.random.default_rng(1).standard_normal((1, 32), np.float32)}


def _python_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _timed(call: Callable[[], object], count: int) -> float:
    """Microseconds a call, the mean of `count`, each timed by itself."""
    elapsed_ns = []
    for _ in range(count):
        start_ns = time.monotonic_ns()
        call()
        elapsed_ns.append(time.monotonic_ns() - start_ns)
    return statistics.fmean(elapsed_ns) / 1e3


def _ways(path: Path, feed: Feed) -> tuple[dict[str, tuple[Callable[[], object], Callable[[int], float]]], Any]:
    """Of each way, one call, and the microseconds a call over so many; and what must stay alive.

    The outputs have been found equal.
    """
    library = native.load().Library(str(native.onnxruntime_library()))
    session = native.load().Session(library, str(path))
    prepared = session.prepare(feed)
    python = _python_session(path)
    expected = python.run(None, feed)
    meter = native.load().DelayMeter(1, prepared.run_bare(50) / 50)
    for got, want in zip(prepared.run(), expected, strict=True):
        if got.tobytes() != want.tobytes():
            raise BenchmarkError(f"{path.name}: the outputs must be equal bit for bit, and are not; run the tests")
    binding = python.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for output, want in zip(python.get_outputs(), expected, strict=True):
        binding.bind_ortvalue_output(output.name, onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(want)))

    def one() -> object:
        return prepared.run_bare(1)

    def run() -> object:
        return python.run(None, feed)

    def bound() -> object:
        return python.run_with_iobinding(binding)

    ways = {
        "bare": (one, lambda count: prepared.run_bare(count) / count / 1e3),
        "harness": (one, lambda count: float(np.mean(prepared.run_block(count, meter)[0])) / 1e3),
        "python run": (run, lambda count: _timed(run, count)),
        "python io-binding": (bound, lambda count: _timed(bound, count)),
    }
    return ways, (session, binding)


def _measure(path: Path, feed: Feed, rounds: int) -> list[dict[str, Any]]:
    ways, alive = _ways(path, feed)
    # No block of `compressor bench` has fewer than ten.
    count = max(10, int(BLOCK_S * 1e6 / max(ways["bare"][1](50), 0.1)))
    order = random.Random(0)
    spent_us: dict[str, list[float]] = {name: [] for name in ways}
    for done in range(-2, rounds):  # two rounds warm up
        for name in order.sample(sorted(ways), len(ways)):
            call, timed = ways[name]
            for _ in range(WARM_CALLS):
                call()  # pays for the caches that the others took
            elapsed_us = timed(count)
            if done >= 0:
                spent_us[name].append(elapsed_us)
    del alive
    rows = []
    for name, times in spent_us.items():
        added = [own - bare for own, bare in zip(times, spent_us["bare"], strict=True)]
        low, middle, high = statistics.quantiles(added, n=4)
        rows.append(
            {
                "model": path.stem,
                "implementation": name,
                "call_us": statistics.median(times),
                "added_us": middle,
                "added_us_quartile_low": low,
                "added_us_quartile_high": high,
                "calls_a_block": count,
                "rounds": rounds,
            }
        )
    return rows


def run(quick: bool) -> dict[str, Any]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for make in (_one_operator, _mlp, transformer):
            rows += _measure(*make(Path(scratch)), rounds)
    bars = {
        f"harness_adds_us_{row['model']}": {
            "value": row["added_us"],
            "bar": BAR_US,
            "holds": row["added_us"] <= BAR_US,
        }
        for row in rows
        if row["implementation"] == "harness"
    }
    return {"rows": rows, "bars": bars}
