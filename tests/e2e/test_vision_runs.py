"""Whole runs with a vision transformer in a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
import torch
from command_runs import Running
from made_inputs import IMAGE_CLASSES, Inputs, vision_inputs
from run_folders import assert_nothing_half_written, assert_one_clear_line, assert_whole, sizes_of_students
from shared_runs import Finished, Run
from transformers import ResNetConfig, ResNetForImageClassification, ViTForImageClassification

import compressor
from compressor.report.schema import result_schema


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("vision")
    inputs = vision_inputs(folder)
    recipe = inputs.write_recipe(folder / "out")
    ended = Running(("compress", recipe), folder / "streams").end()
    assert ended.code == 0, ended.stderr
    return Finished(inputs, recipe, folder / "out", ended)


def _rows(out: Path) -> dict[str, Any]:
    result = json.loads((out / "result.json").read_text())
    jsonschema.Draft202012Validator(result_schema()).validate(result)
    return {row["name"]: row for row in result["models"]}


def _converted(out: Path) -> list[str]:
    """What was proven equal to what it was made from, or close to it, in the order of the conversions."""
    return [parity["name"] for parity in json.loads((out / "result.json").read_text())["parities"] if parity["holds"]]


def _held_out(inputs: Inputs) -> tuple[Any, Any]:
    with np.load(inputs.folder / "eval.npz") as arrays:
        return arrays["images"], arrays["labels"]


def test_a_vit_from_its_folder_to_a_device(vit_run: Finished, run: Run) -> None:
    """The student's graph says what transformers' own class says of images normalised by hand."""
    out, data = vit_run.out, vit_run.inputs.recipe["data"]
    assert "layers 0, 3 of 4; hidden 24 of 32; heads 3 of 4; feed-forward 32 of 64" in vit_run.ended.stderr
    rows = _rows(out)
    assert {"teacher", "student", "student-int8", "student-static-int8"} <= rows.keys()
    assert rows["teacher"]["quality"]["quality"]["value"] > 0.9
    assert rows["student"]["quality"]["quality"]["value"] > 0.8
    assert 2 * rows["student"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["student-int8"]["bytes"] < rows["student"]["bytes"]
    assert _converted(out)[:3] == ["teacher", "student-exported", "student"]
    assert_whole(out)

    images, labels = _held_out(vit_run.inputs)
    shown = ((images / 255 - data["mean"]) / data["std"]).transpose(0, 3, 1, 2).astype(np.float32)
    for kind, name in (("teacher-onnx", "teacher"), ("export", "student")):
        (file,) = (out / "stages").glob(f"{kind}-*/{name}.onnx")
        (stage,) = (out / "stages").glob("distill-*")
        model = ViTForImageClassification.from_pretrained(
            vit_run.inputs.folder / "teacher" if name == "teacher" else stage, local_files_only=True
        )
        with torch.inference_mode():
            expected = model.eval()(pixel_values=torch.from_numpy(shown)).logits
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(["logits"], {"pixels": images})[0], expected, rtol=1e-3, atol=1e-4)

    assert run("verify", out / "bundle").code == 0
    found = [answer.label for answer in compressor.load(out / "bundle").classify(list(images))]
    assert np.mean([label == IMAGE_CLASSES[truth] for label, truth in zip(found, labels, strict=True)]) > 0.8


def test_a_plan_says_what_the_student_and_its_neighbours_weigh(vit_run: Finished, run: Run) -> None:
    """Within 2% of the files that the run made, and a kilobyte of nodes that moved scales between layers there."""
    ended = run("inspect", "--plan", vit_run.recipe, "--json")
    assert ended.code == 0, ended.stderr
    own, *others = json.loads(ended.stdout)["choices"]
    sizes = sizes_of_students(vit_run.out)
    predicted = {f"student-{name}".removesuffix("-float32"): size for name, size in own["onnx_bytes"].items()}
    assert predicted.keys() == sizes.keys()
    for name, size in sizes.items():
        assert predicted[name] == pytest.approx(size, rel=0.02, abs=1000), name
    assert f"  {own['parameters']:,} parameters: layers 0, 3 of 4" in vit_run.ended.stderr
    assert [choice["choice"] for choice in others] == ["layers 1", "layers 3", "layers 4", "ffn 16"]


def test_flags_make_a_plan(vit_run: Finished, run: Run, tmp_path: Path) -> None:
    folder, data = vit_run.inputs.folder, vit_run.inputs.recipe["data"]
    settings = {f"data.{name}": data[name] for name in ("size", "classes", "mean", "std")}
    settings |= {"student.layers": 1, "student.heads": 2, "distill.batch_size": 16}
    ended = run(
        "compress", "--teacher", folder / "teacher", "--task", "image-classification", "--own-model",
        "--data", folder / "train.npz", "--eval", folder / "eval.npz", "--out", tmp_path / "out", "--dry-run", "--json",
        *(word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")),
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    plan = json.loads(ended.stdout)
    assert 0 < plan["student_parameters"] < plan["teacher_parameters"]
    assert 0 < plan["predicted_onnx_bytes"]["int8"] < plan["predicted_onnx_bytes"]["float32"]
    assert not (tmp_path / "out" / "stages").exists()


def test_a_folder_of_another_kind_is_the_student(vit_run: Finished, run: Run, tmp_path: Path) -> None:
    """A small ResNet that knows nothing yet learns from the ViT, whose answers are kept."""
    torch.manual_seed(11)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", downsample_in_first_stage=False,
        id2label=dict(enumerate(IMAGE_CLASSES)),
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(tmp_path / "small")
    out = tmp_path / "out"
    shutil.copytree(vit_run.out, out)
    recipe = vit_run.inputs.write_recipe(
        out, student={"folder": str(tmp_path / "small")}, quantize__precisions=["static-int8"], distill__epochs=6
    )
    ended = run("compress", recipe)
    assert ended.code == 0, ended.stderr
    assert "existing student small" in ended.stderr
    assert {"teacher-onnx", "teacher-answers", "signals"} <= set(ended.stages("kept"))
    rows = _rows(out)
    assert rows["student"]["quality"]["quality"]["value"] > 0.8
    assert _converted(out)[:3] == ["teacher", "student-exported", "student"]
    assert run("verify", out / "bundle").code == 0


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"data__classes": ["columns", "rows", "blob"]}, 5, "its class 0 is 'rows' (id2label in its config.json)"),
        ({"data__mean": [0.5, 0.5, 0.5]}, 5, "set data.mean: [0.5, 0.35, 0.2] and data.std: [0.4, 0.3, 0.2]"),
        ({"student__layers": 5}, 6, "student.layers: expected 1 to 4 (the teacher's depth), got 5"),
        ({"student__widths": [8, 8, 8]}, 3, "leave out the one or the other"),
    ],
    ids=["classes", "normalisation", "sizes", "two kinds"],
)
def test_what_does_not_fit_is_one_line(
    change: dict[str, Any], code: int, said: str, vit_run: Finished, run: Run, tmp_path: Path
) -> None:
    recipe = vit_run.inputs.write_recipe(tmp_path / "out", **change)
    assert said in assert_one_clear_line(run("compress", recipe), code)
    assert_nothing_half_written(tmp_path / "out")
