"""What does one inference cost through Python's InferenceSession, above the native harness?

On a model of two microseconds, where the interpreter is most of the time. Outputs are first compared bit by bit; then
blocks of both take turns, and each turn is one paired sample.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from compressor import native
from compressor.benchmark.summary import median_interval

ROUNDS, QUICK_ROUNDS = 41, 11
BLOCK = 1000
BAR = 1.3  # times the native time, at least: else the harness would not be worth its code


def _small_mlp(path: Path) -> None:
    normal = np.random.default_rng(0).standard_normal
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [
            numpy_helper.from_array(normal((32, 64), np.float32), "w1"),
            numpy_helper.from_array(normal((64, 10), np.float32), "w2"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def _python_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _python_block_us(session: onnxruntime.InferenceSession, feed: dict[str, Any]) -> float:
    elapsed_ns = []
    for _ in range(BLOCK):
        start_ns = time.monotonic_ns()
        session.run(None, feed)
        elapsed_ns.append(time.monotonic_ns() - start_ns)
    return statistics.median(elapsed_ns) / 1e3


def run(quick: bool) -> dict[str, Any]:
    feed = {"x": np.random.default_rng(1).standard_normal((1, 32), dtype=np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlp.onnx")
        _small_mlp(path)
        module = native.load()
        session = module.Session(module.Library(str(native.onnxruntime_library())), str(path))
        python = _python_session(path)
    prepared = session.prepare(feed)
    bit_equal = session.run(prepared)[0].tobytes() == python.run(None, feed)[0].tobytes()

    native_us, python_us = [], []
    for done in range(-1, QUICK_ROUNDS if quick else ROUNDS):  # the first round warms up
        if done % 2:
            python_now = _python_block_us(python, feed)
            native_now = float(np.median(session.run_block([prepared], 0, BLOCK)[0])) / 1e3
        else:
            native_now = float(np.median(session.run_block([prepared], 0, BLOCK)[0])) / 1e3
            python_now = _python_block_us(python, feed)
        if done >= 0:
            native_us.append(native_now)
            python_us.append(python_now)
    ratio = median_interval(np.array(python_us) / np.array(native_us))
    rows = [
        {
            "implementation": name,
            "call_us_median": statistics.median(spent),
            "call_us_low": min(spent),
            "call_us_high": max(spent),
            "blocks": len(spent),
        }
        for name, spent in (("native", native_us), ("python InferenceSession.run", python_us))
    ]
    overhead = median_interval(np.array(python_us) - np.array(native_us))
    rows[1] |= {"overhead_us": overhead.value, "overhead_us_low": overhead.low, "overhead_us_high": overhead.high}
    bars = {
        "bit_equal": {"value": bit_equal, "bar": True, "holds": bit_equal},
        "python_over_native": {"value": ratio.value, "bar": BAR, "holds": ratio.low >= BAR},
    }
    return {"conditions": {"threads": 1, "model": "MLP 32-64-10, batch 1"}, "rows": rows, "bars": bars}
