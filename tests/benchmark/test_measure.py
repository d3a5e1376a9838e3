"""Measuring whole models in child processes: what comes back, and how each failure reads."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from made_models import save

from compressor import native
from compressor.artifacts import Interval
from compressor.benchmark import BenchmarkSettings, Candidate, Tolerance, latencies_of, measure
from compressor.benchmark.measure import problems_of
from compressor.errors import BenchmarkError, MissingDependencyError
from compressor.progress import SILENT

QUICK = BenchmarkSettings(min_samples=20, budget_s=3.0)
FLOAT = onnx.TensorProto.FLOAT


def candidate(models, name, feeds=2):
    path, make_feed = models[name]
    generator = np.random.default_rng(0)
    return Candidate(name, path, tuple(make_feed(generator) for _ in range(feeds)))


def children():
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def test_measures_in_order_against_the_first(models):
    wanted = ["cnn", "mlp", "mixed"]
    run = measure([candidate(models, name) for name in wanted], BenchmarkSettings(), SILENT)
    assert run.complete
    assert [model.name for model in run.models] == wanted
    assert [(c.model, c.baseline) for c in run.comparisons] == [("mlp", "cnn"), ("mixed", "cnn")]
    assert len({model.inferences for model in run.models}) == 1
    assert run.conditions.rounds * run.conditions.block == run.models[0].inferences >= 500
    for model in run.models:
        raw = model.latency.raw
        assert 0 < raw.p50_ms.value <= raw.p90_ms.value
        assert raw.p99_ms is None or raw.p90_ms.value <= raw.p99_ms.value
        assert raw.p50_ms.low <= raw.p50_ms.value <= raw.p50_ms.high
        assert model.throughput_per_s == pytest.approx(1000 / raw.mean_ms, rel=1e-6)
        assert model.cpu_ms > 0
        assert model.warm_up.inferences >= 4
        memory = model.load.memory_mib
        assert 0 < memory.start < memory.library < memory.session <= memory.first_inference <= memory.peak < 1000
        assert min(model.load.library_ms, model.load.session_ms, model.load.first_inference_ms) > 0
        shown = model.distribution
        assert shown.shares[0] == 0
        assert shown.shares[-1] == 1
        assert list(shown.ms) == sorted(shown.ms)
        assert model.bytes == models[model.name][0].stat().st_size
    assert all(comparison.confidence == pytest.approx(0.975) for comparison in run.comparisons)
    assert run.validity is not None
    assert run.target.emulator is None
    timed = latencies_of(run, "mlp")
    assert [latency.over_float32 is None for latency in timed.models] == [True, False, True]
    assert [latency.name for latency in timed.models] == wanted
    assert timed.models[0].verdict == "baseline"
    assert timed.models[1].speedup.low <= timed.models[1].speedup.value <= timed.models[1].speedup.high
    assert timed.models[1].peak_memory_mib == run.models[1].load.memory_mib.peak - run.models[1].load.memory_mib.start
    assert timed.timing.valid == run.validity.valid


def test_the_models_after_it_are_also_compared_with_a_second_one(models):
    wanted = ["cnn", "mlp", "mixed"]
    settings = replace(QUICK, also_against="mlp")
    run = measure([candidate(models, name) for name in wanted], settings, SILENT)
    by_pair = {(one.model, one.baseline): one for one in run.comparisons}
    assert list(by_pair) == [("mlp", "cnn"), ("mixed", "cnn"), ("mixed", "mlp")]
    assert all(one.confidence == pytest.approx(1 - 0.05 / 3) for one in run.comparisons)
    # Medians of products are not products of medians, but of the same rounds they are near.
    through = by_pair["mixed", "cnn"].speedup.value / by_pair["mlp", "cnn"].speedup.value
    assert by_pair["mixed", "mlp"].speedup.value == pytest.approx(through, rel=0.3)
    timed = {latency.name: latency for latency in latencies_of(run, "mlp").models}
    assert timed["cnn"].over_float32 is None
    assert timed["mlp"].over_float32 == Interval(1.0, 1.0, 1.0)
    assert timed["mixed"].over_float32.value == by_pair["mixed", "mlp"].speedup.value


def test_a_percentile_that_the_samples_do_not_support_is_absent(models):
    run = measure([candidate(models, "cnn")], replace(QUICK, min_samples=1, budget_s=0.01), SILENT)
    (model,) = run.models
    assert 44 <= model.latency.samples < 459 or model.latency.samples >= 459
    for percentiles in (model.latency.raw, model.latency.corrected):
        if percentiles is not None:
            # With as many samples it may be absent still: where they hang together, and nothing bounds it above.
            for found, needed in ((percentiles.p99_ms, 459), (percentiles.p999_ms, 4603)):
                assert found is None or (model.latency.samples >= needed and found.high is not None)


def test_a_model_answers_as_its_copy_and_its_int8_form_nearly(models, tmp_path):
    path, _ = models["transformer"]
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    asked = [Candidate("a", path), Candidate("b", copy), Candidate("int8", models["transformer-int8"][0])]
    run = measure(asked, replace(QUICK, shapes={"length": 7}), SILENT)
    first, second, third = run.models
    assert first.answers is None
    assert "baseline" in first.answers_unknown
    assert (second.answers.against, second.answers.cases) == ("a", 4)
    # Made-up inputs are those of the other model, bit for bit, or the outputs would not be.
    assert second.answers.equal
    assert second.answers.max_abs_error == 0
    assert not third.answers.equal
    assert 0.9 < third.answers.min_cosine < 1
    assert run.conditions.shapes == {"length": 7}


def test_models_of_other_outputs_are_not_compared(models):
    run = measure([candidate(models, "mlp"), candidate(models, "cnn")], QUICK, SILENT)
    assert run.models[1].answers is None
    assert "inputs are not the baseline's" in run.models[1].answers_unknown


def expected_of(models, name, change=0.0):
    import onnxruntime

    asked = candidate(models, name)
    session = onnxruntime.InferenceSession(asked.model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = [session.run(None, dict(feed)) for feed in asked.inputs]
    return replace(asked, expected=tuple({n: o + change for n, o in zip(names, row, strict=True)} for row in outputs))


def test_outputs_are_held_against_the_expected_ones(models):
    right = replace(expected_of(models, "cnn-int8"), tolerance=Tolerance(1.0, 0.0))
    run = measure([right], QUICK, SILENT)
    assert run.models[0].answers.against == "expected"
    assert run.models[0].answers.equal
    assert problems_of(run, [right]) == []


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        (Tolerance(0.9999), "cosine of 0.9999 or more with the expected ones, got 0."),
        (Tolerance(0.5, 0.1), "may differ by 0.1 at most from the expected ones, got 3"),
        (Tolerance(0.5, 3.5), None),
    ],
)
def test_outputs_that_are_too_far_off_are_a_problem(models, tolerance, message):
    wrong = replace(expected_of(models, "mlp", change=3.0), tolerance=tolerance)
    run = measure([wrong], QUICK, SILENT)
    problems = problems_of(run, [wrong])
    assert run.models[0].answers.max_abs_error == pytest.approx(3.0, abs=1e-5)
    assert len(problems) == (message is not None)
    assert message is None or message in problems[0]


def test_outputs_that_are_not_finite_are_a_problem(tmp_path):
    path = save(
        tmp_path / "log.onnx",
        [onnx.helper.make_node("Log", ["x"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, ["n"])],
    )
    asked = [Candidate("log", path, ({"x": np.array([-1.0, 1.0], np.float32)},)), Candidate("same", path)]
    asked[1] = replace(asked[0], name="same")
    run = measure(asked, QUICK, SILENT)
    assert not run.models[1].answers.finite
    assert problems_of(run, asked) == ["log: its outputs are not finite", "same: its outputs are not finite"]


def test_paced(models):
    settings = replace(QUICK, scenario="paced", period_ms=2.0, budget_s=1.0)
    run = measure([candidate(models, "mlp")], settings, SILENT)
    (model,) = run.models
    assert run.conditions.period_ms == 2
    assert model.pacing.late_p50_ms > 0
    assert model.pacing.missed <= model.inferences
    # A period between any two: the processor is idle most of the time.
    assert model.cpu_ms < 2


def test_a_model_that_takes_longer_than_its_period_misses_every_deadline(slow_model):
    settings = replace(QUICK, scenario="paced", period_ms=0.5, budget_s=1.0, shapes={})
    run = measure([Candidate("slow", slow_model)], settings, SILENT)
    (model,) = run.models
    assert model.pacing.missed == model.inferences
    assert model.pacing.dropped >= model.inferences


def test_throughput(models):
    settings = replace(QUICK, scenario="throughput", sessions=2, callers=2, budget_s=1.0)
    run = measure([candidate(models, "mlp"), candidate(models, "cnn")], settings, SILENT)
    assert (run.conditions.sessions, run.conditions.callers) == (2, 2)
    mlp, cnn = run.models
    assert mlp.latency.corrected is None  # which of four threads waited for what is not told
    ratio = cnn.throughput_per_s / mlp.throughput_per_s
    assert run.comparisons[0].speedup.value == pytest.approx(ratio, rel=0.5)


def test_sustained(models):
    settings = replace(QUICK, scenario="sustained", duration_s=2.5)
    run = measure([candidate(models, "cnn"), candidate(models, "mlp")], settings, SILENT)
    assert run.comparisons == ()  # they ran one after the other
    for model in run.models:
        drift = model.drift
        slope = drift.slope_per_minute
        if slope.low is not None:  # a slow machine has too few blocks for bounds
            assert slope.low <= slope.value <= slope.high
        assert drift.last_over_first > 0


def test_cold(models):
    run = measure([candidate(models, "cnn")], replace(QUICK, scenario="cold", processes=3), SILENT)
    (model,) = run.models
    assert model.disk_warm.processes == 3
    for spread in (model.disk_warm.library_ms, model.disk_warm.session_ms, model.disk_warm.first_inference_ms):
        assert 0 < spread.least <= spread.median <= spread.most
    assert (model.disk_cold is None) == (model.still_cached > 0.1)
    assert model.latency is None


def test_the_profile_names_the_operators(models):
    run = measure([candidate(models, "cnn"), candidate(models, "mlp")], replace(QUICK, profile=True), SILENT)
    for model, operator in zip(run.models, ("Conv", "MatMul"), strict=True):
        assert any(operator in share.operator for share in model.profile)
        assert sum(share.share for share in model.profile) == pytest.approx(1.0)
        assert all(share.calls >= share.nodes >= 1 for share in model.profile)


def test_the_optimization_level_reaches_the_runtime(models):
    """Without optimization the convolution and its activation stay two nodes."""
    operators = {}
    for level in ("none", "all"):
        run = measure([candidate(models, "cnn")], replace(QUICK, profile=True, optimization=level), SILENT)
        operators[level] = {share.operator for share in run.models[0].profile}
    assert "Relu" in operators["none"]
    assert "Relu" not in operators["all"]


def test_needs_neither_runtime_nor_torch():
    program = """
