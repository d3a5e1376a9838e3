"""Data in the layout of the hub: in a local folder, and in a cache laid out as huggingface_hub lays it out, offline."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from compressor.errors import DataError
from compressor.materials import Materials
from compressor.progress import SILENT
from compressor.recipe import Recipe
from compressor.recipe_data import DataSource
from compressor.tasks import TaskData, sources, task_for
from compressor.tasks.sources import fingerprint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Make = Callable[..., Recipe]
NAMES = ["zero", "one", "two"]
CARD = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*}
  - {split: test, path: en/test-*}
- config_name: de
  data_files: [{split: train, path: de/*}]
---
# Texts
"""


def texts(prefix: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{prefix} {i}", "label": i % 3} for i in range(count)]


def write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    """A parquet file as `push_to_hub` writes it, with the names of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).cast_column("label", datasets.ClassLabel(names=NAMES)).to_parquet(path)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Without a card: the names of the files say the splits."""
    folder = tmp_path / "plain"
    write_shard(folder / "data" / "train-00000-of-00002.parquet", texts("first", 10))
    write_shard(folder / "data" / "train-00001-of-00002.parquet", texts("second", 10))
    write_shard(folder / "data" / "test-00000-of-00001.parquet", texts("held out", 6))
    return folder


@pytest.fixture
def carded(tmp_path: Path) -> Path:
    """With configs in its card."""
    folder = tmp_path / "carded"
    write_shard(folder / "en" / "train-00000-of-00001.parquet", texts("english", 12))
    write_shard(folder / "en" / "test-00000-of-00001.parquet", texts("held out", 6))
    write_shard(folder / "de" / "all.parquet", texts("deutsch", 12))
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def cache(carded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the data set `org/texts`: blobs under their hash, a snapshot of links to them, a branch."""
    root = tmp_path / "hub"
    repository = root / "datasets--org--texts"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    for path in (path for path in carded.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = repository / "snapshots" / COMMIT / path.relative_to(carded)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sources._snapshot.cache_clear()
    return root


@pytest.fixture
def recipe_of(text_recipe: Make, teacher_folder: Path) -> Make:
    """A text-classification recipe; the teacher's classes are those of the data, in another order."""

    def make(train: Any, held_out: Any, classes: list[str] | None = None, **data: Any) -> Recipe:
        config = json.loads((teacher_folder / "config.json").read_text())
        names = classes or ["two", "one", "zero"]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        (teacher_folder / "config.json").write_text(json.dumps(config))
        return text_recipe("text-classification", data={"train": train, "eval": held_out, **data})

    return make


def loaded(recipe: Recipe) -> TaskData:
    return task_for(recipe).load_data(recipe.out / "cache", SILENT)


def refused(recipe: Recipe) -> str:
    with pytest.raises(DataError) as raised:
        Materials(recipe, SILENT).fingerprints  # noqa: B018
    assert "\n" not in str(raised.value)
    assert not recipe.out.exists()
    return str(raised.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_by_the_names_of_files(recipe_of: Make, plain: Path, streaming: bool) -> None:
    train, held_out = {"path": plain, "split": "train"}, {"path": plain, "split": "test"}
    data = loaded(recipe_of(train, held_out, streaming=streaming, max_train=100))
    rows = [*texts("first", 10), *texts("second", 10)]
    assert sorted(data.train) == sorted(row["text"] for row in rows)
    assert data.labels is not None
    number = {row["text"]: 2 - row["label"] for row in rows}  # by name: the teacher's order is the other way round
    assert data.labels.tolist() == [number[text] for text in data.train]
    assert data.eval_inputs == [f"held out {i}" for i in range(6)]
    assert data.truth.tolist() == [2, 1, 0, 2, 1, 0]
    assert data.described["training"] == "20 texts of plain train"


def test_numbers_count_where_no_name_is_the_teachers(recipe_of: Make, plain: Path) -> None:
    train, held_out = {"path": plain, "split": "train"}, {"path": plain, "split": "test"}
    data = loaded(recipe_of(train, held_out, ["LABEL_0", "LABEL_1", "LABEL_2"]))
    assert data.truth.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_name_that_is_not_the_teachers_beside_one_that_is(recipe_of: Make, plain: Path) -> None:
    recipe = recipe_of({"path": plain, "split": "train"}, {"path": plain, "split": "test"}, ["two", "1", "zero"])
    with pytest.raises(DataError, match="expected one of two, 1, zero, got 'one'"):
        loaded(recipe)


def test_configs_of_a_card(recipe_of: Make, carded: Path) -> None:
    train = {"path": carded, "config": "de"}
    data = loaded(recipe_of(train, {"path": carded, "config": "en", "split": "test"}))
    assert sorted(data.train) == sorted(row["text"] for row in texts("deutsch", 12))
    assert data.eval_inputs == [f"held out {i}" for i in range(6)]
    assert data.described["evaluation"].startswith("6 texts of carded config en test")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.parametrize("streaming", [False, True])
def test_by_a_name_on_the_hub(recipe_of: Make, carded: Path, revision: str | None, streaming: bool) -> None:
    """Of the content that the local folder has, which is the same to a run; the commit is recorded."""
    train = {"hub": "org/texts", "config": "en", "split": "train", "revision": revision}
    held_out = {"hub": "org/texts", "config": "en", "split": "test", "revision": revision}
    recipe = recipe_of(train, held_out, streaming=streaming, max_train=100)
    data = loaded(recipe)
    assert sorted(data.train) == sorted(row["text"] for row in texts("english", 12))
    assert data.described["training"] == f"12 texts of org/texts@{COMMIT} config en train"
    assert fingerprint(recipe.data.train) == fingerprint(DataSource(path=carded, config="en", split="train"))
    assert fingerprint(recipe.data.train) != fingerprint(recipe.data.eval)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("source", [{"hub": "org/absent"}, {"hub": "org/texts", "revision": "v2"}])
def test_what_cannot_be_fetched_is_one_line(recipe_of: Make, plain: Path, source: dict[str, str]) -> None:
    message = refused(recipe_of(source, {"path": plain, "split": "test"}))
    assert f"data: {source['hub']}" in message
    assert "cannot be fetched from the hub" in message
    assert "download the folder and name it as path" in message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "Please pick one among the available configs: ['en', 'de']"),
        ({"config": "fr"}, "BuilderConfig 'fr' not found. Available: ['en', 'de']"),
        ({"config": "en"}, "has the splits train, test; name one with split"),
        ({"config": "en", "split": "dev"}, "has no split dev; it has train, test"),
        ({"config": "de", "split": "test"}, "has no split test; it has train"),
    ],
)
def test_what_is_not_there_is_said(recipe_of: Make, carded: Path, source: dict[str, str], words: str) -> None:
    assert words in refused(recipe_of({"path": carded, **source}, {"path": carded, "config": "en", "split": "test"}))


