"""Image folders as training and evaluation data, and every image in them that cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from compressor.errors import DataError
from compressor.materials import Materials
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe
from compressor.recipe_data import DataSource
from compressor.tasks import TaskData, task_for
from compressor.tasks.sources import fingerprint

Make = Callable[..., Recipe]
CLASSES = ["a", "b", "c"]


def picture(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (4, 4), dtype=np.uint8)


def write_folder(folder: Path, count: int, start: int = 0) -> Path:
    """`count` images in folders by class; "c" sorts after what the library takes for the name of a split."""
    for number in range(start, start + count):
        path = folder / CLASSES[number % 3] / f"test_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_folder(tmp_path / "train", 40), write_folder(tmp_path / "test", 9, start=100)


@pytest.fixture
def folder_recipe(image_recipe: Make, folders: tuple[Path, Path]) -> Make:
    train, held_out = folders

    def make(**data: Any) -> Recipe:
        return image_recipe(data={"train": train, "eval": held_out, **data})

    return make


def loaded(recipe: Recipe, progress: Progress = SILENT) -> TaskData:
    return task_for(recipe).load_data(recipe.out / "cache", progress)


def refused(recipe: Recipe) -> str:
    with pytest.raises(DataError) as raised:
        loaded(recipe)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def assert_pictures(data: TaskData, numbers: set[int]) -> None:
    """Each of these once, with its own class, in any order."""
    assert data.labels is not None
    of_pixels = {picture(number).tobytes(): number for number in numbers}
    found = [of_pixels[np.asarray(image).tobytes()] for image in data.train]
    assert sorted(found) == sorted(numbers)
    assert data.labels.tolist() == [number % 3 for number in found]


def test_classes_are_the_names_of_the_folders(folder_recipe: Make) -> None:
    data = loaded(folder_recipe())
    assert isinstance(data.train, np.ndarray)
    assert (data.train.dtype, data.train.shape) == (np.uint8, (40, 4, 4, 1))
    assert_pictures(data, set(range(40)))
    assert len(data.truth) == 9
    assert np.asarray(data.eval_inputs).tobytes() == b"".join(
        picture(number).tobytes() for number in sorted(range(100, 109), key=lambda n: (CLASSES[n % 3], n))
    )
    assert data.truth.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_classes_are_in_the_order_of_the_recipe(folder_recipe: Make) -> None:
    assert loaded(folder_recipe(classes=["c", "a", "b"])).truth.tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 0]


def test_the_order_depends_on_the_seed_alone(folder_recipe: Make) -> None:
    whole = np.asarray(loaded(folder_recipe()).train)
    np.testing.assert_array_equal(np.asarray(loaded(folder_recipe(max_train=7)).train), whole[:7])
    np.testing.assert_array_equal(np.asarray(loaded(folder_recipe(max_train=7, streaming=True)).train), whole[:7])
    assert not np.array_equal(whole, np.asarray(loaded(folder_recipe()).eval_inputs))


def damage(train: Path) -> set[str]:
    """Three images that cannot be used, in three ways; their names."""
    (train / "a" / "empty.png").write_bytes(b"")
    content = (train / "b" / "test_1.png").read_bytes()
    (train / "b" / "cut.png").write_bytes(content[: len(content) * 2 // 3])
    (train / "dog").mkdir()
    shutil.copy(train / "b" / "test_4.png", train / "dog" / "4.png")
    return {"a/empty.png: not an image that can be read", "b/cut.png", "dog/4.png: class 'dog' is not in data.classes"}


def test_what_cannot_be_used_is_counted_named_and_bounded(folder_recipe: Make, folders: tuple[Path, Path]) -> None:
    names = damage(folders[0])
    message = refused(folder_recipe())
    assert "3 of 43 images" in message
    assert "expected at most 1.0%" in message
    assert all(name in message for name in names)
    assert "3 of 43" in refused(folder_recipe(max_bad_rows=0.069))
    assert_pictures(loaded(folder_recipe(max_bad_rows=0.07)), set(range(40)))


def test_what_was_left_out_is_told(
    folder_recipe: Make, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = damage(folders[0])
    loaded(folder_recipe(max_bad_rows="10%"), Progress())
    told = next(line for line in capsys.readouterr().err.splitlines() if "left out" in line)
    assert "train: left out 3 of 43" in told
    assert all(name in told for name in names)


def test_only_what_is_used_is_decoded(folder_recipe: Make, folders: tuple[Path, Path]) -> None:
    """With max_train the bad ones among the rest are not looked at."""
    used = {np.asarray(image).tobytes() for image in loaded(folder_recipe(max_train=10)).train}
    for number in range(40):
        if picture(number).tobytes() not in used:
            (folders[0] / CLASSES[number % 3] / f"test_{number}.png").write_bytes(b"damaged")
    again = loaded(folder_recipe(max_train=10))
    assert {np.asarray(image).tobytes() for image in again.train} == used
    assert " images (" in refused(folder_recipe(max_train=11))


def test_another_size(folder_recipe: Make) -> None:
    message = refused(folder_recipe(size=[2, 2]))
    assert "40 of 40 images" in message
    assert "4 x 4 pixels, expected 2 x 2; resize the files, or set data.resize" in message
    data = loaded(folder_recipe(size=[2, 2], resize="stretch"))
    assert np.asarray(data.train).shape == (40, 2, 2, 1)


def test_three_channels(folder_recipe: Make) -> None:
    colours = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    found = np.asarray(loaded(folder_recipe(**colours)).eval_inputs)
    assert found.shape == (9, 4, 4, 3)
    np.testing.assert_array_equal(found[0, ..., 1], picture(102))
    assert "expected 1 or 3 values" in refused(folder_recipe(mean=[0.5, 0.5], std=[0.5, 0.5]))


def test_other_files_in_it(folder_recipe: Make, folders: tuple[Path, Path]) -> None:
    """Notes, an archive, hidden files: none is an image, and an archive is not unpacked."""
    train, _ = folders
    (train / "README.txt").write_text("notes")
    (train / "a" / ".DS_Store").write_bytes(b"x")
    shutil.make_archive(str(train / "a" / "more"), "zip", train / "b")
    assert_pictures(loaded(folder_recipe()), set(range(40)))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("numbered", [False, True])
def test_metadata_say_the_class(folder_recipe: Make, tmp_path: Path, form: str, numbered: bool) -> None:
    """The library's other layout: images anywhere, their classes in a file, of which one row names no image."""
    folder = tmp_path / "described"
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(20):
        Image.fromarray(picture(number)).save(folder / "images" / f"{number}.png")
        label = number % 3 if numbered else CLASSES[number % 3]
        rows.append({"file_name": f"images/{number}.png", "label": label})
    rows.append({"file_name": "images/absent.png", "label": rows[0]["label"]})
    if form == "csv":
        datasets.Dataset.from_list(rows).to_csv(folder / "metadata.csv")
    else:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = loaded(folder_recipe(train=folder, max_bad_rows="10%"))
    assert_pictures(data, set(range(20)))
    assert "images/absent.png: no such file" in refused(folder_recipe(train=folder))
    assert "missing column kind; it has image, label" in refused(folder_recipe(train=folder, label="kind"))


