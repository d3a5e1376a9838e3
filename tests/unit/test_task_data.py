"""From a recipe's data files to what stages train and judge on, and everything that can be wrong with them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import DataError, TeacherError
from compressor.progress import SILENT
from compressor.recipe import Recipe
from compressor.tasks import TaskData, task_for

Rows = Callable[[str, list[dict[str, Any]]], Path]
Make = Callable[..., Recipe]

SENTENCES = [{"text": f"sentence number {i}"} for i in range(20)]
PAIRS = [{"sentence1": f"a{i}", "sentence2": f"b{i % 3}", "label": i % 2} for i in range(8)]


def loaded(recipe: Recipe) -> TaskData:
    return task_for(recipe).load_data(recipe.out / "cache", SILENT)


def refused(recipe: Recipe) -> str:
    with pytest.raises(DataError) as raised:
        loaded(recipe)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_pairs(text_recipe: Make, rows_file: Rows) -> None:
    rows_file("train.jsonl", [*SENTENCES, *SENTENCES, {"text": "  "}, {"text": None}])
    rows_file("eval.jsonl", [*PAIRS, {"sentence1": "x", "sentence2": "y", "label": 7}])
    data = loaded(text_recipe(data={"max_bad_rows": "20%"}))
    assert sorted(data.train) == sorted(row["text"] for row in SENTENCES), "each once, none empty"
    assert data.holdout == 1
    assert data.truth.tolist() == [row["label"] for row in PAIRS]
    assert data.pairs is not None
    assert [(data.eval_inputs[a], data.eval_inputs[b]) for a, b in data.pairs] == [
        (row["sentence1"], row["sentence2"]) for row in PAIRS
    ]
    assert len(set(data.eval_inputs)) == len(data.eval_inputs)


def test_the_order_depends_on_the_seed_alone(text_recipe: Make, rows_file: Rows) -> None:
    rows_file("train.jsonl", SENTENCES)
    rows_file("eval.jsonl", PAIRS)
    assert loaded(text_recipe()).train == loaded(text_recipe()).train
    assert loaded(text_recipe()).train != loaded(text_recipe(distill={"seed": 1})).train
    assert loaded(text_recipe(data={"max_train": 7})).train == loaded(text_recipe()).train[:7]


def test_an_evaluation_sentence_may_be_empty(text_recipe: Make, rows_file: Rows) -> None:
    """A row without a sentence says nothing; it must not end in a traceback, and it is told."""
    rows_file("train.jsonl", SENTENCES)
    rows_file(
        "eval.jsonl",
        [
            *PAIRS,
            {"sentence1": "", "sentence2": "y", "label": 1},
            {"sentence1": None, "label": 0},
            {**PAIRS[0], "sentence2": " "},
        ],
    )
    assert "3 of 11 rows without text (row 9, 10, 11); expected at most 1.0%" in refused(text_recipe())
    assert len(loaded(text_recipe(data={"max_bad_rows": "30%"})).truth) == len(PAIRS)


def test_bad_rows_are_counted_named_and_bounded(text_recipe: Make, rows_file: Rows) -> None:
    """Of two columns one that is empty makes a row a bad one; its other sentence is used."""
    rows = [{"a": f"first {i}", "b": f"second {i}"} for i in range(100)]
    for i in range(0, 70, 10):
        rows[i] = {**rows[i], "b": " "}
    rows_file("train.jsonl", rows)
    rows_file("eval.jsonl", PAIRS)
    columns = {"text": ["a", "b"]}
    assert "7 of 100 rows without text (row 1, 11, 21, 31, 41, ...)" in refused(text_recipe(data=columns))
    assert len(loaded(text_recipe(data={**columns, "max_bad_rows": 0.07})).train) == 193
    assert "7 of 100" in refused(text_recipe(data={**columns, "max_bad_rows": 0.069}))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([{**row, "label": 1} for row in PAIRS], "found 1; set data.positive and data.negative"),
        ([{**row, "label": "entailment"} for row in PAIRS], "found 'entailment'"),
        ([{**row, "label": [1]} for row in PAIRS], "expected rows with label 1 and 0"),
        ([{"sentence1": "a", "label": 1}], "missing column sentence2"),
    ],
)
def test_pairs_that_cannot_be_judged(
    text_recipe: Make, rows_file: Rows, pairs: list[dict[str, Any]], words: str
) -> None:
    rows_file("train.jsonl", SENTENCES)
    rows_file("eval.jsonl", pairs)
    assert words in refused(text_recipe())


@pytest.mark.parametrize(
    "groups", [{"distill": {"batch_size": 11}}, {"data": {"max_train": 3}}, {"data": {"max_train": 1}}]
)
def test_too_few_sentences_for_a_step(text_recipe: Make, rows_file: Rows, groups: dict[str, Any]) -> None:
    rows_file("train.jsonl", SENTENCES)
    rows_file("eval.jsonl", PAIRS)
    assert "at least two batches" in refused(text_recipe(**groups))


LABELLED = [{"text": f"text {i}", "label": i % 3} for i in range(12)]


@pytest.fixture
def with_classes(teacher_folder: Path) -> None:
    """Numbered as strings, eleven of them: 10 must come after 9, not after 1."""
    config = json.loads((teacher_folder / "config.json").read_text())
    config["id2label"] = {str(i): f"class {i}" for i in range(11)}
    (teacher_folder / "config.json").write_text(json.dumps(config))


@pytest.mark.usefixtures("with_classes")
def test_labels_are_names_or_numbers(text_recipe: Make, rows_file: Rows) -> None:
    rows_file("train.jsonl", LABELLED)
    rows_file("eval.jsonl", [{"text": "x", "label": "class 10"}, {"text": "y", "label": "class 2"}])
    data = loaded(text_recipe("text-classification"))
    assert data.truth.tolist() == [10, 2]
    assert data.labels is not None
    number = {row["text"]: row["label"] for row in LABELLED}
    assert data.labels.tolist() == [number[text] for text in data.train]


def test_where_names_are_numbers_a_number_is_a_name(text_recipe: Make, rows_file: Rows, teacher_folder: Path) -> None:
    """Stars from one to three: the label 1 is the class `1`, whose number is 0."""
    config = json.loads((teacher_folder / "config.json").read_text())
    config["id2label"] = {"0": "1", "1": "2", "2": "3"}
    (teacher_folder / "config.json").write_text(json.dumps(config))
    rows_file("train.jsonl", [{"text": f"text {i}", "label": i % 3 + 1} for i in range(12)])
    rows_file("eval.jsonl", [{"text": f"held out {i}", "label": i % 3 + 1} for i in range(6)])
    recipe = text_recipe("text-classification")
    assert loaded(recipe).truth.tolist() == [0, 1, 2, 0, 1, 2]
    rows_file("eval.jsonl", [{"text": "x", "label": 0}])
    assert "expected one of 1, 2, 3, got 0" in refused(recipe)


@pytest.mark.usefixtures("with_classes")
@pytest.mark.parametrize("label", [11, -1, True, "positive", 1.5, None])
def test_labels_that_are_no_class(text_recipe: Make, rows_file: Rows, label: Any) -> None:
    rows_file("train.jsonl", [*LABELLED, {"text": "x", "label": label}] if not isinstance(label, str) else LABELLED)
    rows_file("eval.jsonl", [{"text": "x", "label": label}])
    assert "expected one of class 0" in refused(text_recipe("text-classification"))


NO_LABELS_LEARNT = {"hard_weight": 0.0}
HOW_TO_DO_WITHOUT = "or set distill.hard_weight to 0 and distill.control to false: then no labels are needed"


@pytest.mark.usefixtures("with_classes")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("others", [{}, {"label": None}, {"label": "of another task"}], ids=str)
def test_texts_need_labels_where_they_are_learnt_from_alone(
    text_recipe: Make, rows_file: Rows, others: dict[str, Any], streaming: bool
) -> None:
    """Those of the training texts; what is judged needs them."""
    rows_file("train.jsonl", [{"text": row["text"], **others} for row in LABELLED])
    rows_file("eval.jsonl", LABELLED)
    source = {"streaming": streaming, "max_train": 12}

    def recipe(**distill: Any) -> Recipe:
        return text_recipe("text-classification", data=source, distill=distill)

    data = loaded(recipe(**NO_LABELS_LEARNT))
    assert sorted(data.train) == sorted(row["text"] for row in LABELLED)
    assert data.labels is None
    for learnt in ({}, {**NO_LABELS_LEARNT, "control": True}):
        said = refused(recipe(**learnt))
        assert ("missing column label; it has text" in said and said.endswith(HOW_TO_DO_WITHOUT)) == (not others)
    rows_file("eval.jsonl", [{"text": row["text"]} for row in LABELLED])
    assert refused(recipe(**NO_LABELS_LEARNT)).endswith("it has text: name yours under data")


@pytest.mark.usefixtures("with_classes")
@pytest.mark.parametrize("max_train", [1, 3])
def test_too_few_texts_for_a_step(text_recipe: Make, rows_file: Rows, max_train: int) -> None:
    rows_file("train.jsonl", LABELLED)
    rows_file("eval.jsonl", LABELLED)
    assert "at least two batches" in refused(text_recipe("text-classification", data={"max_train": max_train}))


@pytest.mark.parametrize("config", ["{", "{}", '{"id2label": []}', "[]", '{"id2label": {"x": "a"}}', None])
def test_a_teacher_without_class_names(
    text_recipe: Make, rows_file: Rows, teacher_folder: Path, config: str | None
) -> None:
    rows_file("train.jsonl", LABELLED)
    rows_file("eval.jsonl", LABELLED)
    if config is None:
        (teacher_folder / "config.json").unlink()
    else:
        (teacher_folder / "config.json").write_text(config)
    with pytest.raises(TeacherError):
        loaded(text_recipe("text-classification"))


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


GOOD = {"images": images(9, 4, 4), "labels": np.arange(9) % 3}


def write_images(folder: Path, **changes: Any) -> None:
    np.savez(folder / "eval.npz", **GOOD)
    np.savez(folder / "train.npz", **{k: v for k, v in {**GOOD, **changes}.items() if v is not None})


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_images(image_recipe: Make, tmp_path: Path, dtype: Any) -> None:
    write_images(tmp_path, labels=GOOD["labels"].astype(dtype))
    data = loaded(image_recipe())
    assert data.labels is not None
    assert data.labels.dtype == data.truth.dtype == np.int64
    assert np.asarray(data.train).shape == (9, 4, 4, 1)
    first = {GOOD["images"][i].tobytes(): int(GOOD["labels"][i]) for i in range(9)}
    assert [first[np.asarray(image).tobytes()] for image in data.train] == data.labels.tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.arange(9) % 4}, "labels from 0 to 3, but data.classes names 3"),
        ({"labels": np.arange(9) % 3 - 1}, "labels from -1 to 1"),
        ({"labels": np.zeros(8, np.int64)}, "expected 9 integer labels"),
        ({"labels": np.zeros(9)}, "expected 9 integer labels, got float64"),
        ({"labels": np.zeros((9, 1), np.int64)}, "expected 9 integer labels"),
        ({"labels": None}, "missing array"),
        ({"images": None}, "missing array"),
        ({"images": images(9, 5, 4)}, "but data.size is (4, 4)"),
        ({"images": images(9, 4, 4, 3)}, "images are (4, 4, 3)"),
        ({"images": images(9, 4)}, "expected images uint8"),
        ({"images": images(9, 4, 4).astype(np.float32)}, "got float32"),
        ({"images": images(0, 4, 4), "labels": np.zeros(0, np.int64)}, "expected images uint8"),
        ({"images": images(3, 4, 4), "labels": np.arange(3)}, "at least two batches"),
        ({"images": np.array([object()] * 9, dtype=object)}, "not an .npz of plain arrays"),
    ],
)
def test_images_that_do_not_fit(image_recipe: Make, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_images(tmp_path, **changes)
    assert words in refused(image_recipe())


def test_images_need_labels_where_they_are_learnt_from_alone(image_recipe: Make, tmp_path: Path) -> None:
    write_images(tmp_path, labels=None)
    data = loaded(image_recipe(distill=NO_LABELS_LEARNT))
    assert data.labels is None
    assert {image.tobytes() for image in np.asarray(data.train)} == {image.tobytes() for image in GOOD["images"]}
    said = refused(image_recipe())
    assert said == f"{tmp_path}/train.npz: missing array labels; it has images, {HOW_TO_DO_WITHOUT}"
    (tmp_path / "train.npz").rename(tmp_path / "eval.npz")
    np.savez(tmp_path / "train.npz", **GOOD)
    assert refused(image_recipe()) == f"{tmp_path}/eval.npz: missing array labels; it has images"


@pytest.mark.parametrize("max_train", [1, 3])
def test_too_few_images_for_a_step(image_recipe: Make, tmp_path: Path, max_train: int) -> None:
    write_images(tmp_path)
    assert "at least two batches" in refused(image_recipe(data={"max_train": max_train}))


def test_means_and_deviations_of_another_number_of_channels(image_recipe: Make, tmp_path: Path) -> None:
    write_images(tmp_path)
    assert "data.std 2 channels" in refused(image_recipe(data={"std": [0.5, 0.5]}))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"\x93NUMPY\x01\x00"])
def test_files_that_hold_no_images(image_recipe: Make, tmp_path: Path, content: bytes) -> None:
    write_images(tmp_path)
    (tmp_path / "train.npz").write_bytes(content)
    assert "train.npz" in refused(image_recipe())


def test_a_single_array_is_no_archive(image_recipe: Make, tmp_path: Path) -> None:
    write_images(tmp_path)
    with (tmp_path / "train.npz").open("wb") as file:
        np.save(file, GOOD["images"])
    assert "not an .npz of plain arrays" in refused(image_recipe())


def test_no_file_of_images(image_recipe: Make, tmp_path: Path) -> None:
    assert "found none" in refused(image_recipe())
    write_images(tmp_path)
    (tmp_path / "eval.npz").unlink()
    assert "eval.npz" in refused(image_recipe())


@pytest.mark.parametrize("seed", range(40))
def test_damaged_images_are_refused_in_words(image_recipe: Make, tmp_path: Path, seed: int) -> None:
    """Compressed, cut off or with some bytes overwritten: whatever zlib and zipfile stumble over."""
    write_images(tmp_path)
    generator = np.random.default_rng(seed)
    path = tmp_path / "train.npz"
    np.savez_compressed(path, **GOOD)
    content = bytearray(path.read_bytes())
    if seed % 4 == 0:
        content = content[: generator.integers(1, len(content))]
    else:
        with zipfile.ZipFile(path) as archive:  # within the compressed images, where a checksum finds it
            start = archive.getinfo("images.npy").header_offset + 50
        for _ in range(6):
            content[start + generator.integers(0, 100)] ^= int(generator.integers(1, 256))
    path.write_bytes(content)
    assert "train.npz" in refused(image_recipe())