import sys
import compressor.benchmark
import compressor.benchmark.table
print(sorted({"torch", "onnx", "onnxruntime", "transformers"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_model_that_crashes_the_runtime_is_one_line(models, crashing_model):
    feed = {"x": np.zeros((2, 4), np.float32), "scale": np.ones(4, np.float32)}
    before = children()
    with pytest.raises(BenchmarkError) as caught:
        measure([candidate(models, "mlp"), Candidate("bad", crashing_model, (feed,))], QUICK, SILENT)
    assert str(caught.value).startswith("bad: the measuring process was ended by SIGSEGV")
    assert "\n" not in str(caught.value)
    assert children() == before


def endless_model(folder):
    """A loop whose condition stays true, and whose trip count is not reached in a lifetime."""
    node, helper = onnx.helper.make_node, onnx.helper
    boolean = onnx.TensorProto.BOOL
    body = helper.make_graph(
        [node("Identity", ["go_in"], ["go_out"]), node("Identity", ["v_in"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", boolean, []),
            helper.make_tensor_value_info("v_in", FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_out", boolean, []),
            helper.make_tensor_value_info("v_out", FLOAT, [1]),
        ],
    )
    return save(
        folder / "endless.onnx",
        [node("Loop", ["count", "go", "x"], ["y"], body=body)],
        [("x", FLOAT, [1])],
        [("y", FLOAT, [1])],
        [("count", np.array(2**62)), ("go", np.array(True))],
    )


def test_a_model_that_hangs_is_ended(tmp_path):
    before = children()
    with pytest.raises(BenchmarkError, match="no answer for 1 s"):
        measure([Candidate("endless", endless_model(tmp_path))], replace(QUICK, silence_s=1.0), SILENT)
    assert children() == before


def test_an_interrupt_keeps_what_was_measured(models):
    settings = replace(QUICK, scenario="sustained", duration_s=120.0)
    start = time.monotonic()

    def interrupt(_early):  # when there is something to keep, however busy the machine is; once
        if not interrupted:
            interrupted.append(True)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    interrupted = []
    run = measure([candidate(models, "cnn")], settings, SILENT, interrupt)
    assert time.monotonic() - start < 60
    assert not run.complete
    assert run.models[0].latency.samples > 0


def test_partial_results_come_before_the_end(models):
    partial = []
    settings = replace(QUICK, scenario="sustained", duration_s=12.0)
    run = measure([candidate(models, "cnn")], settings, SILENT, partial.append)
    assert partial
    assert not any(early.complete for early in partial)
    assert partial[0].models[0].inferences < run.models[0].inferences
    assert run.complete


@pytest.mark.parametrize("content", [b"", b"not a model", None], ids=["empty", "corrupt", "missing"])
def test_files_that_are_no_models(content, tmp_path):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchmarkError) as caught:
        measure([Candidate("broken", path)], QUICK, SILENT)
    assert "broken" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"z": np.zeros((1, 32), np.float32)}, "mlp: .*the model has no 'z'"),
        ({"x": np.zeros((1, 32))}, "mlp: case 0: input 'x' must be float32, got float64"),
        ({"x": np.zeros((1, 31), np.float32)}, "mlp: .*invalid dimensions"),
    ],
)
def test_feeds_that_do_not_fit(feed, message, models):
    with pytest.raises(BenchmarkError, match=message):
        measure([Candidate("mlp", models["mlp"][0], (feed,))], QUICK, SILENT)


def test_a_feed_that_lacks_an_input(models):
    path, make_feed = models["mixed"]
    feed = make_feed(np.random.default_rng(0))
    del feed["mask"]
    with pytest.raises(BenchmarkError, match="mixed: case 0: input 'mask' is missing"):
        measure([Candidate("mixed", path, (feed,))], QUICK, SILENT)


def test_inputs_that_cannot_be_made_up(string_model, models):
    with pytest.raises(BenchmarkError, match=r"string: .*input 'text' is string; supported are float32"):
        measure([Candidate("string", string_model)], QUICK, SILENT)
    with pytest.raises(BenchmarkError, match="no model has a dynamic dimension 'width'; there are: batch"):
        measure([Candidate("mlp", models["mlp"][0])], replace(QUICK, shapes={"width": 3}), SILENT)


def test_what_may_be_asked(models):
    one = candidate(models, "mlp")
    with pytest.raises(BenchmarkError, match="one model or more is needed"):
        measure([], QUICK, SILENT)
    with pytest.raises(BenchmarkError, match="different names, got mlp, mlp"):
        measure([one, one], QUICK, SILENT)
    with pytest.raises(BenchmarkError, match="one for each of the 2 inputs, got 1"):
        measure([replace(one, expected=({},))], QUICK, SILENT)
    with pytest.raises(BenchmarkError, match="threads must be 1 or more, got 0"):
        BenchmarkSettings(threads=0)
    with pytest.raises(BenchmarkError, match="budget_s must be above 0, got 0"):
        BenchmarkSettings(budget_s=0)
    with pytest.raises(BenchmarkError, match="the size of 'batch' must be 1 or more, got 0"):
        BenchmarkSettings(shapes={"batch": 0})
    with pytest.raises(BenchmarkError, match="scenario must be one of stream, paced"):
        BenchmarkSettings(scenario="fast")
    with pytest.raises(BenchmarkError, match="scenario paced needs a period_ms, and no other takes one; got none"):
        BenchmarkSettings(scenario="paced")
    with pytest.raises(BenchmarkError, match="got 5 with scenario stream"):
        BenchmarkSettings(period_ms=5)
    with pytest.raises(MissingDependencyError, match="no ONNX Runtime library at"):
        measure([one], BenchmarkSettings(library=Path("nowhere.so")), SILENT)
    with pytest.raises(MissingDependencyError, match="no measuring program at"):
        measure([one], BenchmarkSettings(runner=Path("nowhere")), SILENT)


def test_an_execution_provider_that_is_not_there_is_named(models):
    with pytest.raises(BenchmarkError, match=r"execution provider 'XNNPACK' must be one .*CPUExecutionProvider"):
        measure([candidate(models, "mlp")], replace(QUICK, provider="XNNPACK"), SILENT)


def test_a_memory_limit_is_one_line(tmp_path):
    """A model of some bytes that asks for eight gigabytes."""
    path = save(
        tmp_path / "greedy.onnx",
        [onnx.helper.make_node("Expand", ["x", "shape"], ["y"])],
        [("x", FLOAT, [1])],
        [("y", FLOAT, None)],
        [("shape", np.array([2**31], np.int64))],
    )
    with pytest.raises(BenchmarkError) as caught:
        measure([Candidate("greedy", path)], replace(QUICK, memory_limit_mib=2000), SILENT)
    assert "greedy" in str(caught.value)
    assert "\n" not in str(caught.value)


def external(tmp_path, location):
    """A model whose weights, 4 MB, lie in a file of their own."""
    path = save(
        tmp_path / "outside.onnx",
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 1000])],
        [("y", FLOAT, ["n", 1000])],
        [("w", np.ones((1000, 1000), np.float32))],
    )
    (tmp_path / location).parent.mkdir(exist_ok=True)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.mark.parametrize("location", ["weights.bin", "parts/outside.data"])