@pytest.mark.parametrize("name", ["../outside.png", "ABSOLUTE"])
def test_metadata_stay_within_the_folder(folder_recipe: Make, tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "described", 10)
    Image.fromarray(picture(0)).save(tmp_path / "outside.png")
    named = name.replace("ABSOLUTE", str(tmp_path / "outside.png"))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": named, "label": "a"}) + "\n")
    assert "file_name" in refused(folder_recipe(train=folder))


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: (path / "a").mkdir(parents=True)])
def test_a_folder_without_images(folder_recipe: Make, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "nothing")
    assert "no data files in it" in refused(folder_recipe(train=tmp_path / "nothing"))


def test_images_at_the_top_have_no_class(folder_recipe: Make, folders: tuple[Path, Path]) -> None:
    assert "class 'a' is not in data.classes" not in refused(folder_recipe(train=folders[0] / "b", classes=["a", "c"]))
    assert "class 'b' is not in data.classes" in refused(folder_recipe(train=folders[0] / "b", classes=["a", "c"]))


def test_images_at_the_top_teach_without_a_class(folder_recipe: Make, image_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(12):
        Image.fromarray(picture(number)).save(tmp_path / "flat" / f"{number}.png")
    unlabelled = image_recipe(
        data={"train": tmp_path / "flat", "eval": folder_recipe().data.eval.path}, distill={"hard_weight": 0.0}
    )
    data = loaded(unlabelled)
    assert data.labels is None
    assert {np.asarray(image).tobytes() for image in data.train} == {picture(number).tobytes() for number in range(12)}
    refused(folder_recipe(train=tmp_path / "flat"))


def test_a_folder_counts_by_its_content(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Not by where it lies; by every byte, by the class, and not by what is not read."""
    train, _ = folders
    before = fingerprint(DataSource(path=train))
    moved = tmp_path / "elsewhere" / "other"
    moved.parent.mkdir()
    train.rename(moved)
    assert fingerprint(DataSource(path=moved)) == before
    (moved / "notes.txt").write_text("not read")
    assert fingerprint(DataSource(path=moved)) == before
    (moved / "a" / "test_0.png").rename(moved / "b" / "test_0.png")
    assert fingerprint(DataSource(path=moved)) != before
    (moved / "b" / "test_0.png").rename(moved / "a" / "test_0.png")
    assert fingerprint(DataSource(path=moved)) == before
    image = moved / "a" / "test_0.png"
    image.write_bytes(image.read_bytes() + b"\0")
    assert fingerprint(DataSource(path=moved)) != before


def test_a_folder_that_has_moved_is_read_where_it_is(folder_recipe: Make, folders: tuple[Path, Path]) -> None:
    """Nothing of an earlier run goes on naming the old place."""
    loaded(folder_recipe())
    moved = folders[0].with_name("moved")
    folders[0].rename(moved)
    assert_pictures(loaded(folder_recipe(train=moved)), set(range(40)))


def test_the_same_images_are_no_held_out_data(folder_recipe: Make, folders: tuple[Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="the same content as"):
        Materials(folder_recipe(eval=copy), SILENT).fingerprints  # noqa: B018
