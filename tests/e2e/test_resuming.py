"""A second run keeps what is finished, and a changed setting re-runs what depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.numpy
from command_runs import Ended
from made_inputs import Inputs
from run_folders import assert_whole, weights_of
from shared_runs import Begun, Finished, Run

from compressor import pipeline

# Without the two that this recipe does not ask for.
STAGES = [stage for stage in pipeline.STAGES if stage not in ("reference", "control", "qat")]
FROM_QUANTIZE = STAGES[STAGES.index("quantize") :]


def _without_times(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    del result["stages"]
    return result


def _assert_ran(ended: Ended, again: list[str]) -> None:
    assert ended.code == 0, ended.stderr
    assert ended.stages("done") == again
    assert ended.stages("kept") == [stage for stage in STAGES if stage not in again]


def test_second_run_keeps_every_stage(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out")
    # The copy has another name than the original, and a result names its run folder.
    _assert_ran(run("compress", recipe), [])
    before = _without_times(tmp_path / "out")
    _assert_ran(run("compress", recipe), [])
    assert _without_times(tmp_path / "out") == before
    stages = json.loads((tmp_path / "out" / "result.json").read_text())["stages"]
    assert [(stage["stage"], stage["reused"]) for stage in stages] == [(stage, True) for stage in STAGES]


def test_resume_is_the_default(begun: Begun, run: Run, tmp_path: Path) -> None:
    _assert_ran(run("compress", begun(tmp_path / "out"), "--resume"), [])


def test_a_change_of_the_gate_re_runs_nothing_but_the_bundle_that_records_it(
    begun: Begun, run: Run, tmp_path: Path
) -> None:
    recipe = begun(tmp_path / "out")
    _assert_ran(run("compress", recipe, "--set", "gate.max_drop=0.55"), ["bundle"])
    assert _without_times(tmp_path / "out")["recipe"]["gate"]["max_drop"] == 0.55
    manifest = json.loads((tmp_path / "out" / "bundle" / "manifest.json").read_text())
    assert manifest["recipe"]["gate"]["max_drop"] == 0.55


def test_calibration_runs_quantize_and_after(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out")
    ended = run("compress", recipe, "--set", "quantize.calibration_samples=24")
    _assert_ran(ended, FROM_QUANTIZE)
    # Going back finds the stages of the first run still there.
    _assert_ran(run("compress", recipe), [])


def test_from_runs_a_stage_and_what_follows(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out")
    _assert_ran(run("compress", recipe, "--from", "quantize"), FROM_QUANTIZE)
    assert_whole(tmp_path / "out")


def test_fresh_runs_everything_to_the_same_student(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out")
    before = weights_of(tmp_path / "out")
    _assert_ran(run("compress", recipe, "--fresh"), STAGES)
    assert weights_of(tmp_path / "out") == before
    assert_whole(tmp_path / "out")


def test_a_damaged_stage_runs_again(begun: Begun, run: Run, tmp_path: Path) -> None:
    recipe = begun(tmp_path / "out")
    (artifact,) = (tmp_path / "out" / "stages").glob("verify-*/artifact.json")
    artifact.write_bytes(artifact.read_bytes()[:40])
    _assert_ran(run("compress", recipe), ["verify"])


def test_a_flipped_bit_in_what_the_teacher_said_is_found_and_mended(begun: Begun, run: Run, tmp_path: Path) -> None:
    """Of the same size as before, and found although nothing that is left to do would read it."""
    recipe = begun(tmp_path / "out")
    (shard,) = (tmp_path / "out" / "stages").glob("signals-*/signals-00000.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    ended = run("compress", recipe)
    _assert_ran(ended, ["signals"])
    assert "signals-00000.safetensors is missing or not what was written; the stage runs again" in ended.stderr
    assert shard.read_bytes() == content


def test_learning_from_inside_the_teacher(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    """Hidden states and relations are recorded beside the outputs, and the student learns from them."""
    recipe = inputs["sentence-embedding"].write_recipe(tmp_path / "out")
    inside = ["--set", "distill.hidden_weight=[1, 0.5]", "--set", "distill.relation_weight=1"]
    ended = run("compress", recipe, *inside, "--set", "distill.relation_heads=4")
    _assert_ran(ended, STAGES)
    assert "of the texts are the same tokens to teacher and student" in ended.stderr
    (shard,) = (tmp_path / "out" / "stages").glob("signals-*/*.safetensors")
    assert {"outputs", "tokens", "hidden.1", "qkv.3"} < set(safetensors.numpy.load_file(shard))
    # Another weight needs nothing more of the teacher.
    again = run("compress", recipe, *inside, "--set", "distill.relation_heads=2")
    _assert_ran(again, STAGES[STAGES.index("distill") :])


def test_the_control_learns_from_the_labels_alone(
    inputs: dict[str, Inputs], finished_runs: dict[str, Finished], run: Run, tmp_path: Path
) -> None:
    """Whatever else the student learns from: the control is that of a run without it, byte for byte."""
    recipe = inputs["text-classification"].write_recipe(tmp_path / "out")
    ended = run("compress", recipe, "--set", "distill.hidden_weight=1")
    assert ended.code == 0, ended.stderr
    plain = finished_runs["text-classification"].out
    assert weights_of(tmp_path / "out", "control") == weights_of(plain, "control")
    assert weights_of(tmp_path / "out") != weights_of(plain)
