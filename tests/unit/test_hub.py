"""Teachers by their name on the hub, offline: from a cache laid out as huggingface_hub lays it out."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from made_hub import COMMIT
from transformers import BertModel

from compressor.errors import TeacherError
from compressor.recipe import Recipe
from compressor.recipe_file import recipe_from_values
from compressor.tasks import task_for
from compressor.teachers import describe_teacher, fingerprint, hub, load_teacher, rights, teacher_folder

Make = Callable[..., Recipe]


@pytest.fixture
def cache(teacher_folder: Path, put_on_hub: Callable[[Path], Path]) -> Path:
    (teacher_folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return put_on_hub(teacher_folder)


@pytest.fixture
def hub_recipe(tmp_path: Path) -> Make:
    def make(**teacher: Any) -> Recipe:
        data = {"train": tmp_path / "train.jsonl", "eval": tmp_path / "eval.jsonl"}
        values = {"task": "sentence-embedding", "data": data, "out": tmp_path / "out", "student": {"max_length": 16}}
        return recipe_from_values({**values, "teacher": {"hub": "org/tiny", **teacher}}, "test")

    return make


@pytest.mark.usefixtures("cache")
def test_a_teacher_by_its_name(hub_recipe: Make, text_recipe: Make, bert: BertModel) -> None:
    recipe = hub_recipe()
    loaded = load_teacher(recipe)
    assert all(torch.equal(tensor, bert.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert fingerprint(recipe) == fingerprint(text_recipe()), "links count as what they point to"
    found = task_for(recipe).preprocessor(None).encode(["the cat"])
    assert [len(ids) for ids in found] == [4]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_what_is_recorded(hub_recipe: Make, revision: str | None) -> None:
    """The commit, whatever was asked for; and the licence of the repository's card."""
    recipe = hub_recipe(revision=revision)
    found = describe_teacher(recipe, 1, fingerprint(recipe))
    assert (found.kind, found.provenance.source) == ("hub", f"org/tiny@{COMMIT}")
    assert rights(recipe).license == "mit"
    assert not found.provenance.remote_code


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "teacher", [{"hub": "org/absent"}, {"revision": "v2"}], ids=["no such repository", "no such revision"]
)
def test_what_cannot_be_fetched_is_one_line(hub_recipe: Make, teacher: dict[str, str]) -> None:
    recipe = hub_recipe(**teacher)
    for use in (rights, fingerprint, load_teacher):
        with pytest.raises(TeacherError, match="cannot be fetched") as raised:
            use(recipe)
        assert "\n" not in str(raised.value)
        assert "set teacher.path" in str(raised.value)


def test_pickles_alone_are_refused(cache: Path, hub_recipe: Make) -> None:
    snapshot = cache / "models--org--tiny" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    recipe = hub_recipe()
    assert isinstance(recipe.teacher, hub.HubTeacher)
    with pytest.raises(TeacherError, match="pickles only, which can run code"):
        teacher_folder(recipe.teacher)


def test_only_data_is_asked_for(hub_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not with a hub, which is out of reach here: what is handed to the client's own function."""
    asked: list[dict[str, Any]] = []

    def note(repository: str, **settings: Any) -> str:
        asked.append({"repository": repository, **settings})
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", note)
    hub._snapshot.cache_clear()
    for settings in ({}, {"trust_remote_code": True, "revision": "v1"}):
        recipe = hub_recipe(**settings)
        assert isinstance(recipe.teacher, hub.HubTeacher)
        hub.hub_folder(recipe.teacher)
    hub._snapshot.cache_clear()
    data, code = (set(call["allow_patterns"]) for call in asked)
    assert not {pattern for pattern in data if pattern.endswith((".bin", ".pt", ".pkl", ".py"))}
    assert code - data == {"*.py"}
    for name in ("LICENSE", "LICENCE.txt", "UNLICENSE", "NOTICE", "COPYING"):  # of which a bundle has copies
        assert any(fnmatch(name, pattern) for pattern in data), name
    assert asked[1]["revision"] == "v1"