def test_a_file_has_no_splits(recipe_of: Make, carded: Path) -> None:
    path = carded / "de" / "all.parquet"
    message = refused(recipe_of({"path": path, "split": "train"}, {"path": carded, "config": "en", "split": "test"}))
    assert "a file has no configs and no splits" in message


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("---\nconfigs: [\n---\n", "front matter cannot be read"),
        ("---\nconfigs: 3\n---\n", "not readable as a data set"),
        ("---\nconfigs:\n- config_name: en\n  data_files: absent/*\n---\n", "not readable as a data set"),
        ("---\nconfigs:\n- config_name: en\n  data_files: ../outside.parquet\n---\n", "lies outside of it"),
        ("---\nconfigs:\n- config_name: en\n  data_files: OUTSIDE\n---\n", "lies outside of it"),
    ],
)
def test_cards_that_do_not_fit(recipe_of: Make, carded: Path, card: str, words: str) -> None:
    outside = carded.parent / "outside.parquet"
    write_shard(outside, texts("outside", 12))
    (carded / "README.md").write_text(card.replace("OUTSIDE", str(outside)))
    assert words in refused(recipe_of({"path": carded, "config": "en"}, {"path": carded, "split": "test"}))


def test_nothing_that_comes_along_runs(recipe_of: Make, carded: Path, tmp_path: Path) -> None:
    """A script of the folder's own name is what the library once ran; pickles are data files to it."""
    mark = tmp_path / "ran"
    held_out = {"path": carded, "config": "en", "split": "test"}
    scripted = tmp_path / "scripted"
    scripted.mkdir()
    (scripted / "scripted.py").write_text(f"open({str(mark)!r}, 'w')\n")
    assert "scripted" in refused(recipe_of(scripted, held_out))
    pickled = tmp_path / "pickled" / "data"
    pickled.mkdir(parents=True)
    (pickled / "train.pkl").write_bytes(pickle.dumps({"text": ["a"]}))
    assert "pickled" in refused(recipe_of({"path": pickled.parent, "split": "train"}, held_out))
    assert not mark.exists()


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), number, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images in the table, as `push_to_hub` writes them; one of the twenty is damaged."""
    folder = tmp_path / "images"
    (folder / "data").mkdir(parents=True)
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["c", "b", "a"])})
    for split, first, count in (("train", 0, 20), ("test", 100, 6)):
        content = [
            {"bytes": png(i) if i != 7 else png(i)[:40], "path": f"{i}.png"} for i in range(first, first + count)
        ]
        table = datasets.Dataset.from_dict({"img": content, "kind": [i % 3 for i in range(count)]}, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_a_table(image_recipe: Make, images: Path, streaming: bool) -> None:
    """By the names of their classes, whose order is the recipe's; the damaged one is named by its row."""
    columns = {"image": "img", "label": "kind", "streaming": streaming, "max_train": 100}
    splits = {"train": {"path": images, "split": "train"}, "eval": {"path": images, "split": "test"}}
    with pytest.raises(DataError, match=r"1 of 20 images \(row 8: "):
        loaded(image_recipe(data={**columns, **splits}))
    data = loaded(image_recipe(data={**columns, **splits, "max_bad_rows": "5%"}))
    assert data.labels is not None
    shades = [int(np.asarray(image)[0, 0, 0]) for image in data.train]
    assert sorted(shades) == [i for i in range(20) if i != 7]
    assert data.labels.tolist() == [2 - i % 3 for i in shades]
    assert data.truth.tolist() == [2, 1, 0, 2, 1, 0]


def test_a_path_in_a_table_is_not_opened(image_recipe: Make, tmp_path: Path, images: Path) -> None:
    """It could be that of any file."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    table = datasets.Dataset.from_dict({"image": [str(secret)] * 12, "label": [0, 1, 2] * 4})
    table.to_parquet(tmp_path / "paths.parquet")
    held_out = {"path": images, "split": "test"}
    with pytest.raises(DataError, match="no image in it"):
        loaded(image_recipe(data={"train": tmp_path / "paths.parquet", "eval": held_out}))
