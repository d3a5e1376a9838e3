"""Whole runs on data that are no single file: an image folder, and a stream in the hub's layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from command_runs import Ended
from made_inputs import IMAGE_CLASSES, Inputs
from PIL import Image
from run_folders import assert_whole
from shared_runs import Run

import compressor


def write_images(archive: Path, folder: Path) -> Path:
    """The images of an .npz, every pixel two by two, in a folder for each class."""
    with np.load(archive) as arrays:
        for number, (image, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
            path = folder / IMAGE_CLASSES[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.kron(image, np.ones((2, 2), np.uint8))).save(path)
    return folder


@pytest.fixture
def folder_recipe(inputs: dict[str, Inputs], tmp_path: Path) -> Path:
    source = inputs["image-classification"]
    train = write_images(source.folder / "train.npz", tmp_path / "train")
    held_out = write_images(source.folder / "eval.npz", tmp_path / "eval")
    return source.write_recipe(
        tmp_path / "out", data__train=str(train), data__eval=str(held_out), data__resize="stretch"
    )


def _kept_and_done(ended: Ended) -> tuple[int, list[str]]:
    assert ended.code == 0, ended.stderr
    return len(ended.stages("kept")), ended.stages("done")


def test_an_image_folder_from_files_to_a_device(folder_recipe: Path, run: Run, tmp_path: Path) -> None:
    """A damaged file is left out and told; a moved folder is the same data; the bundle takes files as training did."""
    damaged = tmp_path / "train" / IMAGE_CLASSES[1] / "damaged.png"
    damaged.write_bytes(next(damaged.parent.glob("*.png")).read_bytes()[:100])
    ended = run("compress", folder_recipe)
    stages = _kept_and_done(ended)[1]
    assert "left out 1 of 481 images (columns/damaged.png: " in ended.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["data"]["training"] == "480 images (12, 12, 1) of train"
    assert result["recipe"]["data"]["train"] == "train"
    assert_whole(tmp_path / "out")

    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "train", tmp_path / "elsewhere" / "train")
    assert _kept_and_done(run("compress", folder_recipe, "--set", f"data.train={moved}")) == (len(stages), [])
    damaged = Path(moved) / IMAGE_CLASSES[1] / "damaged.png"
    damaged.unlink()
    kept, done = _kept_and_done(run("compress", folder_recipe, "--set", f"data.train={moved}"))
    assert (kept, done[0]) == (3, "student"), "the teacher and its answers to the evaluation data stay"

    predictor = compressor.load(tmp_path / "out" / "bundle")
    assert predictor.manifest.answer["image"]["resize"] == "stretch"
    files = sorted((tmp_path / "eval").rglob("*.png"))[::10]
    labels = [found.label for found in predictor.classify(files)]
    assert np.mean([label == file.parent.name for label, file in zip(labels, files, strict=True)]) > 0.8


def test_too_many_bad_images_end_the_run_before_any_work(folder_recipe: Path, run: Run, tmp_path: Path) -> None:
    for file in sorted((tmp_path / "train" / IMAGE_CLASSES[0]).glob("*.png"))[:6]:
        file.write_bytes(b"")
    ended = run("compress", folder_recipe)
    assert ended.code == 4
    (line,) = [line for line in ended.lines if line.startswith("compressor: ")]
    assert "6 of 480 images (rows/" in line
    assert not ended.stages("done")


def test_a_stream_in_the_layout_of_the_hub(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    """Texts of both splits of one folder, read until there are enough; again, and nothing is left to do."""
    source = inputs["text-classification"]
    folder = tmp_path / "texts"
    for name, split in (("train", "train"), ("eval", "test")):
        rows: list[dict[str, Any]] = [
            json.loads(line) for line in (source.folder / f"{name}.jsonl").read_text().splitlines()
        ]
        (folder / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    recipe = source.write_recipe(
        tmp_path / "out",
        data={
            "train": {"path": str(folder), "split": "train"},
            "eval": {"path": str(folder), "split": "test"},
            "streaming": True,
            "max_train": 300,
        },
        gate__max_drop=0.5,
    )
    _, done = _kept_and_done(run("compress", recipe))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["data"]["training"] == "300 texts of texts train"
    assert result["recipe"]["data"]["train"] == {"path": "texts", "split": "train"}
    assert _kept_and_done(run("compress", recipe)) == (len(done), [])
