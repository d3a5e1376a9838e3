"""Training rows read one by one: how many, which, in what order, and what is not read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic_core import to_jsonable_python
from ruamel.yaml import YAML

from compressor.errors import DataError, RecipeError
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe
from compressor.recipe_data import DataSource
from compressor.tasks import TaskData, tables, task_for
from compressor.tasks.tables import stream_rows

Make = Callable[..., Recipe]
Rows = Callable[[str, list[dict[str, Any]]], Path]
PAIRS = [{"sentence1": f"a{i}", "sentence2": f"b{i % 3}", "label": i % 2} for i in range(8)]


def sentences(count: int) -> list[dict[str, Any]]:
    return [{"text": f"sentence number {i}"} for i in range(count)]


def loaded(recipe: Recipe, progress: Progress = SILENT) -> TaskData:
    return task_for(recipe).load_data(recipe.out / "cache", progress)


@pytest.fixture
def streamed(text_recipe: Make, rows_file: Rows) -> Make:
    """A sentence-embedding recipe that streams `max_train` sentences of train.jsonl."""
    rows_file("eval.jsonl", PAIRS)

    def make(max_train: int, seed: int = 0, **data: Any) -> Recipe:
        return text_recipe(data={"streaming": True, "max_train": max_train, **data}, distill={"seed": seed})

    return make


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BUFFER", 50)


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"train{suffix}"
    table = datasets.Dataset.from_list(rows)
    if suffix == ".csv":
        table.to_csv(path)
    elif suffix == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.usefixtures("small_buffer")
def test_every_row_once_and_by_its_number(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, [{"other": i, "text": f"text {i}"} for i in range(1, 301)])
    found = list(stream_rows(DataSource(path=path), ("text",), 3))
    assert sorted(int(name) for name, _ in found) == list(range(1, 301))
    assert all(values == (f"text {name}",) for name, values in found)
    assert [name for name, _ in found] != sorted((name for name, _ in found), key=int)
    # Of 50 rows ahead the one that is drawn first is within the first 51; rows do move by more than a few places.
    assert int(found[0][0]) <= 51
    assert max(abs(int(name) - place) for place, (name, _) in enumerate(found, 1)) > 20


@pytest.mark.usefixtures("small_buffer")
def test_rows_of_several_files_are_named_by_both(tmp_path: Path) -> None:
    folder = tmp_path / "data set"
    folder.mkdir()
    for part in range(4):
        rows = [{"text": f"{part}.{i}"} for i in range(1, 21)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"train-{part}.parquet")
    found = list(stream_rows(DataSource(path=folder), ("text",), 0))
    assert sorted(name for name, _ in found) == sorted(
        f"{i} of train-{part}.parquet" for part in range(4) for i in range(1, 21)
    )
    for name, (text,) in found:
        row, _, file = name.split()
        assert file == f"train-{text.split('.')[0]}.parquet"
        assert row == text.split(".")[1]


def test_as_many_distinct_sentences_as_asked_for(streamed: Make, rows_file: Rows) -> None:
    rows_file("train.jsonl", [*sentences(40), *sentences(40)])
    data = loaded(streamed(30))
    assert len(data.train) == len(set(data.train)) == 30
    assert set(data.train) < {row["text"] for row in sentences(40)}
    assert sorted(loaded(streamed(100)).train) == sorted(row["text"] for row in sentences(40)), "no more than there are"


def test_the_order_depends_on_the_seed_alone(streamed: Make, rows_file: Rows) -> None:
    rows_file("train.jsonl", sentences(200))
    first = loaded(streamed(50)).train
    assert loaded(streamed(50)).train == first
    assert loaded(streamed(20)).train == first[:20], "fewer of them are the first"
    assert loaded(streamed(50, seed=1)).train != first


@pytest.mark.usefixtures("small_buffer")
def test_nothing_is_read_behind_what_is_needed(streamed: Make, tmp_path: Path) -> None:
    """A line in the far end that no reader would take: without streaming it is found, with it never reached.

    The library reads .jsonl in pieces of 10 MB.
    """
    with (tmp_path / "train.jsonl").open("w") as file:
        for i in range(60_000):
            file.write(json.dumps({"text": f"sentence number {i} " + "x" * 400}) + "\n")
        file.write("{no json\n")
    assert len(loaded(streamed(1000)).train) == 1000
    with pytest.raises(DataError, match=r"not readable as \.jsonl"):
        loaded(streamed(60_000))


def test_no_converted_copy_of_the_training_data(streamed: Make, rows_file: Rows) -> None:
    rows_file("train.jsonl", sentences(5000))
    recipe = streamed(50)
    loaded(recipe)
    copies = list((recipe.out / "cache").rglob("*.arrow"))
    assert len(copies) == 1, "that of the evaluation data"
    assert len(datasets.Dataset.from_file(str(copies[0]))) == len(PAIRS)


def test_bad_rows_are_counted_named_and_bounded(
    streamed: Make, rows_file: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = sentences(100)
    rows[6], rows[41] = {"text": " "}, {"text": None}
    rows_file("train.jsonl", rows)
    with pytest.raises(DataError, match=r"2 of 100 rows without text \(row (7, 42|42, 7)\); expected at most 1.0%"):
        loaded(streamed(100))
    data = loaded(streamed(100, max_bad_rows="2%"), Progress())
    assert len(data.train) == 98
    assert "left out 2 of 100 rows without text (row " in capsys.readouterr().err


def test_bad_rows_are_those_that_were_read(streamed: Make, rows_file: Rows) -> None:
    """As a share of the rows that it took, not of the file."""
    rows_file("train.jsonl", [row for i in range(50) for row in (*sentences(1), {"text": f"other {i}"}, {"text": ""})])
    with pytest.raises(DataError) as raised:
        loaded(streamed(5))
    bad, _, read = str(raised.value).split(": ")[1].split()[:3]
    assert 0 < int(bad) < int(read) < 150


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_missing_column_names_those_there_are(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, [{"other": 1, "text": "a"}])
    with pytest.raises(DataError, match="missing column sentence; it has other, text"):
        list(stream_rows(DataSource(path=path), ("text", "sentence"), 0))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n'),
        ("a.csv", b"text,label\na,1\nb,2,3,4\n"),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.parquet", b"PAR1 and no more"),
        ("a.jsonl", b""),
        ("a.txt", b"a\n"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        list(stream_rows(DataSource(path=tmp_path / name), ("text",), 0))
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("task", ["sentence-embedding", "text-classification"])
def test_where_to_stop_must_be_said(text_recipe: Make, task: str) -> None:
    with pytest.raises(RecipeError, match=r"streaming needs to know where to stop: set data\.max_train"):
        text_recipe(task, data={"streaming": True})


def test_where_to_stop_must_be_said_of_images(image_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"set data\.max_train"):
        image_recipe(data={"streaming": True})


def test_an_array_file_is_read_whole(image_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"an \.npz is read whole; leave data\.streaming out"):
        loaded(image_recipe(data={"streaming": True, "max_train": 10}))


def test_labels_go_with_their_texts(text_recipe: Make, rows_file: Rows, teacher_folder: Path) -> None:
    config = json.loads((teacher_folder / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes"}
    (teacher_folder / "config.json").write_text(json.dumps(config))
    rows_file("train.jsonl", [{"text": f"{i}", "label": ("no", "yes")[i % 2]} for i in range(100)])
    rows_file("eval.jsonl", [{"text": "x", "label": 1}])
    data = loaded(text_recipe("text-classification", data={"streaming": True, "max_train": 30}))
    assert data.labels is not None
    assert len(data.train) == len(set(data.train)) == 30
    assert data.labels.tolist() == [int(text) % 2 for text in data.train]


def in_a_process_of_its_own(path: Path, seed: str) -> Any:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("stream_process.py"), path],
        env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_two_processes_read_the_same(streamed: Make, tmp_path: Path) -> None:
    """Over several files, more rows than are read ahead, and whatever order a process gives its sets."""
    folder = tmp_path / "many"
    folder.mkdir()
    for part in range(5):
        rows = [{"text": f"sentence {i} of {part}"} for i in range(3000)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"train-{part}.parquet")
    recipe = streamed(2000, train=folder)
    path = tmp_path / "recipe.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(to_jsonable_python(recipe.model_dump(exclude_defaults=True)), file)
    first, second = (in_a_process_of_its_own(path, seed) for seed in ("1", "2"))
    assert first == second
    assert first["texts"] == list(loaded(recipe).train)
    assert len({text.rpartition(" ")[2] for text in first["texts"]}) > 1, "of several files"
