"""sentence-transformers folders, written and answered by that package, and read here without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import BertModel, PreTrainedTokenizerFast

from compressor.distill import outputs_of
from compressor.errors import TeacherError
from compressor.recipe import Recipe
from compressor.tasks import task_for
from compressor.teachers import fingerprint, load_teacher
from compressor.teachers.sentence import SentenceHead, encoder_folder, read_head

Make = Callable[..., Recipe]
TEXTS = ["the cat sat on the mat", "a dog runs!", "", "house"]
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


@pytest.fixture
def saved(bert: BertModel, tokenizer_file: Path, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Writes a folder with sentence-transformers; returns it, and what that package answers to TEXTS."""

    def write(pooling: Any, *layers: nn.Module) -> tuple[Path, Any]:
        plain, folder = tmp_path / "plain", tmp_path / "saved"
        bert.save_pretrained(plain)
        PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), **SPECIAL).save_pretrained(plain)
        model = SentenceTransformer(modules=[Transformer(str(plain)), Pooling(32, pooling), *layers], device="cpu")
        model.save(str(folder))
        return folder, model.encode(TEXTS, normalize_embeddings=True)

    return write


def answers(recipe: Recipe) -> Any:
    """What this package makes of the same folder, in one padded batch."""
    task = task_for(recipe)
    preprocessor = task.preprocessor(None)
    with torch.inference_mode():
        return outputs_of(
            task.deployable(load_teacher(recipe)).eval(), preprocessor.collate(preprocessor.encode(TEXTS))
        ).numpy()


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean")]
)
def test_every_pooling_answers_as_the_package_does(saved: Any, text_recipe: Make, pooling: Any) -> None:
    folder, expected = saved(pooling)
    np.testing.assert_allclose(answers(text_recipe(teacher={"path": folder})), expected, atol=2e-6)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Identity(), nn.GELU()])
def test_a_dense_layer_and_normalisation(saved: Any, text_recipe: Make, activation: nn.Module) -> None:
    torch.manual_seed(3)
    folder, expected = saved("mean", Normalize(), Dense(32, 12, activation_function=activation), Normalize())
    assert expected.shape == (4, 12)
    np.testing.assert_allclose(answers(text_recipe(teacher={"path": folder})), expected, atol=2e-6)


def test_a_dense_layer_without_bias(saved: Any, text_recipe: Make) -> None:
    folder, expected = saved("mean", Dense(32, 40, bias=False))
    np.testing.assert_allclose(answers(text_recipe(teacher={"path": folder})), expected, atol=2e-6)


def test_the_flags_of_older_folders(teacher_folder: Path) -> None:
    note = teacher_folder / "1_Pooling" / "config.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": False}))
    assert read_head(teacher_folder) == SentenceHead(("mean",))
    note.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}))
    assert read_head(teacher_folder) == SentenceHead(("cls", "mean")), "concatenated in the package's order"


def test_a_folder_without_modules_pools_by_the_mean(teacher_folder: Path) -> None:
    assert read_head(teacher_folder) == SentenceHead(("mean",))
    assert encoder_folder(teacher_folder) == teacher_folder


def test_an_encoder_in_a_folder_of_its_own(saved: Any, text_recipe: Make) -> None:
    folder, expected = saved("cls")
    (folder / "0_Transformer").mkdir()
    for path in [p for p in folder.iterdir() if p.is_file() and p.name != "modules.json"]:
        path.rename(folder / "0_Transformer" / path.name)
    edit(folder, lambda modules: modules[0].update(path="0_Transformer"))
    recipe = text_recipe(teacher={"path": folder})
    np.testing.assert_allclose(answers(recipe), expected, atol=2e-6)
    before = fingerprint(recipe)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    assert fingerprint(recipe) != before, "how it pools is part of what it is"


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    change(modules)
    path.write_text(json.dumps(modules))


def damage(folder: Path, how: str) -> None:
    pooling, dense = folder / "1_Pooling" / "config.json", folder / "2_Dense"
    if how == "no json":
        (folder / "modules.json").write_text("[")
    elif how == "no list":
        (folder / "modules.json").write_text('{"type": "x"}')
    elif how == "other module":
        edit(folder, lambda modules: modules[2].update(type="sentence_transformers.models.LSTM"))
    elif how == "outside":
        edit(folder, lambda modules: modules[2].update(path="../plain"))
    elif how == "other pooling":
        pooling.write_text('{"pooling_mode": "attention"}')
    elif how == "pickled dense":
        (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    elif how == "other activation":
        config = json.loads((dense / "config.json").read_text())
        (dense / "config.json").write_text(json.dumps({**config, "activation_function": "os.system"}))
    elif how == "other shape":
        config = json.loads((dense / "config.json").read_text())
        (dense / "config.json").write_text(json.dumps({**config, "out_features": 13}))
    elif how == "prompt":
        settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    elif how == "lower case":
        (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": None}))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no json", "not valid JSON"),
        ("no list", "expected a list of modules"),
        ("other module", "consists of Transformer, Pooling, LSTM; expected"),
        ("outside", "outside of the folder"),
        ("other pooling", "expected a pooling of cls, max, mean"),
        ("pickled dense", "as model.safetensors, found none"),
        ("other activation", "its activation one of Identity, Tanh"),
        ("other shape", "as config.json says"),
        ("prompt", "expected default_prompt_name null"),
        ("lower case", "lowers the case"),
    ],
)
def test_what_is_not_supported_is_one_line(saved: Any, how: str, words: str) -> None:
    folder, _ = saved("mean", Dense(32, 12))
    damage(folder, how)
    with pytest.raises(TeacherError) as raised:
        read_head(folder)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
