"""Whole runs whose teacher is a black box."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from ruamel.yaml import YAML
from shared_runs import Inputs, Run

from compressor.artifacts import TensorSpec
from compressor.export import export_onnx


@pytest.fixture(scope="session")
def image_file(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image teacher as a user would export it: normalised float32 images, channels first."""
    folder, scope = inputs["image-classification"].folder, dict[str, Any]()
    exec((folder / "networks.py").read_text(), scope)
    network = scope["teacher"]()
    network.load_state_dict(safetensors.torch.load_file(folder / "teacher.safetensors"))

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images)
            return logits

    images = TensorSpec("images", "float32", ("batch", 1, 12, 12))
    feeds = [{"images": torch.zeros(rows, 1, 12, 12).numpy()} for rows in (1, 3)]
    path = tmp_path_factory.mktemp("black-box") / "teacher.onnx"
    return export_onnx(
        Named(), "teacher", [images], [TensorSpec("scores", "float32", ("batch", 3))], feeds, 20, path
    ).path


def write_recipe(inputs: Inputs, out: Path, teacher: dict[str, Any]) -> Path:
    """The recipe of other inputs with another teacher."""
    values = YAML(typ="safe").load(inputs.write_recipe(out))
    values["teacher"] = teacher
    path = out.with_name("black-box.yaml")
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    return path


def test_an_onnx_file_teaches_images(inputs: dict[str, Inputs], image_file: Path, run: Run, tmp_path: Path) -> None:
    """The file itself is the baseline, and teacher and student are judged and timed as ever."""
    out = tmp_path / "out"
    teacher = {
        "onnx": str(image_file),
        "permission": "written-permission",
        "reference": "letter",
        "terms": "https://t/x",
    }
    recipe = write_recipe(inputs["image-classification"], out, teacher)
    planned = run("compress", recipe, "--dry-run")
    assert "parameters; predicted ONNX" in planned.stdout, planned.stderr
    ended = run("compress", recipe)
    assert ended.code == 0, ended.stderr
    result = json.loads((out / "result.json").read_text())
    rows = {row["name"]: row for row in result["models"]}
    assert rows["teacher"]["bytes"] == image_file.stat().st_size
    assert rows["teacher"]["latency"]["p50_ms"] > 0
    assert rows["teacher"]["parity"] is None, "it was not converted"
    assert rows["teacher"]["quality"]["quality"]["value"] > 0.9
    assert rows["student"]["parity"]["holds"]
    assert result["shipped"]
    sha256 = hashlib.sha256(image_file.read_bytes()).hexdigest()
    assert (result["lineage"]["source"], result["lineage"]["sha256"]) == ("teacher.onnx", sha256)
    assert run("verify", out / "bundle").code == 0
    shown = run("inspect", out / "bundle").stdout
    for expected in (sha256, "permission: written-permission", "reference: letter", "terms: https://t/x"):
        assert expected in shown
    bom = json.loads((out / "bundle" / "bom.cdx.json").read_text())
    assert bom["metadata"]["component"]["pedigree"]["ancestors"][0]["name"] == "teacher.onnx"
    assert "https://t/x" in (out / "bundle" / "README.md").read_text()
    again = run("compress", recipe)
    assert again.stages("done") == []


def test_a_black_box_without_permission_is_refused_before_it_is_opened(
    inputs: dict[str, Inputs], run: Run, tmp_path: Path
) -> None:
    unread = tmp_path / "teacher.onnx"
    unread.write_bytes(b"not even an ONNX file")
    ended = run("compress", write_recipe(inputs["image-classification"], tmp_path / "out", {"onnx": str(unread)}))
    assert ended.code == 5
    assert "a black box needs what permits distilling it" in ended.lines[-1]
    assert not (tmp_path / "out").exists()
