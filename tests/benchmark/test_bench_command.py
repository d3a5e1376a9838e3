"""`compressor bench` as a user runs it: what it prints, what it writes, how it ends."""

import json
import signal
import subprocess
import sys
import time

import jsonschema
import pytest

from compressor.benchmark import bench_schema

COMMAND = [sys.executable, "-m", "compressor", "bench"]
QUICK = ["--samples", "20", "--budget", "2s", "--quiet"]


def bench(*arguments, code=0):
    ended = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == code, ended.stderr
    return ended


def checked(text):
    document = json.loads(text)
    jsonschema.validate(document, bench_schema())
    return document


def test_a_comparison_as_a_table(models):
    ended = bench(models["mlp-int8"][0], "--baseline", models["mlp"][0], *QUICK)
    lines = ended.stdout.splitlines()
    rows = [line for line in lines if line.strip().startswith("mlp")]
    assert rows[0].split()[0] == "mlp"
    assert rows[1].split()[0] == "mlp-int8"
    assert any(line.startswith("mlp-int8: ") and "times the speed of mlp: " in line for line in lines)
    assert any(line.startswith("mlp-int8: outputs cosine 0.99") for line in lines)
    assert ended.stderr == ""


def test_models_that_cannot_be_compared_are_named_with_the_reason(models):
    lines = bench(models["mlp"][0], models["cnn"][0], *QUICK).stdout.splitlines()
    said = [line for line in lines if "outputs" in line]
    assert said == ["cnn: outputs not compared: its inputs are not the baseline's"]


def test_every_combination_of_the_axes_is_a_run(models, tmp_path):
    path = tmp_path / "out.json"
    bench(
        models["cnn"][0], "--threads", "1,2", "--optimization", "none,all", "--spin", "off,on", "--json", path, *QUICK
    )
    document = checked(path.read_text())
    assert document["complete"]
    found = [
        (run["conditions"]["optimization_level"], run["conditions"]["spin"], run["conditions"]["threads"])
        for run in document["runs"]
    ]
    assert found == [(level, spin, threads) for level in (0, 99) for spin in (False, True) for threads in (1, 2)]


def test_sizes_of_a_dimension_are_an_axis(models):
    ended = bench(models["transformer"][0], "--shape", "length=4,16", "--json", *QUICK)
    document = checked(ended.stdout)
    assert [run["conditions"]["shapes"] for run in document["runs"]] == [{"length": 4}, {"length": 16}]


@pytest.mark.parametrize(
    "flags",
    [
        ["--scenario", "paced", "--period-ms", "3"],
        ["--scenario", "throughput", "--callers", "2"],
        ["--scenario", "sustained", "--duration", "1.5s"],
        ["--scenario", "cold", "--processes", "2"],
        ["--profile"],
    ],
    ids=lambda flags: flags[-1] if len(flags) == 1 else flags[1],
)
def test_each_scenario_writes_what_the_schema_says_and_a_table(flags, models):
    two = [models["mlp"][0], models["cnn"][0]]
    document = checked(bench(*two, *flags, "--json", *QUICK).stdout)
    (run,) = document["runs"]
    assert [model["name"] for model in run["models"]] == ["mlp", "cnn"]
    shown = bench(*two, *flags, *QUICK).stdout
    assert "mlp" in shown
    assert "cnn" in shown
    if flags == ["--profile"]:
        assert "cnn: time by operator" in shown