def test_external_data_counts(tmp_path, location):
    path = external(tmp_path, location)
    assert [os.fsdecode(place) for place in native.load().external_data(str(path))] == [location]
    run = measure([Candidate("outside", path)], QUICK, SILENT)
    assert run.models[0].bytes == path.stat().st_size + 4_000_000


def test_external_data_elsewhere_is_refused(tmp_path):
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BenchmarkError, match=r"its external data must be a file in its folder, got weights\.bin"):
        measure([Candidate("outside", path)], QUICK, SILENT)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x0f", b"hello", bytes(range(256))])
def test_what_is_no_model_has_no_external_data(tmp_path, content):
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    assert native.load().external_data(str(path)) == []
    assert native.load().external_data(str(tmp_path)) == []
    assert native.load().external_data(str(tmp_path / "absent")) == []


def test_external_data_in_a_branch_and_in_an_attribute(tmp_path):
    """Tensors lie in graphs within nodes, too."""
    outside = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(outside, "branch.bin")
    outside.ClearField("raw_data")
    value = onnx.helper.make_tensor_value_info("y", FLOAT, [4])
    branch = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "b", [], [value], [outside])
    constant = onnx.numpy_helper.from_array(np.ones(4, np.float32), "c")
    onnx.external_data_helper.set_external_data(constant, "constant.bin")
    nodes = [
        onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        onnx.helper.make_node("Constant", [], ["k"], value=constant),
    ]
    condition = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    path = tmp_path / "branches.onnx"
    path.write_bytes(
        onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [condition], [value])).SerializeToString()
    )
    assert native.load().external_data(str(path)) == [b"branch.bin", b"constant.bin"]


