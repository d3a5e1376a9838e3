"""What goes wrong for a user ends in one clear line and the documented exit code, with nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from made_inputs import Inputs, write_rows
from run_folders import assert_nothing_half_written, assert_one_clear_line, assert_whole
from shared_runs import Begun, Run, Start

from compressor.errors import ExportError
from compressor.pipeline import compress
from compressor.verify import parity

HOPELESS = {"distill__epochs": 1, "distill__learning_rate": 1e-9, "gate__max_drop": 0.0}


def test_a_typo_in_the_recipe_names_line_and_key(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    recipe = inputs["image-classification"].write_recipe(tmp_path / "out", distill__epoch=3)
    line = assert_one_clear_line(run("compress", recipe), 3)
    number = next(i for i, text in enumerate(recipe.read_text().splitlines(), 1) if "epoch: 3" in text)
    assert f"{recipe}:{number}: unknown key distill.epoch; did you mean epochs?" in line
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"sentence": f"word {i}"} for i in range(50)])
    recipe = inputs["sentence-embedding"].write_recipe(tmp_path / "out", data__train=str(tmp_path / "train.jsonl"))
    line = assert_one_clear_line(run("compress", recipe), 4)
    assert "missing column text; it has sentence" in line
    assert_nothing_half_written(tmp_path / "out")


def test_an_array_that_is_missing_is_named(begun: Begun, run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", pictures=np.zeros((40, 12, 12), np.uint8))
    recipe = begun(tmp_path / "out", "teacher", data__train=str(tmp_path / "train.npz"))
    assert "images" in assert_one_clear_line(run("compress", recipe), 4)
    assert_nothing_half_written(tmp_path / "out")


@pytest.mark.parametrize("task", ["sentence-embedding", "image-classification"])
def test_an_empty_data_file_is_said_to_be_empty(task: str, inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    empty = tmp_path / f"empty{Path(inputs[task].recipe['data']['train']).suffix}"
    empty.touch()
    recipe = inputs[task].write_recipe(tmp_path / "out", data__train=str(empty))
    assert "the file is empty" in assert_one_clear_line(run("compress", recipe), 4)
    assert_nothing_half_written(tmp_path / "out")


def test_a_missing_data_file_is_named(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    recipe = inputs["text-classification"].write_recipe(tmp_path / "out", data__eval=str(tmp_path / "absent.jsonl"))
    assert "absent.jsonl" in assert_one_clear_line(run("compress", recipe), 4)
    assert_nothing_half_written(tmp_path / "out")


def _no_teacher(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing of a teacher")


def _pickles_only(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(("fill", "said"), [(_no_teacher, "config.json"), (_pickles_only, "pickles")])
def test_a_folder_that_is_no_teacher(
    fill: Callable[[Path], None], said: str, inputs: dict[str, Inputs], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "teacher").mkdir()
    fill(tmp_path / "teacher")
    recipe = inputs["sentence-embedding"].write_recipe(tmp_path / "out", teacher__path=str(tmp_path / "teacher"))
    assert said in assert_one_clear_line(run("compress", recipe), 5)
    assert_nothing_half_written(tmp_path / "out")


def test_a_teacher_with_damaged_weights(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    shutil.copytree(inputs["sentence-embedding"].folder / "teacher", tmp_path / "teacher")
    weights = tmp_path / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    recipe = inputs["sentence-embedding"].write_recipe(tmp_path / "out", teacher__path=str(tmp_path / "teacher"))
    assert_one_clear_line(run("compress", recipe), 5)
    assert_nothing_half_written(tmp_path / "out")


@pytest.mark.parametrize("earlier_success", [False, True])
def test_a_failing_gate_leaves_evidence_and_no_bundle(
    earlier_success: bool, begun: Begun, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recipe = begun(out, None if earlier_success else "student", **HOPELESS)
    assert (out / "bundle").exists() == earlier_success
    line = assert_one_clear_line(run("compress", recipe), 10)
    assert "nothing ships" in line
    assert not (out / "bundle").exists()
    result = json.loads((out / "result.json").read_text())
    assert result["shipped"] is None
    assert result["recipe"]["gate"]["max_drop"] == 0.0
    assert "student" in (out / "report.html").read_text()
    assert_whole(out)


def test_a_limit_that_nothing_keeps_to(begun: Begun, run: Run, tmp_path: Path) -> None:
    """Not even the float32 student, which no search found."""
    out = tmp_path / "out"
    recipe = begun(out, quantize__precisions=[])
    flags = ("--max-mb", "0.001", "--hours", "1e-9", "--set", "quantize.search.trials=1")
    line = assert_one_clear_line(run("compress", recipe, *flags), 10)
    assert "nothing ships" in line
    assert "quantize.search.max_mb permits 0.001 MB" in line
    assert not (out / "bundle").exists()
    assert json.loads((out / "result.json").read_text())["shipped"] is None


def test_a_model_that_departs_takes_back_what_an_earlier_run_shipped(
    begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: what is patched does not reach a command that is forked from elsewhere."""
    out = tmp_path / "out"
    recipe = begun(out)
    assert (out / "bundle").is_dir()
    for bound in ("FLOAT_ABSOLUTE", "FLOAT_RELATIVE", "FLOAT64_TIMES"):
        monkeypatch.setattr(parity, bound, -1.0)
    with pytest.raises(ExportError, match="departs"):
        compress(recipe, rerun_from="verify")
    assert not list(out.rglob("manifest.json")), "no bundle, the stage's neither"
    assert not (out / "result.json").exists()
    assert not (out / "report.html").exists()


