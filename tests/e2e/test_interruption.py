"""Ctrl-C in every stage, kill -9 in training: nothing half-written, and the same command finishes the run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from conftest import Begun, Run, Start
from run_folders import assert_nothing_half_written, assert_one_clear_line, assert_whole, weights_of

# Long enough that a signal after the first epochs arrives while there is still much to train.
EPOCHS = 25


@pytest.mark.parametrize(
    "stage", ["teacher", "teacher-onnx", "signals", "distill", "export", "quantize", "verify", "benchmark"]
)
def test_ctrl_c_leaves_nothing_half_written(stage: str, begun: Begun, start: Start, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out", stage)
    interrupted = start("compress", recipe)
    interrupted.wait_for_stage(stage)
    interrupted.send(signal.SIGINT)
    line = assert_one_clear_line(interrupted.end(), 130)
    assert "interrupted" in line
    assert_nothing_half_written(tmp_path / "out")
    again = run("compress", recipe)
    assert again.code == 0, again.stderr
    assert_whole(tmp_path / "out")
    assert not list((tmp_path / "out" / "stages").glob("*.partial"))
    assert run("verify", tmp_path / "out" / "bundle").code == 0


def test_ctrl_c_at_the_bundle_keeps_the_old_one_or_the_new_one(
    begun: Begun, start: Start, run: Run, tmp_path: Path
) -> None:
    recipe = begun(tmp_path / "out")
    interrupted = start("compress", recipe, "--from", "bundle")
    interrupted.wait_for_stage("bundle")
    interrupted.send(signal.SIGINT)
    # The stage takes milliseconds, so the signal may come after it; either way a whole bundle is there.
    assert interrupted.end().code in (0, 130)
    assert run("verify", tmp_path / "out" / "bundle").code == 0


def test_terminate_ends_like_ctrl_c(begun: Begun, start: Start, tmp_path: Path) -> None:
    stopped = start("compress", begun(tmp_path / "out", "teacher-onnx"))
    stopped.wait_for_stage("teacher-onnx")
    stopped.send(signal.SIGTERM)
    assert_one_clear_line(stopped.end(), 130)
    assert_nothing_half_written(tmp_path / "out")


def test_resumed_training_gives_the_same_bytes(begun: Begun, start: Start, run: Run, tmp_path: Path) -> None:
    recipes = {
        name: begun(tmp_path / name, "distill", distill__epochs=EPOCHS) for name in ("whole", "stopped", "killed")
    }
    whole = run("compress", recipes["whole"])
    assert whole.code == 0, whole.stderr

    stopped = start("compress", recipes["stopped"])
    stopped.wait_for(lambda text: f"epoch 2 of {EPOCHS}" in text)
    stopped.send(signal.SIGINT)
    assert_one_clear_line(stopped.end(), 130)
    assert list((tmp_path / "stopped" / "stages").glob("distill-*.partial/checkpoint.pt"))

    killed = start("compress", recipes["killed"])
    killed.wait_for(lambda text: f"epoch 3 of {EPOCHS}" in text)
    killed.send(signal.SIGKILL)
    assert killed.end().code == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.json").exists()

    for name in ("stopped", "killed"):
        again = run("compress", recipes[name])
        assert again.code == 0, again.stderr
        assert any(line.startswith("  continues at step ") for line in again.lines)
        assert weights_of(tmp_path / name) == weights_of(tmp_path / "whole")
        assert_whole(tmp_path / name)