def test_outputs_of_text_are_measured_and_not_compared(tmp_path, models):
    text = save(
        tmp_path / "text.onnx",
        [onnx.helper.make_node("Cast", ["x"], ["said"], to=onnx.TensorProto.STRING)],
        [("x", FLOAT, ["n"])],
        [("said", onnx.TensorProto.STRING, ["n"])],
    )
    run = measure([candidate(models, "mlp"), Candidate("text", text)], QUICK, SILENT)
    assert run.models[1].inferences >= 20
    assert run.models[1].answers is None
    assert run.models[1].outputs_finite is None
    assert run.models[1].answers_unknown == "its output 'said' is string, which is not compared"
    first = measure([Candidate("text", text), candidate(models, "mlp")], QUICK, SILENT)
    assert first.models[1].answers_unknown == "the baseline's outputs are of a type that is not compared"
    assert first.models[1].outputs_finite is True


def test_a_single_model_whose_outputs_are_not_finite_is_a_problem(tmp_path):
    path = save(
        tmp_path / "log.onnx", [onnx.helper.make_node("Log", ["x"], ["y"])], [("x", FLOAT, [1])], [("y", FLOAT, [1])]
    )
    asked = [Candidate("log", path, ({"x": np.array([-1.0], np.float32)},))]
    assert problems_of(measure(asked, QUICK, SILENT), asked) == ["log: its outputs are not finite"]


