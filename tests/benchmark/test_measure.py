"""Measuring whole models in child processes: what comes back, and how each failure reads."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from compressor.benchmark.child import run_worker

from compressor import native
from compressor.benchmark import BenchmarkSettings, Candidate, measure
from compressor.benchmark.request import Model, make_request, save_feeds
from compressor.errors import BenchmarkError, MissingDependencyError
from compressor.progress import SILENT

QUICK = BenchmarkSettings(warmup_s=0.0)


def candidate(models, name, feeds=2):
    path, make_feed = models[name]
    generator = np.random.default_rng(0)
    return Candidate(name, path, tuple(make_feed(generator) for _ in range(feeds)))


def child_ids():
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def test_measures_in_order_against_the_first(models):
    wanted = ["cnn", "mlp", "mixed"]
    latencies = measure([candidate(models, name) for name in wanted], QUICK, SILENT)
    assert [latency.name for latency in latencies] == wanted
    cnn, mlp, mixed = latencies
    assert cnn.samples == mlp.samples == mixed.samples >= 500
    assert (cnn.speedup.value, cnn.speedup.low, cnn.speedup.high) == (1.0, 1.0, 1.0)
    for latency in latencies:
        assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms
        assert latency.mean_ms > 0
        assert latency.cpu_ms > 0
        assert latency.session_ms > 0
        assert 1 < latency.peak_memory_mib < 1000
        assert latency.throughput_per_s == pytest.approx(1000 / latency.mean_ms)
        assert latency.speedup.low <= latency.speedup.value <= latency.speedup.high
        assert (latency.threads, latency.batch) == (1, 1)
        assert latency.runtime.startswith("onnxruntime 1.")
        assert latency.runtime.endswith("(native C API)")


def test_the_measuring_process_loads_neither_runtime_nor_torch():
    program = """
import sys
import compressor.benchmark.worker
print(sorted({"torch", "onnx", "onnxruntime", "transformers", "pydantic"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_model_that_crashes_the_runtime_is_one_line(models, crashing_model):
    feed = {"x": np.zeros((2, 4), np.float32), "scale": np.ones(4, np.float32)}
    with pytest.raises(BenchmarkError) as caught:
        measure([candidate(models, "mlp"), Candidate("bad", crashing_model, (feed,))], QUICK, SILENT)
    assert str(caught.value).startswith("bad: the measuring process was ended by SIGSEGV")
    assert "\n" not in str(caught.value)


def test_a_killed_child_is_one_line(slow_model, tmp_path):
    feed = {"x": np.ones((1024, 1024), np.float32)}
    model = save_feeds(Candidate("slow", slow_model, (feed,)), "0", tmp_path)
    request = make_request("time", native.onnxruntime_library(), (model,), QUICK)
    before = child_ids()

    def kill(event):
        if event["event"] == "timing":
            (child,) = child_ids() - before
            os.kill(int(child), signal.SIGKILL)

    with pytest.raises(BenchmarkError, match=r"^slow: the measuring process was ended by SIGKILL; perhaps for want"):
        run_worker(request, tmp_path, limit_s=60, on_event=kill)


def test_no_child_survives_an_interrupt(slow_model, tmp_path):
    feed = {"x": np.ones((1024, 1024), np.float32)}
    model = save_feeds(Candidate("slow", slow_model, (feed,)), "0", tmp_path)
    request = make_request("time", native.onnxruntime_library(), (model,), QUICK)
    before = child_ids()

    def interrupt(event):
        if event["event"] == "timing":
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_worker(request, tmp_path, limit_s=60, on_event=interrupt)
    assert child_ids() == before
    assert time.monotonic() - start < 30


def test_a_silent_child_is_ended(slow_model, tmp_path):
    feed = {"x": np.ones((1024, 1024), np.float32)}
    model = save_feeds(Candidate("slow", slow_model, (feed,)), "0", tmp_path)
    request = make_request("time", native.onnxruntime_library(), (model,), BenchmarkSettings(warmup_s=60.0))
    before = child_ids()
    with pytest.raises(BenchmarkError, match="slow: no answer for 2 s"):
        run_worker(request, tmp_path, limit_s=2)
    assert child_ids() == before


def test_too_slow_for_the_budget(slow_model):
    feed = {"x": np.ones((1024, 1024), np.float32)}
    settings = BenchmarkSettings(warmup_s=0.0, budget_s=0.1)
    with pytest.raises(BenchmarkError, match=r"459 samples per model are needed .* raise the budget of 0\.1 s"):
        measure([Candidate("slow", slow_model, (feed,))], settings, SILENT)


@pytest.mark.parametrize("content", [b"", b"not a model", None], ids=["empty", "corrupt", "missing"])
def test_files_that_are_no_models(content, tmp_path):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchmarkError) as caught:
        measure([Candidate("broken", path, ({},))], QUICK, SILENT)
    assert "broken" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "mlp: input 'x' is missing"),
        ({"x": np.zeros((1, 32))}, "mlp: input 'x' must be float32, got float64"),
        ({"x": np.zeros((1, 31), np.float32)}, "mlp: an inference fails: .*invalid dimensions"),
    ],
)
def test_feeds_that_do_not_fit(feed, message, models):
    with pytest.raises(BenchmarkError, match=message):
        measure([Candidate("mlp", models["mlp"][0], (feed,))], QUICK, SILENT)


def test_what_may_be_asked(models):
    one = candidate(models, "mlp")
    with pytest.raises(BenchmarkError, match="one model or more is needed"):
        measure([], QUICK, SILENT)
    with pytest.raises(BenchmarkError, match="different names, got mlp, mlp"):
        measure([one, one], QUICK, SILENT)
    with pytest.raises(BenchmarkError, match="one feed or more is needed"):
        measure([Candidate("mlp", one.model, ())], QUICK, SILENT)
    with pytest.raises(BenchmarkError, match="459 or more for a p99, got 100"):
        BenchmarkSettings(min_samples=100)
    with pytest.raises(BenchmarkError, match="1 or more, got 0 and 1"):
        BenchmarkSettings(threads=0)
    with pytest.raises(BenchmarkError, match="above 0, got 0"):
        BenchmarkSettings(budget_s=0)
    with pytest.raises(MissingDependencyError, match="no ONNX Runtime library at"):
        measure([one], BenchmarkSettings(library=Path("nowhere.so")), SILENT)


def test_a_defect_of_the_child_shows_its_last_line(tmp_path):
    request = make_request("load", native.onnxruntime_library(), (Model("a", "x"), Model("b", "y")), QUICK)
    with pytest.raises(BenchmarkError, match="failed with exit code 1: ValueError"):
        run_worker(request, tmp_path, limit_s=60)
