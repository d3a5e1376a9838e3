"""Hostile arrays, weights, rows, recipes, images and pickles are refused; nothing in them runs."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import pytest
from chosen import chosen
from made_arrays import HOSTILE as ARRAYS
from made_arrays import Payload
from made_gguf import HOSTILE as GGUF
from made_gguf import WHOLE as WHOLE_GGUF
from made_gguf import honest as honest_gguf
from made_images import HONEST as HONEST_IMAGES
from made_images import HOSTILE as IMAGES
from made_onnx import product, saved
from made_parquet import HONEST as HONEST_PARQUET
from made_parquet import HOSTILE as PARQUET
from made_teachers import DAMAGED, LARGER, honest_bert
from made_texts import (
    CARDS,
    FOLDERS,
    HONEST_CARDS,
    HONEST_WEIGHTS,
    MARK,
    RECIPES,
    TABLES,
    WEIGHTS,
    unpickled_weights,
)
from measured import MOST_S, assert_refused, run_measured

from compressor.errors import DataError, RecipeError, TeacherError
from compressor.images import decode_image
from compressor.intake.files import check_within
from compressor.intake.gguf import check_gguf
from compressor.intake.json_text import check_json
from compressor.intake.safetensors import check_safetensors
from compressor.intake.tables import check_table
from compressor.model_inputs import read_examples
from compressor.onnx_file import describe_onnx
from compressor.recipe_data import DataSource
from compressor.recipe_file import read_recipe
from compressor.students.on_disk import load_student_folder
from compressor.tasks.sources import open_split
from compressor.teachers.folder import card_licenses, check_folder, load_folder
from compressor.teachers.gguf import load_gguf


@pytest.mark.parametrize("case", ARRAYS)
def test_hostile_arrays_are_refused(case: str, folder: Path) -> None:
    model = describe_onnx(saved(folder, product()), "float32", "float32")
    path = ARRAYS[case](folder)
    with pytest.raises(DataError) as raised:
        read_examples(path, model)
    assert "\n" not in str(raised.value)
    assert not (folder / MARK).exists()


@pytest.mark.parametrize("case", WEIGHTS)
def test_hostile_weights_are_refused(case: str, folder: Path) -> None:
    with pytest.raises(TeacherError) as raised:
        check_safetensors(WEIGHTS[case](folder), TeacherError)
    assert "\n" not in str(raised.value)


def test_honest_weights_pass(folder: Path) -> None:
    check_safetensors(HONEST_WEIGHTS(folder), TeacherError)


@pytest.mark.parametrize("case", FOLDERS)
def test_hostile_folders_of_models_are_refused(case: str, folder: Path) -> None:
    FOLDERS[case](folder)
    with pytest.raises(TeacherError) as raised:
        check_folder(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", {**LARGER, **DAMAGED})
def test_settings_of_a_model_that_its_weights_do_not_fill_are_refused(case: str, folder: Path) -> None:
    {**LARGER, **DAMAGED}[case](folder)
    with pytest.raises(TeacherError) as raised:
        load_folder(folder, "text-classification", None)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", LARGER)
def test_such_a_student_is_refused(case: str, folder: Path) -> None:
    config = json.loads(LARGER[case](folder).read_text())
    (folder / "config.json").write_text(json.dumps({**config, "student_parts": {"embedding": 4}}))
    with pytest.raises(TeacherError):
        load_student_folder(folder, "text-classification", None)


def test_an_honest_model_of_these_settings_is_loaded(folder: Path) -> None:
    honest_bert(folder)
    assert load_folder(folder, "text-classification", None).config.num_hidden_layers == 1


@pytest.mark.parametrize("case", GGUF)
def test_hostile_gguf_is_refused(case: str, folder: Path) -> None:
    path = GGUF[case](folder)
    if case in WHOLE_GGUF:
        check_gguf(path, TeacherError)
    with pytest.raises(TeacherError) as raised:
        load_gguf(path) if case in WHOLE_GGUF else check_gguf(path, TeacherError)
    assert "\n" not in str(raised.value)
    assert not (folder / MARK).exists()


def test_honest_gguf_is_loaded(folder: Path) -> None:
    path = honest_gguf(folder)
    tensors, numbers = check_gguf(path, TeacherError)
    model = load_gguf(path)
    assert tensors == len(model.state_dict())
    assert numbers == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", TABLES)
def test_hostile_rows_are_refused(case: str, folder: Path) -> None:
    with pytest.raises(DataError) as raised:
        check_table(TABLES[case](folder), DataError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", PARQUET)
def test_hostile_parquet_is_refused(case: str, folder: Path) -> None:
    with pytest.raises(DataError) as raised:
        check_table(PARQUET[case](folder), DataError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", HONEST_PARQUET)
def test_honest_parquet_passes(case: str, folder: Path) -> None:
    check_table(HONEST_PARQUET[case](folder), DataError)


@pytest.mark.parametrize("case", CARDS)
def test_hostile_cards_are_refused(case: str, folder: Path) -> None:
    CARDS[case](folder)
    with pytest.raises(TeacherError) as raised:
        card_licenses(folder)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"README\.md: "):
        open_split(DataSource(path=folder))


def test_yaml_that_the_library_reads_beside_a_card_is_refused(folder: Path) -> None:
    CARDS["aliases of aliases"](folder).rename(folder / ".huggingface.yaml")
    with pytest.raises(DataError, match=r"\.huggingface\.yaml: is not read"):
        open_split(DataSource(path=folder))


@pytest.mark.parametrize("case", HONEST_CARDS)
def test_honest_cards_pass(case: str, folder: Path) -> None:
    HONEST_CARDS[case](folder)
    assert card_licenses(folder) == ("mit",)


@pytest.mark.parametrize(
    "text",
    ['{"text": "[[[[ {{{ \\" [ \\\\"}\n' * 10, '[\n {"a": 1},\n {"a": [[1]]}\n]\n', '{"a": "' + "[" * 5000 + '"}'],
)
def test_brackets_in_texts_are_texts(text: str, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(text)
    check_table(folder / "rows.jsonl", DataError)


@pytest.mark.parametrize("case", RECIPES)
def test_hostile_recipes_are_refused(case: str, folder: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        read_recipe(RECIPES[case](folder))
    assert "\n" not in str(raised.value)
    assert not (folder / MARK).exists()


def test_a_file_is_within_its_folder_or_a_link_of_the_hub_s_cache(folder: Path) -> None:
    outside = folder.parent / "outside.json"
    outside.write_text("{}")
    (folder / "link.json").symlink_to(outside)
    with pytest.raises(TeacherError, match="leads out of"):
        check_within(folder / "link.json", folder, TeacherError)
    (folder / "circle.json").symlink_to("circle.json")
    with pytest.raises(TeacherError, match="leads nowhere"):
        check_within(folder / "circle.json", folder, TeacherError)
    snapshot, blobs = folder / "models--a--b" / "snapshots" / "c0ffee", folder / "models--a--b" / "blobs"
    for one in (snapshot, blobs):
        one.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    check_within(snapshot / "config.json", snapshot, TeacherError)


def test_a_settings_file_has_each_key_once(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text('{"a": Infinity, "b": {"c": [1, 2]}}')
    check_json(path, 1000, TeacherError)
    with pytest.raises(TeacherError, match="at most 10 bytes"):
        check_json(path, 10, TeacherError)
    path.write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(TeacherError, match="duplicate key 'c'"):
        check_json(path, 1000, TeacherError)


@pytest.mark.parametrize("case", IMAGES)
def test_hostile_images_are_refused(case: str) -> None:
    content, began = IMAGES[case](), time.process_time()
    with pytest.raises(DataError) as raised:
        decode_image(content, (8, 8, 3), "refuse")
    assert "\n" not in str(raised.value)
    assert time.process_time() - began <= MOST_S


@pytest.mark.parametrize("case", HONEST_IMAGES)
def test_honest_images_pass(case: str) -> None:
    assert decode_image(HONEST_IMAGES[case](), (8, 8, 3), "refuse").shape == (8, 8, 3)


@pytest.mark.parametrize("case", chosen(ARRAYS, ("3 GB of zeros", "a pickle with a payload")))
def test_quantize_refuses_arrays_in_one_line(case: str, folder: Path) -> None:
    model, inputs = saved(folder, product()), ARRAYS[case](folder)
    assert_refused(run_measured("quantize", model, "--inputs", inputs, "--out", folder / "out", cwd=folder))
    assert not (folder / "out").exists()
    assert not (folder / MARK).exists()


@pytest.mark.parametrize("case", chosen(RECIPES, ("aliases of aliases", "a tag that runs code")))
def test_compress_refuses_recipes_in_one_line(case: str, folder: Path) -> None:
    assert_refused(run_measured("compress", RECIPES[case](folder), "--dry-run", cwd=folder))
    assert not (folder / MARK).exists()


@pytest.mark.parametrize("name", ["model.onnx", "inputs.npz", "bundle.tar", "recipe.yaml"])
def test_a_pickle_is_never_loaded(name: str, folder: Path) -> None:
    path = folder / name
    path.write_bytes(pickle.dumps(Payload(folder / MARK)))
    honest = saved(folder, product(), "honest.onnx")
    commands = {
        "model.onnx": ("inspect", path),
        "inputs.npz": ("quantize", honest, "--inputs", path, "--out", folder / "out"),
        "bundle.tar": ("verify", path),
        "recipe.yaml": ("compress", path),
    }
    assert_refused(run_measured(*commands[name], cwd=folder))
    assert not (folder / MARK).exists()


_TEACHERS = {**WEIGHTS, **FOLDERS, **LARGER, **DAMAGED, "pickles": unpickled_weights}


def _compress(folder: Path, teacher: Path, rows: Path, permission: str = "own-model") -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "task: text-classification\n"
        f"teacher: {{path: {teacher}, permission: {permission}}}\ndata: {{train: {rows}, eval: {rows}}}\n"
    )
    assert_refused(run_measured("compress", recipe, "--dry-run", cwd=folder))
    assert not list(folder.rglob(MARK))


@pytest.mark.slow
@pytest.mark.parametrize("case", chosen(_TEACHERS, ("pickles", "pickled shards", "200,000 layers")))
def test_compress_refuses_teachers_in_one_line(case: str, folder: Path) -> None:
    teacher = folder / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text('{"model_type": "bert"}')
    _TEACHERS[case](teacher)
    (folder / "rows.jsonl").write_text('{"text": "a", "label": 0}\n')
    _compress(folder, teacher, folder / "rows.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("case", chosen(GGUF, ("3,000,000 values", "200,000 layers")))
def test_compress_refuses_gguf_in_one_line(case: str, folder: Path) -> None:
    path, rows, recipe = GGUF[case](folder), folder / "rows.jsonl", folder / "recipe.yaml"
    rows.write_text('{"text": "a b c"}\n' * 8)
    recipe.write_text(
        f"task: text-generation\nteacher: {{gguf: {path}, permission: own-model}}\n"
        f"data: {{train: {rows}, eval: {rows}}}\nstudent: {{layers: 1}}\n"
    )
    assert_refused(run_measured("compress", recipe, "--dry-run", cwd=folder))
    assert not list(folder.rglob(MARK))


@pytest.mark.slow
@pytest.mark.parametrize("case", chosen({**TABLES, **PARQUET}, ("nested lists",)))
def test_compress_refuses_rows_in_one_line(case: str, folder: Path) -> None:
    teacher = folder / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text('{"model_type": "bert"}')
    HONEST_WEIGHTS(teacher)
    _compress(folder, teacher, {**TABLES, **PARQUET}[case](folder))


@pytest.mark.slow
@pytest.mark.parametrize("case", chosen(CARDS, ("aliases of aliases",)))
def test_compress_refuses_cards_in_one_line(case: str, folder: Path) -> None:
    teacher = folder / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text('{"model_type": "bert"}')
    HONEST_WEIGHTS(teacher)
    CARDS[case](teacher)
    _compress(folder, teacher, folder / "rows.jsonl", permission="null")