def test_paced_lets_through_what_the_period_does(models):
    settings = replace(QUICK, scenario="paced", period_ms=5.0)
    run = measure([candidate(models, "mlp")], settings, SILENT)
    assert run.models[0].throughput_per_s == pytest.approx(200, rel=0.2)
    assert run.models[0].pacing.dropped <= 5


def test_threads_that_cannot_be_started_are_one_line(models):
    settings = replace(QUICK, scenario="throughput", callers=300, memory_limit_mib=900)
    # A thread that starts with the last of the memory may end the process before the next one is refused.
    words = r"mlp: only \d+ of 300 threads could be started .*; ask for fewer|perhaps for want of memory"
    with pytest.raises(BenchmarkError, match=words):
        measure([candidate(models, "mlp")], settings, SILENT)


def test_a_model_that_asks_for_more_than_the_machine_has_is_one_line(tmp_path):
    path = save(
        tmp_path / "greedy.onnx",
        [onnx.helper.make_node("Expand", ["x", "shape"], ["y"])],
        [("x", FLOAT, [1])],
        [("y", FLOAT, ["n"])],
        [("shape", np.array([2**38]))],
    )
    with pytest.raises(BenchmarkError, match="greedy"):
        measure([Candidate("greedy", path)], QUICK, SILENT)


def test_cold_starts_are_judged(models):
    run = measure([candidate(models, "mlp")], replace(QUICK, scenario="cold", processes=2), SILENT)
    assert run.validity is not None
    assert run.validity.readings["seconds"] > 0


def test_outputs_of_another_shape_than_expected_are_a_problem(models):
    own = candidate(models, "mlp", feeds=1)
    asked = [replace(own, expected=({"y": np.zeros((7, 3), np.float32)},))]
    (problem,) = problems_of(measure(asked, QUICK, SILENT), asked)
    assert problem == "mlp: the timed outputs cannot be compared: an output's shape is not the expected one's"
