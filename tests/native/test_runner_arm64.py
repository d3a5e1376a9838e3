"""The measuring program as compiled for 64-bit Arm, under emulation: what it answers, and that it tells no time."""

import json
import platform
from importlib.metadata import version as installed_version

import arm64
import numpy as np
import pytest
import runner_cases
import runtimes
from arm64 import EMULATOR, PROCESSOR

NAMES = ("mlp", "mlp-int8", "cnn", "cnn-int8", "integers")
LOAD_TIMES = ("library_ms", "session_ms", "first_inference_ms")
EMULATED = f"instructions are emulated ({EMULATOR}): times say nothing of a processor"

# `slow`: everything that such a processor computes is computed by this one, some ten times slower.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() == "aarch64", reason="this is the processor itself: test_runner.py runs there"
    ),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return arm64.words(PROCESSOR, arm64.runner(), tmp_path_factory.mktemp("sysroot"))


@pytest.fixture(scope="module")
def runtime():
    return runtimes.required(runtimes.library_for_arm, installed_version("onnxruntime"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return runner_cases.samples(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def cases(samples, tmp_path_factory):
    """A folder for --cases of each model, with what Python's session answers as what is expected."""
    folder = tmp_path_factory.mktemp("cases")
    written = {}
    for name, sample in samples.items():
        outputs = [output.name for output in runner_cases.python_session(sample).get_outputs()]
        answers = [dict(zip(outputs, arrays, strict=True)) for arrays in runner_cases.python_answers(sample)]
        written[name] = runner_cases.write_cases(folder / name, sample.feeds, answers)
    return written


def streamed(name, samples, cases, folder, **how):
    """The result of a short stream of one model, and its outputs by file name."""
    folder.mkdir()
    arguments = ("--model", samples[name].path, "--cases", cases[name], "--samples", "5", "--budget", "5")
    arguments += ("--sittings", "1", "--silence", "600", "--outputs", folder)
    found = runner_cases.result("--scenario", "stream", *arguments, limit_s=600, **how)
    return found, {file.name: np.load(file) for file in sorted(folder.glob("*.npy"))}


@pytest.fixture(scope="module", params=NAMES)
def emulated(request, words, runtime, samples, cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated") / "outputs"
    return request.param, *streamed(request.param, samples, cases, folder, words=words, runtime=runtime)


def test_outputs_are_those_of_this_machine(emulated, samples, cases, tmp_path):
    name, _, outputs = emulated
    _, native = streamed(name, samples, cases, tmp_path / "outputs")
    wanted = runner_cases.python_answers(samples[name])
    assert outputs.keys() == native.keys()
    assert len(outputs) == sum(map(len, wanted))
    for file, got in outputs.items():
        case, output = map(int, file.removesuffix(".npy").split("-")[1:])
        for reference in (native[file], wanted[case][output]):
            runner_cases.assert_same(got, reference, exact=samples[name].exact, tolerance=1e-5)


def test_the_runner_says_so_itself(emulated, samples):
    name, found, _ = emulated
    (model,) = found["models"]
    answers = model["answers"]
    assert (answers["against"], answers["cases"], answers["finite"]) == ("expected", len(samples[name].feeds), True)
    assert answers["equal"] or not samples[name].exact
    assert answers["max_abs_error"] <= (0 if samples[name].exact else 1e-5)


def test_no_time_is_told(emulated):
    name, found, _ = emulated
    (model,) = found["models"]
    assert model["name"] == name
    assert model["inferences"] > 0
    for key in ("latency", "distribution", "throughput_per_s", "cpu_ms"):
        assert model[key] is None, key
    assert {key: model["load"][key] for key in LOAD_TIMES} == dict.fromkeys(LOAD_TIMES)
    assert model["load"]["memory_mib"]["peak"] > 0
    assert found["comparisons"] == []


def test_the_emulator_is_named_and_spoils_the_measurement(emulated):
    _, found, _ = emulated
    assert found["complete"] is True
    assert found["runtime"]["version"] == installed_version("onnxruntime")
    target = found["target"]
    assert (target["architecture"], target["processor"]) == ("aarch64", "implementer 0x41, part 0xd0b")
    assert target["emulator"] == EMULATOR
    assert found["validity"]["valid"] is False
    assert EMULATED in found["validity"]["reasons"]


def test_a_comparison_of_two_models_tells_no_time(words, runtime, samples):
    models = ("--model", samples["mlp"].path, "--model", samples["mlp-int8"].path)
    short = ("--samples", "5", "--budget", "2", "--sittings", "1", "--silence", "600")
    found = runner_cases.result(*models, *short, words=words, runtime=runtime, limit_s=600)
    assert [model["latency"] for model in found["models"]] == [None, None]
    assert found["comparisons"] == []
    assert found["models"][1]["answers"]["against"] == "mlp"


def test_cold_starts_tell_no_time(words, runtime, samples):
    arguments = ("--scenario", "cold", "--processes", "1", "--silence", "600", "--model", samples["mlp"].path)
    found = runner_cases.result(*arguments, words=words, runtime=runtime, limit_s=600)
    (model,) = found["models"]
    assert (model["disk_cold"], model["disk_warm"]) == (None, None)
    assert {key: model["load"][key] for key in LOAD_TIMES} == dict.fromkeys(LOAD_TIMES)
    assert found["target"]["emulator"] == EMULATOR


def test_the_table_has_no_time(words, runtime, samples):
    arguments = ("--model", samples["mlp"].path, "--samples", "5", "--budget", "2", "--silence", "600")
    ended = runner_cases.call(*arguments, words=words, runtime=runtime, limit_s=600)
    assert (ended.returncode, ended.stderr) == (0, "")
    head, row, *rest = ended.stdout.splitlines()
    assert head.split()[0] == "model"
    assert row.split()[0] == "mlp"
    assert [word for word in row.split()[1:] if word != "-"] == row.split()[6:7]  # the memory alone
    assert f"INVALID: {EMULATED}" in rest


def test_another_processors_runtime_is_refused_in_one_line(words, samples):
    said = runner_cases.failure("--model", samples["mlp"].path, words=words)
    assert "libonnxruntime" in said


def test_events_are_complete_too(words, runtime, samples):
    arguments = ("--model", samples["mlp"].path, "--samples", "5", "--budget", "2", "--events", "--silence", "600")
    ended = runner_cases.call(*arguments, words=words, runtime=runtime, limit_s=600)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert events[-1]["event"] == "result"
    assert events[-1]["result"]["models"][0]["latency"] is None
