"""Ctrl-C in every stage, kill -9 in training: nothing half-written, and the same command finishes the run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from run_folders import assert_nothing_half_written, assert_one_clear_line, assert_whole, weights_of
from shared_runs import Begun, Run, Start

from compressor.distill.checkpoint import load_checkpoint, save_checkpoint

# Long enough that a signal after the first epochs arrives while there is still much to train.
EPOCHS = 25


@pytest.mark.parametrize("stage", ["teacher-onnx", "signals", "distill", "export", "quantize", "verify", "benchmark"])
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


def test_pressing_ctrl_c_again_adds_nothing(begun: Begun, start: Start, tmp_path: Path) -> None:
    """The second one meets the interpreter at its end, where the system's own way of dying may come first."""
    stopped = start("compress", begun(tmp_path / "out", "teacher-onnx"))
    stopped.wait_for_stage("teacher-onnx")
    stopped.send(signal.SIGINT)
    stopped.wait_for(lambda text: "interrupted" in text)
    stopped.send(signal.SIGINT)
    ended = stopped.end()
    assert ended.code in (130, -signal.SIGINT)
    assert_one_clear_line(ended, ended.code)
    assert_nothing_half_written(tmp_path / "out")


def test_a_loss_that_turns_infinite_keeps_the_last_good_checkpoint(begun: Begun, start: Start, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out", "distill", distill__epochs=EPOCHS)
    stopped = start("compress", recipe)
    stopped.wait_for(lambda text: f"epoch 2 of {EPOCHS}" in text)
    stopped.send(signal.SIGINT)
    stopped.end()
    (checkpoint,) = (tmp_path / "out" / "stages").glob("distill-*.partial/checkpoint.pt")
    # When a loss diverges depends on the machine's rounding, so training is put just before that point.
    state = load_checkpoint(checkpoint)
    assert state is not None
    for tensor in state["learner"].values():
        tensor.fill_(torch.inf) if tensor.is_floating_point() else None
    save_checkpoint(checkpoint, state)
    before = checkpoint.read_bytes()
    diverged = start("compress", recipe).end()
    assert "the last good checkpoint is kept" in assert_one_clear_line(diverged, 7)
    assert checkpoint.read_bytes() == before
    assert_nothing_half_written(tmp_path / "out")


def test_resumed_training_gives_the_same_bytes(begun: Begun, start: Start, run: Run, tmp_path: Path) -> None:
    whole = start("compress", begun(tmp_path / "whole", "distill", distill__epochs=EPOCHS))
    whole.wait_for(lambda text: "distill: done" in text)
    whole.send(signal.SIGINT)
    assert whole.end().code == 130

    recipe = begun(tmp_path / "broken", "distill", distill__epochs=EPOCHS)
    stopped = start("compress", recipe)
    stopped.wait_for(lambda text: f"epoch 2 of {EPOCHS}" in text)
    stopped.send(signal.SIGINT)
    assert_one_clear_line(stopped.end(), 130)
    assert list((tmp_path / "broken" / "stages").glob("distill-*.partial/checkpoint.pt"))
    killed = start("compress", recipe)
    killed.wait_for(lambda text: f"epoch 5 of {EPOCHS}" in text)
    killed.send(signal.SIGKILL)
    ended = killed.end()
    assert ended.code == -signal.SIGKILL
    assert any(line.startswith("  continues at step ") for line in ended.lines)
    assert not (tmp_path / "broken" / "result.json").exists()

    again = run("compress", recipe)
    assert again.code == 0, again.stderr
    assert any(line.startswith("  continues at step ") for line in again.lines)
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "whole")
    # What a killed process was writing may stay behind, but not in what ships.
    assert run("verify", tmp_path / "broken" / "bundle").code == 0
