"""The command line: exit codes, one line on stderr, a traceback only on request, results on stdout alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import compressor
from compressor.__main__ import main
from compressor.artifacts import TASKS
from compressor.cli import parse
from compressor.recipe import RECIPES

RECIPE = """\
task: sentence-embedding
teacher: {path: teacher, permission: own-model}
data: {train: train.jsonl, eval: eval.jsonl}
out: run
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs in a folder of its own, and leaves the handling of signals as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    Path("recipe.yaml").write_text(RECIPE)
    Path("typo.yaml").write_text(RECIPE + "quantise: {}\n")
    Path("file").write_text("x")
    Path("broken.onnx").write_bytes(b"no model")
    Path("empty.onnx").write_bytes(b"")
    Path("run").mkdir()
    Path("run/result.json").write_text("{")
    Path("bundle").mkdir()
    Path("bundle/manifest.json").write_text("{}")


FAILURES = [
    ("compress", 2, "compress needs a recipe file, or all of --teacher"),
    ("compress --teacher t --task text-classification --data d --eval e", 5, "found nothing"),
    ("compress absent.yaml", 3, "no such recipe"),
    ("compress typo.yaml", 3, "typo.yaml:5: unknown key quantise; did you mean quantize?"),
    ("compress recipe.yaml --set distill.epochs=many", 3, "--set: distill.epochs"),
    ("compress recipe.yaml --max-drop 200%", 3, "gate.max_drop"),
    ("compress recipe.yaml", 5, "expected a folder in Hugging Face layout, found nothing"),
    ("compress recipe.yaml --dry-run", 5, "expected a folder in Hugging Face layout, found nothing"),
    ("compress recipe.yaml --teacher file", 5, "found a file"),
    ("inspect absent.onnx", 2, "found nothing"),
    ("inspect run", 2, "found a folder without a manifest"),
    ("inspect file", 2, "expected an .onnx file or a bundle folder"),
    ("inspect broken.onnx", 11, "expected an ONNX model"),
    ("inspect empty.onnx", 11, "got an empty file"),
    ("inspect bundle", 11, "expected bundle format 2, got None"),
    ("verify absent", 11, "found none"),
    ("verify run", 11, "found none"),
    ("verify file", 11, "found none"),
    ("verify bundle", 11, "expected bundle format 2, got None"),
    ("bench absent.onnx", 12, "cannot open it: no such file"),
    ("bench empty.onnx", 12, "got an empty file"),
    ("bench bundle", 11, "expected bundle format"),
    ("bench broken.onnx --samples 0", 2, "--samples 0: expected a whole number of 1 or more"),
    ("bench broken.onnx --memory-limit 0", 2, "--memory-limit 0: expected a whole number of 1 or more"),
    ("bench broken.onnx --threads 1,,2", 2, "--threads 1,,2: expected a value"),
    ("bench broken.onnx --threads two", 2, "--threads two: expected whole numbers of 1 or more"),
    ("bench broken.onnx --threads 0", 2, "expected whole numbers of 1 or more"),
    ("bench broken.onnx --spin maybe", 2, "--spin maybe: expected off, on, or several"),
    (
        "bench broken.onnx --optimization most",
        2,
        "--optimization most: expected none, basic, extended, all, or several",
    ),
    ("bench broken.onnx --scenario paced", 2, "--scenario paced needs a period: add --period-ms"),
    ("bench broken.onnx --scenario paced --period-ms 0", 2, "--period-ms 0: expected a time in milliseconds above 0"),
    ("bench broken.onnx --period-ms 5", 2, "--period-ms belongs to --scenario paced, got --scenario stream"),
    ("bench broken.onnx --sessions 2", 2, "--sessions belongs to --scenario throughput, got --scenario stream"),
    ("bench broken.onnx --callers 1", 2, "--callers belongs to --scenario throughput, got --scenario stream"),
    (
        "bench broken.onnx --duration 5s --scenario cold",
        2,
        "--duration belongs to --scenario sustained, got --scenario c",
    ),
    ("bench broken.onnx --processes 9", 2, "--processes belongs to --scenario cold, got --scenario stream"),
    ("bench broken.onnx --scenario throughput --callers 0", 2, "--callers 0: expected a whole number of 1 or more"),
    ("bench broken.onnx --min-effect lots", 2, "--min-effect lots: expected a share"),
    ("bench broken.onnx --scenario sustained --duration 0s", 2, "--duration 0s: expected a time"),
    ("bench broken.onnx --device board", 2, "expected ssh://"),
    ("bench broken.onnx --budget soon", 2, "--budget soon: expected a time"),
    ("bench broken.onnx --shape sequence", 2, "expected NAME=SIZE"),
    ("bench --json broken.onnx broken.onnx", 2, "put --json after the models"),
    ("bench broken.onnx --json nowhere/x.json", 2, "--json nowhere/x.json: its folder does not exist"),
    ("bench broken.onnx --json run", 2, "--json run: expected a file to write or to replace, got a folder"),
    ("bench broken.onnx --json /dev/null", 2, "--json /dev/null: expected a file to write or to replace, got a device"),
    ("bench broken.onnx --json /proc/x.json", 13, "--json /proc/x.json: this file cannot be written: no such file"),
    ("report absent", 4, "absent"),
    ("report run", 4, "result.json"),
]


