"""The verbs beside `compress`, flags instead of a recipe, and what goes to which stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_inputs import Inputs
from ruamel.yaml import YAML
from run_folders import assert_one_clear_line, sizes_of_students
from shared_runs import TASKS, Begun, Finished, Run

from compressor.recipe_file import read_recipe


def _flags(inputs: dict[str, Inputs], out: Path) -> list[str]:
    folder = inputs["sentence-embedding"].folder
    return [
        "--teacher", str(folder / "teacher"), "--task", "sentence-embedding",
        "--data", str(folder / "train.jsonl"), "--eval", str(folder / "eval.jsonl"),
        "--max-drop", "50%", "--out", str(out),
    ]  # fmt: skip


def test_flags_alone_make_a_plan(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    flags = _flags(inputs, tmp_path / "out")
    sizes = ("distill.epochs=4", "distill.batch_size=16", "student.max_length=24")
    given = ("--license", "Apache-2.0", *(word for size in sizes for word in ("--set", size)))
    ended = run("compress", *flags, *given, "--dry-run", "--json")
    assert ended.code == 0, ended.stderr
    plan = json.loads(ended.stdout)
    # 420 distinct sentences, 21 of them held out: 24 full batches an epoch, four epochs.
    assert plan["training_examples"] == 399
    assert plan["steps"] == 4 * 24
    assert plan["evaluation_examples"] == 160
    assert 0 < plan["predicted_onnx_bytes"]["int8"] < plan["predicted_onnx_bytes"]["float32"]
    assert 0 < plan["student_parameters"] < plan["teacher_parameters"]
    assert plan["kept_stages"] == []
    assert not (tmp_path / "out" / "stages").exists()


def test_a_plan_for_a_reader(image_run: Finished, run: Run) -> None:
    ended = run("compress", image_run.recipe, "--dry-run")
    assert ended.code == 0, ended.stderr
    rows = {line.split()[0]: line for line in ended.stdout.splitlines()}
    assert {"task", "teacher", "student", "training", "time"} <= set(rows)
    assert "predicted ONNX" in rows["student"]
    assert "distill" in rows["kept"]


def test_flags_need_to_say_what_permits_the_teacher(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    ended = run("compress", *_flags(inputs, tmp_path / "out"))
    line = assert_one_clear_line(ended, 5)
    assert "--license" in line
    assert "--own-model" in line
    assert not (tmp_path / "out").exists()


def test_flags_that_are_missing_are_named(run: Run) -> None:
    assert "--data, --eval" in assert_one_clear_line(run("compress", "--teacher", "x", "--task", TASKS[0]), 2)


def test_json_prints_the_result_and_nothing_else(begun: Begun, run: Run, tmp_path: Path) -> None:
    ended = run("compress", begun(tmp_path / "out"), "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout) == json.loads((tmp_path / "out" / "result.json").read_text())


def test_quiet_says_nothing_on_success(begun: Begun, run: Run, tmp_path: Path) -> None:
    ended = run("compress", begun(tmp_path / "out", "export"), "--quiet")
    assert ended.code == 0, ended.stderr
    assert ended.stderr == ""
    assert "bundle:" in ended.stdout


def test_quiet_still_says_what_is_wrong(run: Run, tmp_path: Path) -> None:
    assert "no such recipe" in assert_one_clear_line(run("compress", tmp_path / "absent.yaml", "--quiet"), 3)


def test_report_draws_the_page_again(begun: Begun, run: Run, tmp_path: Path) -> None:
    begun(tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    before = page.read_bytes()
    page.unlink()
    ended = run("report", tmp_path / "out")
    assert ended.code == 0, ended.stderr
    assert page.read_bytes() == before
    assert "teacher" in ended.stdout


def test_report_of_nothing(run: Run, tmp_path: Path) -> None:
    assert "result.json" in assert_one_clear_line(run("report", tmp_path), 4)


def test_inspect_tells_what_a_bundle_is(finished: Finished, run: Run) -> None:
    ended = run("inspect", finished.out / "bundle", "--json")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["task"] == finished.inputs.recipe["task"]
    assert found["files"]["model.onnx"] == found["bytes"] == sum(found["bytes_by_part"].values())
    shown = run("inspect", finished.out / "bundle" / "model.onnx")
    assert shown.code == 0, shown.stderr
    assert str(found["bytes"]) in shown.stdout


def test_a_plan_says_what_the_files_will_weigh(finished: Finished, run: Run) -> None:
    """Within 2% of the files that the run made afterwards, of the student that it trained, and a kilobyte of names."""
    ended = run("inspect", "--plan", finished.recipe, "--json")
    assert ended.code == 0, ended.stderr
    own, *others = json.loads(ended.stdout)["choices"]
    assert own["choice"] == "recipe"
    sizes = sizes_of_students(finished.out)
    predicted = {f"student-{name}".removesuffix("-float32"): size for name, size in own["onnx_bytes"].items()}
    assert predicted.keys() == sizes.keys()
    for name, size in sizes.items():
        assert predicted[name] == pytest.approx(size, rel=0.02, abs=1000), name
    (start,) = (finished.out / "stages").glob("student-*/artifact.json")
    assert own["parameters"] == json.loads(start.read_text())["value"]["parameters"]
    if finished.inputs.recipe["task"] != "image-classification":
        assert {"layers 1", "layers 3", "layers 4"} <= {choice["choice"] for choice in others}
        assert all(choice["onnx_bytes"].keys() == own["onnx_bytes"].keys() for choice in others)


def test_a_plan_for_a_reader_is_a_table(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    recipe = inputs["sentence-embedding"].write_recipe(tmp_path / "out")
    ended = run("inspect", "--plan", recipe, "--set", "student.layers=1")
    assert ended.code == 0, ended.stderr
    header, own, *others = ended.stdout.splitlines()
    assert header.split() == ["choice", "parameters", "float32", "int8", "static-int8"]
    assert own.startswith("recipe")
    assert any(line.startswith("layers 2") for line in others)


def test_inspect_takes_one_thing(run: Run, tmp_path: Path) -> None:
    assert run("inspect").code == 2
    assert run("inspect", "model.onnx", "--plan", "recipe.yaml").code == 2
    assert "--plan" in assert_one_clear_line(run("inspect", tmp_path, "--set", "student.layers=1"), 2)


def test_inspect_of_something_else(run: Run, tmp_path: Path) -> None:
    assert "a folder without a manifest" in assert_one_clear_line(run("inspect", tmp_path), 2)


def test_bench_takes_a_bundle_and_a_file_together(finished: Finished, run: Run) -> None:
    (teacher,) = (finished.out / "stages").glob("teacher-onnx-*/teacher.onnx")
    flags = ("--samples", "459", "--budget", "5s", "--json")
    ended = run("bench", teacher, finished.out / "bundle", *flags)
    if finished.inputs.recipe["task"] == "text-generation":  # whose cache has as many parts as the model has layers
        assert "input 'past_key_values.2.key' is missing" in assert_one_clear_line(ended, 12)
        shapes = [f"--shape={name}" for name in ("sequence=1", "past_sequence=8", "total_sequence=9")]
        ended = run("bench", teacher, finished.out / "bundle" / "model.onnx", *shapes, *flags)
        assert ended.code == 0, ended.stderr
        assert json.loads(ended.stdout)["complete"]
        return
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["complete"]
    (measured,) = found["runs"]
    teacher_row, bundle_row = measured["models"]
    assert (teacher_row["name"], bundle_row["name"]) == ("teacher", "bundle")
    assert all(row["latency"]["raw"]["p50_ms"]["value"] > 0 for row in measured["models"])
    # The timed session gave what the bundle says that it must.
    assert bundle_row["answers"]["against"] == "expected"
    assert bundle_row["answers"]["min_cosine"] > 0.999
    assert found["problems"] == []
    # A bundle has inputs of its own, so there is no shape to choose.
    refused = run("bench", teacher, finished.out / "bundle", "--shape", "batch=2")
    assert "golden inputs" in assert_one_clear_line(refused, 2)


def test_verify_finds_a_changed_byte(begun: Begun, run: Run, tmp_path: Path) -> None:
    begun(tmp_path / "out")
    model = tmp_path / "out" / "bundle" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert "SHA-256" in assert_one_clear_line(run("verify", tmp_path / "out" / "bundle"), 11)


@pytest.mark.parametrize("task", TASKS)
def test_init_prints_a_recipe_that_is_valid(task: str, run: Run, tmp_path: Path) -> None:
    ended = run("init", "--task", task)
    assert ended.code == 0, ended.stderr
    assert YAML(typ="safe").load(ended.stdout)["task"] == task
    path = tmp_path / "recipe.yaml"
    # A teacher module needs the name of a callable; everything else is a path, valid before it exists.
    path.write_text(ended.stdout.replace("module: CHANGE-ME", "module: networks.py:teacher"))
    assert read_recipe(path).task == task