def test_a_loss_that_is_not_finite(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out", "distill", distill__learning_rate=1e30)
    line = assert_one_clear_line(run("compress", recipe), 7)
    assert "distill.learning_rate" in line
    assert "checkpoint" not in line  # in the first epoch there is none yet
    assert_nothing_half_written(tmp_path / "out")


def test_a_run_folder_that_is_a_file(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    line = assert_one_clear_line(run("compress", recipe, "--out", tmp_path / "file"), 13)
    assert "expected a folder" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_two_processes_in_one_run_folder(begun: Begun, start: Start, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out", "export")
    first = start("compress", recipe)
    first.wait_for_stage("export")
    assert "another compressor" in assert_one_clear_line(run("compress", recipe), 13)
    ended = first.end()
    assert ended.code == 0, ended.stderr


def test_a_file_size_limit(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out", "teacher-onnx")
    assert "too large" in assert_one_clear_line(run("compress", recipe, largest_file=4096), 13)
    assert_nothing_half_written(tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, one MiB large."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system needs root and CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("stage", ["signals", "student", "distill", "export", "benchmark", "bundle"])
def test_a_full_disk(stage: str, small_disk: Path, begun: Begun, run: Run, tmp_path: Path) -> None:
    out = small_disk / "out"
    recipe = begun(tmp_path / "prepared", stage)
    shutil.move(tmp_path / "prepared", out)
    filler = small_disk / "filler"
    # Two pages stay free: room to begin a stage, none to finish it.
    space = os.statvfs(small_disk)
    filler.write_bytes(bytes((space.f_bavail - 2) * space.f_frsize))
    ended = run("compress", recipe, "--out", out)
    assert "no space left" in assert_one_clear_line(ended, 13)
    assert_nothing_half_written(out)
    filler.unlink()
    again = run("compress", recipe, "--out", out)
    assert again.code == 0, again.stderr
    assert run("verify", out / "bundle").code == 0


def test_a_read_only_disk(small_disk: Path, begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    line = assert_one_clear_line(run("compress", recipe, "--out", small_disk / "out"), 13)
    assert f"{small_disk / 'out'}: read-only" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: needs an ordinary user")
def test_a_folder_without_write_permission(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out")
    (tmp_path / "theirs").mkdir(mode=0o555)
    line = assert_one_clear_line(run("compress", recipe, "--out", tmp_path / "theirs" / "out"), 13)
    assert "permission" in line
