"""`verify.reference`: another model judges, and nothing is learnt from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_server import serving
from endpoint_runs import keywords
from ruamel.yaml import YAML
from run_folders import assert_one_clear_line
from shared_runs import Finished, Inputs, Run

CLASSES = ["sport", "food"]


def with_reference(run: Finished, out: Path, reference: dict[str, Any]) -> Path:
    """A recipe in a copy of a finished run's folder, with another model to judge."""
    shutil.copytree(run.out, out)
    recipe = run.inputs.write_recipe(out)
    values = YAML(typ="safe").load(recipe)
    values["verify"] = {"reference": reference}
    with recipe.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    return recipe


def student_file(run: Finished) -> dict[str, Any]:
    """The run's own student as the judge, of which the right answer is known: it agrees with itself."""
    (model,) = (run.out / "stages").glob("rewrite-*/student.onnx")
    (trained,) = (run.out / "stages").glob("distill-*/tokenizer.json")
    return {"onnx": str(model), "tokenizer": str(trained)}


@pytest.mark.parametrize(
    ("task", "more"), [("text-classification", {"classes": CLASSES}), ("sentence-embedding", {"output": None})]
)
def test_a_reference_is_judged_and_judges(
    finished_runs: dict[str, Finished], run: Run, tmp_path: Path, task: str, more: dict[str, Any]
) -> None:
    finished = finished_runs[task]
    recipe = with_reference(finished, tmp_path / "out", {**student_file(finished), **more})
    ended = run("compress", recipe)
    assert ended.code == 0, ended.stderr
    assert ended.stages("done") == ["reference", "verify", "bundle"], "what was learnt stays as it was"
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    found, models = result["reference"], {model["name"]: model for model in result["models"]}
    assert found["source"] == "student.onnx"
    assert found["quality"]["quality"]["value"] == pytest.approx(models["student"]["quality"]["quality"]["value"])
    assert found["agreement"]["student"] == pytest.approx(1, abs=1e-6)
    assert {"teacher", "student-torch", "student-int8"} < found["agreement"].keys()
    if task == "text-classification":
        assert found["agreement"]["teacher"] == models["student"]["agreement"]
    else:
        assert 0.9 < found["agreement"]["teacher"] < 1
    line = " ".join(ended.stdout.split()).partition("reference student.onnx: ")[2]
    assert f"student-int8 {found['agreement']['student-int8']:.3f}" in line
    assert "reference student.onnx: " in (tmp_path / "out" / "report.html").read_text()
    assert run("compress", recipe).stages("done") == []


def test_a_folder_judges(finished_runs: dict[str, Finished], run: Run, tmp_path: Path) -> None:
    """A copy of the teacher agrees with the teacher wholly, and with each model as far as the teacher does."""
    finished = finished_runs["text-classification"]
    judge = tmp_path / "judge"
    shutil.copytree(finished.inputs.folder / "teacher", judge)
    (judge / "README.md").write_text("Another model.\n")
    recipe = with_reference(finished, tmp_path / "out", {"path": str(judge)})
    ended = run("compress", recipe)
    assert ended.code == 0, ended.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    models = {model["name"]: model for model in result["models"]}
    agreement = result["reference"]["agreement"]
    assert agreement["teacher"] == 1
    assert {name: agreement[name] for name in ("student", "student-int8")} == {
        name: models[name]["agreement"] for name in ("student", "student-int8")
    }


def test_an_endpoint_judges(finished_runs: dict[str, Finished], run: Run, tmp_path: Path) -> None:
    """Behind it is what the classes were made by, so that its own quality is known."""
    finished = finished_runs["text-classification"]
    with serving(keywords) as server:
        judge = {"endpoint": server.url, "model": "big", "classes": CLASSES, "top_logprobs": 2}
        ended = run("compress", with_reference(finished, tmp_path / "out", judge))
    assert ended.code == 0, ended.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["reference"]["source"] == "big at 127.0.0.1"
    assert result["reference"]["quality"]["quality"]["value"] == 1
    rows = (finished.inputs.folder / "eval.jsonl").read_text().splitlines()
    asked = {prompt.rpartition("Text: ")[2] for prompt in server.prompts()}
    assert asked == {json.loads(row)["text"] for row in rows}, "what is held out, and nothing else"
    for model in result["models"]:
        agreement = result["reference"]["agreement"][model["name"]]
        assert agreement == pytest.approx(model["quality"]["quality"]["value"]), "it agrees with what is right"


def test_what_cannot_judge_is_refused(finished_runs: dict[str, Finished], run: Run, tmp_path: Path) -> None:
    finished = finished_runs["text-classification"]
    inputs: Inputs = finished.inputs
    teacher = str(inputs.folder / "teacher")
    refused = [
        ({"path": teacher}, 3, "verify.reference: expected another model than the teacher"),
        ({"path": teacher, "weight": "x"}, 3, "unknown key verify.reference.weight"),
        ({"gguf": "model.gguf"}, 3, "gguf teaches text-generation alone"),
        ({**student_file(finished), "classes": CLASSES[::-1]}, 5, "expected the teacher's classes in its order"),
    ]
    for number, (reference, code, expected) in enumerate(refused):
        recipe = with_reference(finished, tmp_path / f"out-{number}", reference)
        assert expected in assert_one_clear_line(run("compress", recipe), code)