@pytest.mark.parametrize(("command", "code", "words"), FAILURES, ids=[command for command, _, _ in FAILURES])
def test_a_failure_is_one_line_and_its_own_code(
    command: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("compressor: ")
    assert words in err


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "absent", "--debug"]) == 11
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("compressor: ")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (RuntimeError("two\nlines"), 1, "internal error: RuntimeError: two lines; run with --debug"),
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept"),
        (OSError(28, "No space left on device", "run/x"), 13, "run/x: no space left on device; free some space"),
        (PermissionError(13, "Permission denied", "run"), 13, "run: permission denied"),
        (ModuleNotFoundError("no", name="torch"), 14, "pip install 'compressor[train]'"),
        (ModuleNotFoundError("no", name="compressor.nothing"), 1, "internal error"),
    ],
)
def test_what_comes_from_below_is_translated(
    raised: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_options: object) -> None:
        raise raised

    monkeypatch.setattr("compressor.commands.verify", fails)
    assert main(["verify", "bundle"]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "",
        "explode",
        "compress --nothing",
        "compress recipe.yaml --resume --fresh",
        "compress recipe.yaml --from nowhere",
        "compress recipe.yaml --from nowhere --dry-run",
        "init",
        "init --task translation",
        "bench",
        "verify",
        "bench a.onnx --scenario fast",
    ],
)
def test_a_command_line_that_does_not_exist_ends_with_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(command.split())
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: compressor" in err


@pytest.mark.parametrize("task", RECIPES)
def test_init_prints_a_recipe(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--task", task]) == 0
    out, err = capsys.readouterr()
    assert f"task: {task}" in out
    assert err == ""


def test_the_tasks_of_the_command_line_are_those_of_the_recipes() -> None:
    """They are written out in artifacts.py, which may not import recipes."""
    for task in RECIPES:
        assert parse(["init", "--task", task]).task == task
    assert set(RECIPES) == set(TASKS)


def test_the_stages_of_the_command_line_are_those_of_the_pipeline() -> None:
    from compressor import cli, pipeline

    assert cli.STAGES == pipeline.STAGES


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, words in (("--version", compressor.__version__), ("--help", "init")):
        with pytest.raises(SystemExit) as raised:
            main([flag])
        assert raised.value.code == 0
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["init", "compress", "inspect", "verify", "bench", "report"])
def test_every_verb_has_help_and_a_function(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from compressor import commands

    with pytest.raises(SystemExit) as raised:
        main([verb, "--help"])
    assert raised.value.code == 0
    assert f"usage: compressor {verb}" in capsys.readouterr().out
    assert callable(getattr(commands, verb))


@pytest.fixture
def model(make_onnx: Callable[..., Path], tmp_path: Path) -> Path:
    return make_onnx(
        tmp_path / "model.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 4])},
        {"y": (TensorProto.FLOAT, ["batch", 3])},
        {"w": np.ones((4, 3), np.float32)},
    )


def test_inspect_prints_facts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == model.stat().st_size
    assert found["bytes_by_part"]["linear weights, float"] >= 48
    assert sum(found["bytes_by_part"].values()) == found["bytes"]
    assert main(["inspect", str(model)]) == 0
    assert "model.onnx" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "typo.yaml"], ["inspect", "model.onnx"]])
def test_without_a_terminal_or_with_no_color_nothing_is_coloured(model: Path, arguments: list[str]) -> None:
    environment = {"NO_COLOR": "1", "PATH": "/usr/bin:/bin", "HOME": str(model.parent)}
    run = subprocess.run(
        [sys.executable, "-m", "compressor", *arguments], capture_output=True, env=environment, check=False
    )
    assert b"\x1b" not in run.stdout + run.stderr
    assert run.stdout + run.stderr


def test_the_exit_code_reaches_the_shell() -> None:
    run = subprocess.run([sys.executable, "-m", "compressor", "verify", "absent"], capture_output=True, check=False)
    assert run.returncode == 11
    assert b"Traceback" not in run.stderr