def test_an_interrupt_shows_and_writes_what_was_measured(models, tmp_path):
    path = tmp_path / "out.json"
    command = [*COMMAND, str(models["cnn"][0]), "--scenario", "sustained", "--duration", "120s", "--json", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:  # partial results are written as they come
        time.sleep(0.1)
    assert not checked(path.read_text())["complete"]
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "interrupted: this is what was measured until then" in out
    assert "what was measured until then is kept" in err
    document = checked(path.read_text())
    assert not document["complete"]
    assert document["runs"][0]["models"][0]["latency"]["samples"] > 0


def interrupted_in_the_second_run(*arguments):
    """The command's streams after a Ctrl-C as its second run begins."""
    command = [*COMMAND, *map(str, arguments), "--threads", "1,2", "--samples", "20", "--budget", "2s"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in child.stderr:
        if line.startswith("stream, 2 thread(s)"):
            break
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err.splitlines()[-1] == "compressor: interrupted; what was measured until then is kept"
    return out


def test_an_interrupt_in_a_later_run_keeps_the_earlier_ones(models, tmp_path):
    path = tmp_path / "out.json"
    shown = interrupted_in_the_second_run(models["cnn"][0], "--json", path)
    assert "stream, 1 thread(s)" in shown
    for text in (path.read_text(), interrupted_in_the_second_run(models["cnn"][0], "--json")):
        document = checked(text)
        assert not document["complete"]
        assert document["runs"][0]["complete"]
        assert document["runs"][0]["conditions"]["threads"] == 1


def test_a_failure_in_a_later_run_keeps_the_earlier_ones(models, tmp_path):
    path = tmp_path / "out.json"
    arguments = [models["cnn"][0], "--provider", "cpu,XNNPACK", *QUICK]
    shown = bench(*arguments, "--json", path, code=12)
    assert "stream, 1 thread(s)" in shown.stdout
    printed = bench(*arguments, "--json", code=12)
    for text in (path.read_text(), printed.stdout):
        document = checked(text)
        assert not document["complete"]
        assert [run["conditions"]["provider"] for run in document["runs"]] == ["cpu"]
    for ended in (shown, printed):
        assert ended.stderr.startswith("compressor: ")
        assert "XNNPACK" in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_the_table_is_not_lost_with_the_file(models, tmp_path):
    """A limit that the file exceeds, but nothing that is tried before."""
    path = tmp_path / "out.json"
    command = [*COMMAND, str(models["cnn"][0]), "--json", str(path), *QUICK]
    ended = subprocess.run(
        ["prlimit", "--fsize=1000", "--", *command], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 13
    assert "stream, 1 thread(s)" in ended.stdout
    assert ended.stderr == f"compressor: --json {path}: this file cannot be written: file too large; name another\n"
    assert not list(tmp_path.iterdir())


def test_a_file_is_tried_before_anything_is_measured_and_stays_as_it_is(crashing_model, tmp_path):
    path = tmp_path / "out.json"
    path.write_text("the last result")
    bench(crashing_model, "--json", path, *QUICK, code=12)
    assert path.read_text() == "the last result"
    assert list(tmp_path.iterdir()) == [path]
    refused = bench(crashing_model, "--json", "/proc/x.json", *QUICK, code=13)
    assert refused.stderr.startswith("compressor: --json /proc/x.json: this file cannot be written: ")
    assert refused.stdout == ""


def test_a_disturbed_measurement_fails_only_where_it_must_not_be_disturbed(models):
    """Two spinning processes beside it, for certain."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        shown = bench(models["cnn"][0], *QUICK).stdout
        strict = bench(models["cnn"][0], "--strict", *QUICK, code=12)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert "INVALID: " in shown
    assert strict.stderr.startswith("compressor: the measurement is invalid: ")
    assert strict.stderr.count("\n") == 1


def test_a_crashing_model_is_one_line(crashing_model):
    ended = bench(crashing_model, *QUICK, code=12)
    assert ended.stderr.startswith("compressor: crash: the measuring process was ended by SIGSEGV")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_the_command_itself_opens_no_model(models):
    """What it loads beside this package and numpy: pydantic, and rich for the table."""
    heavy = ["onnxruntime", "onnx", "torch", "transformers", "tokenizers"]
    arguments = ["bench", str(models["cnn"][0]), *QUICK]
    program = f"""
import sys
from compressor.__main__ import main
assert main({arguments!r}) == 0
print("loaded:", sorted(set({heavy!r}) & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert ended.stdout.splitlines()[-1] == "loaded: []"
