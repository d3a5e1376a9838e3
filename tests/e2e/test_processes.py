"""`torchrun -m compressor compress`: one process leads, the others train with it, and the student is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_inputs import Inputs
from run_folders import assert_one_clear_line, weights_of
from safetensors.numpy import load
from shared_runs import Finished, Run

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, "-m", "compressor", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_make_the_student_of_one(
    inputs: dict[str, Inputs], finished_runs: dict[str, Finished], run: Run, tmp_path: Path
) -> None:
    """With the control, so that the leader calls twice, and a checkpoint in between."""
    recipe = inputs["text-classification"].write_recipe(tmp_path / "out")
    ended = launch("compress", str(recipe))
    assert ended.returncode == 0, ended.stderr
    alone = finished_runs["text-classification"].out
    one, two = (json.loads((out / "result.json").read_text()) for out in (alone, tmp_path / "out"))
    mine, theirs = ([point["loss"] for point in result["history"]["losses"]] for result in (one, two))
    # Two halves of a batch are added in another order; the losses are of some 4e-4, so what rounds off is a thousandth.
    assert theirs == pytest.approx(mine, rel=1e-2)
    for name, array in load(weights_of(tmp_path / "out")).items():
        np.testing.assert_allclose(array, load(weights_of(alone))[name], atol=2e-3, err_msg=name)
    # What the two have made, one process keeps.
    assert run("compress", recipe).stages("done") == []


def test_two_processes_share_a_teacher(
    inputs: dict[str, Inputs], finished_runs: dict[str, Finished], run: Run, tmp_path: Path
) -> None:
    """What they record of it is what one process records; alone it is refused, and needs no other for what is kept."""
    recipe = inputs["text-classification"].write_recipe(tmp_path / "out", teacher__shard=True)
    assert "expected several processes to share the teacher" in assert_one_clear_line(run("compress", recipe), 5)
    ended = launch("compress", str(recipe), "--set", "distill.control=false")
    assert ended.returncode == 0, ended.stderr
    assert "the teacher's weights are shared by 2 processes" in ended.stderr
    mine, theirs = (
        load(next((out / "stages").glob("signals-*/signals-00000.safetensors")).read_bytes())
        for out in (tmp_path / "out", finished_runs["text-classification"].out)
    )
    np.testing.assert_allclose(mine["outputs"], theirs["outputs"], atol=1e-5)
    assert run("compress", recipe, "--set", "distill.control=false").stages("done") == []


def test_an_error_before_the_training_ends_all(inputs: dict[str, Inputs], tmp_path: Path) -> None:
    recipe = inputs["text-classification"].write_recipe(tmp_path / "out")
    ended = launch("compress", str(recipe), "--set", "student.layers=9")
    assert ended.returncode != 0
    assert "student.layers: expected 1 to" in ended.stderr
