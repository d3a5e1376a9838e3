"""Teachers: what loads, what is refused, and that nothing in a folder runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import BertModel

from compressor.errors import StudentError, TeacherError
from compressor.recipe import Recipe
from compressor.students import check_student
from compressor.teachers import describe_teacher, fingerprint, load_teacher, rights
from compressor.teachers.folder import check_folder, load_folder
from compressor.teachers.module import build_module, load_module, source_file

Make = Callable[..., Recipe]


def test_a_folder(text_recipe: Make, bert: BertModel) -> None:
    model = load_teacher(text_recipe())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, bert.state_dict()[name]) for name, t in model.state_dict().items())


def test_half_precision_weights_are_widened(teacher_folder: Path) -> None:
    path = teacher_folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: t.half() for name, t in state.items()}, path, {"format": "pt"})
    assert {p.dtype for p in load_folder(teacher_folder, "sentence-embedding", 16).parameters()} == {torch.float32}


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "no config":
        config.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "only pickles":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "empty weights":
        weights.write_bytes(b"")
    elif how == "no json":
        config.write_text("{")
    elif how == "unknown type":
        config.write_text(json.dumps({"model_type": "no-such-model"}))
    elif how == "no type":
        config.write_text("{}")
    elif how == "another size":
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 64}))
    elif how == "other weights":
        safetensors.torch.save_file({"a": torch.zeros(1)}, weights, {"format": "pt"})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no config", "config.json"),
        ("no weights", "expected weights as *.safetensors; found none"),
        ("only pickles", "pickles only, which can run code"),
        ("cut weights", "expected a safetensors file"),
        ("empty weights", "expected a safetensors file"),
        ("no json", "not valid JSON"),
        ("unknown type", "does not load"),
        ("no type", "does not load"),
        ("another size", "does not load"),
        ("other weights", "trained for something else"),
    ],
)
def test_folders_that_are_no_teacher(teacher_folder: Path, how: str, words: str) -> None:
    damage(teacher_folder, how)
    with pytest.raises(TeacherError) as raised:
        load_folder(teacher_folder, "sentence-embedding", 16)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_in_shards(teacher_folder: Path, tmp_path: Path) -> None:
    whole = load_folder(teacher_folder, "sentence-embedding", 16)
    weights = teacher_folder / "model.safetensors"
    weights.unlink()
    whole.save_pretrained(teacher_folder, max_shard_size="20KB")
    assert not weights.exists()
    for name, parameter in load_folder(teacher_folder, "sentence-embedding", 16).named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name))
    index = teacher_folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    moved = next(iter(said["weight_map"].values()))
    (teacher_folder / moved).rename(tmp_path / moved)
    index.write_text(index.read_text().replace(moved, os.path.relpath(tmp_path / moved, teacher_folder)))
    with pytest.raises(TeacherError, match=r"index.json: names the weights '.*'; expected names of"):
        load_folder(teacher_folder, "sentence-embedding", 16)


def test_an_encoder_is_no_classifier(teacher_folder: Path) -> None:
    with pytest.raises(TeacherError, match=r"lack 2 tensors.*classifier.*trained for something else"):
        load_folder(teacher_folder, "text-classification", 16)


def test_a_token_without_a_row_in_the_table_is_refused(teacher_folder: Path) -> None:
    file = teacher_folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens(["new"])
    tokenizer.save(str(file))
    with pytest.raises(TeacherError, match="its tokenizer numbers tokens up to 454, but its table has 454 rows"):
        load_folder(teacher_folder, "sentence-embedding", 16)


def test_a_text_longer_than_the_positions_is_refused(teacher_folder: Path) -> None:
    """The fixture's model has 64 positions: 64 tokens load, 65 name both numbers."""
    load_folder(teacher_folder, "sentence-embedding", 64)
    with pytest.raises(TeacherError, match=r"at most 64 tokens, but student\.max_length is 65"):
        load_folder(teacher_folder, "sentence-embedding", 65)


@pytest.mark.parametrize(("name", "found"), [("absent", "nothing"), ("file", "a file")])
def test_what_is_no_folder(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TeacherError, match=f"found {found}"):
        check_folder(tmp_path / name)


def test_code_in_a_folder_does_not_run(teacher_folder: Path, tmp_path: Path) -> None:
    config = json.loads((teacher_folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (teacher_folder / "config.json").write_text(json.dumps(config))
    (teacher_folder / "own.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(TeacherError):
        load_folder(teacher_folder, "sentence-embedding", 16)
    assert not (tmp_path / "touched").exists()


def test_the_fingerprint_sees_every_file(text_recipe: Make, teacher_folder: Path) -> None:
    recipe = text_recipe()
    before = fingerprint(recipe)
    assert fingerprint(recipe) == before
    (teacher_folder / "tokenizer.json").write_text("{}")
    assert fingerprint(recipe) != before


def test_what_is_recorded_of_a_teacher(text_recipe: Make, tmp_path: Path) -> None:
    recipe = text_recipe(teacher={"license": "MIT", "permission": "license-permits", "reference": "model card"})
    teacher = describe_teacher(recipe, 17, "f" * 64)
    assert teacher.parameters == 17
    assert teacher.provenance.license == "MIT"
    assert str(tmp_path) not in str(teacher), "a bundle is handed on: it names the teacher, not where it lay"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).state_dict(), path)
    return path


def test_a_module(image_recipe: Make, weights: Path) -> None:
    model: Any = load_teacher(image_recipe())
    assert torch.equal(model[1].weight, safetensors.torch.load_file(weights)["1.weight"])
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_module_by_package_name(tmp_path: Path, network_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the working directory, as `python -m` finds it."""
    (tmp_path / "my_networks").mkdir()
    network_file.rename(tmp_path / "my_networks" / "big.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert isinstance(build_module("my_networks.big:make", TeacherError), nn.Module)
    assert source_file("my_networks.big:make", TeacherError) == tmp_path / "my_networks" / "big.py"


@pytest.mark.parametrize("error", [TeacherError, StudentError])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "expected a callable 'absent'"),
        ("number", "expected a callable 'number'"),
        ("fails", "RuntimeError: no such luck"),
        ("returns_a_list", "expected it to return a torch.nn.Module, got list"),
    ],
)
def test_callables_that_give_no_module(network_file: Path, name: str, words: str, error: Any) -> None:
    with pytest.raises(error) as raised:
        build_module(f"{network_file}:{name}", error)
    assert words in str(raised.value)


def test_the_source_of_a_callable_object_is_the_file_that_was_named(network_file: Path) -> None:
    network_file.write_text(network_file.read_text() + "import functools\npartial = functools.partial(make)\n")
    assert source_file(f"{network_file}:partial", TeacherError) == network_file


@pytest.mark.parametrize("name", ["absent", "number"])
def test_the_source_of_what_is_no_callable(network_file: Path, name: str) -> None:
    """A run asks for the source first, to know whether anything changed."""
    with pytest.raises(TeacherError, match="expected a callable"):
        source_file(f"{network_file}:{name}", TeacherError)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "def make(:\n",
        "import no_such_package_anywhere\n",
        "1 / 0\n",
        "raise SystemExit(3)\n",
        "undefined\n",
        "\x00",
    ],
    ids=["absent", "syntax", "import", "arithmetic", "exit", "name", "null"],
)
@pytest.mark.parametrize("use", [build_module, source_file])
def test_files_that_cannot_be_imported(tmp_path: Path, use: Any, content: str | None) -> None:
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TeacherError, match="cannot be imported"):
        use(f"{path}:make", TeacherError)


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(TeacherError, match="cannot be imported"):
        build_module("no_such_package_anywhere.models:make", TeacherError)


def test_weights_that_are_missing(image_recipe: Make) -> None:
    for use in (fingerprint, load_teacher):
        with pytest.raises(TeacherError, match="expected the teacher's weights"):
            use(image_recipe())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"1.weight": torch.zeros(3, 16)}, "does not fit"),
        ({"1.weight": torch.zeros(3, 15), "1.bias": torch.zeros(3)}, "does not fit"),
        ({"1.weight": torch.zeros(3, 16), "1.bias": torch.zeros(3), "2.bias": torch.zeros(3)}, "does not fit"),
        (None, "expected a safetensors file"),
    ],
)
def test_weights_that_do_not_fit(network_file: Path, tmp_path: Path, state: Any, words: str) -> None:
    path = tmp_path / "weights.safetensors"
    if state is None:
        path.write_bytes(os.urandom(64))
    else:
        safetensors.torch.save_file(state, path)
    with pytest.raises(TeacherError) as raised:
        load_module(f"{network_file}:make", path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_fingerprint_of_a_module_sees_code_and_weights(
    image_recipe: Make, weights: Path, network_file: Path
) -> None:
    recipe = image_recipe()
    seen = {fingerprint(recipe)}
    network_file.write_text(network_file.read_text() + "# changed\n")
    seen.add(fingerprint(recipe))
    safetensors.torch.save_file({"a": torch.ones(1)}, weights)
    seen.add(fingerprint(recipe))
    assert len(seen) == 3


CARD = "---\nlanguage: en\nlicense: {}\ntags:\n- x\n---\n# A model\nlicense: mit\n"


@pytest.mark.parametrize(
    ("declared", "card", "expected"),
    [
        ({"permission": "own-model"}, None, (None, "own-model", None, None)),
        ({"license": "MIT"}, None, ("MIT", "license-permits", None, None)),
        ({}, "apache-2.0", ("apache-2.0", "license-permits", "model card in the teacher's folder", None)),
        ({}, '"mit"', ("mit", "license-permits", "model card in the teacher's folder", None)),
        ({}, "mit # see LICENSE", ("mit", "license-permits", "model card in the teacher's folder", None)),
        ({}, "\n- mit\n- 'isc'", ("mit, isc", "license-permits", "model card in the teacher's folder", None)),
        ({"license": "MIT"}, "[isc, mit]", ("MIT", "license-permits", "model card in the teacher's folder", None)),
        ({"license": "mit", "reference": "mail"}, "llama3.1", ("mit", "license-permits", "mail", None)),
        ({"permission": "own-model", "license": "mit"}, "llama3.1", ("mit", "own-model", None, None)),
        (
            {"license": "other", "permission": "written-permission", "reference": "letter", "terms": "https://a/b"},
            "mit",
            ("other", "written-permission", "letter", "https://a/b"),
        ),
    ],
)
def test_what_permits_a_teacher(
    text_recipe: Make,
    teacher_folder: Path,
    declared: dict[str, str],
    card: str | None,
    expected: tuple[str | None, ...],
) -> None:
    if card:
        (teacher_folder / "README.md").write_text(CARD.format(card))
    assert astuple(rights(text_recipe(teacher={"permission": None, **declared}))) == expected


@pytest.mark.parametrize("permission", [None, "license-permits"])
def test_a_licence_that_is_not_the_cards_needs_a_reference(
    text_recipe: Make, teacher_folder: Path, permission: str | None
) -> None:
    (teacher_folder / "README.md").write_text(CARD.format("llama3.1"))
    with pytest.raises(TeacherError, match=r"teacher.license: mit, but .* card says llama3.1; .* teacher.reference"):
        rights(text_recipe(teacher={"permission": permission, "license": "mit"}))


@pytest.mark.parametrize(
    "card", [None, "cc-by-nc-4.0", "llama3", "", "[mit, llama3]", "{mit: 1}", "'mit", "2001-99-99"]
)
def test_without_a_permissive_licence_a_teacher_is_refused(
    text_recipe: Make, teacher_folder: Path, card: str | None
) -> None:
    """The second `license:` of the card is text below the front matter: it permits nothing."""
    if card is not None:
        (teacher_folder / "README.md").write_text(CARD.format(card))
    with pytest.raises(TeacherError, match=r"set own-model, license-permits or written-permission"):
        rights(text_recipe(teacher={"permission": None}))


OWN_CODE = """
from transformers import BertModel

class Own(BertModel):
    pass
"""


def test_code_in_a_folder_runs_on_request_alone_and_is_recorded(
    text_recipe: Make, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = json.loads((teacher_folder / "config.json").read_text())
    (teacher_folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Own"}}))
    (teacher_folder / "own.py").write_text(OWN_CODE)
    plain, trusting = text_recipe(), text_recipe(teacher={"trust_remote_code": True})
    assert type(load_teacher(plain)) is BertModel
    assert not describe_teacher(plain, 1, "f" * 64).provenance.remote_code
    loaded = load_teacher(trusting)
    assert type(loaded).__name__ == "Own"
    assert describe_teacher(trusting, 1, "f" * 64).provenance.remote_code
    with pytest.raises(StudentError, match="code of its own folder"):
        check_student(trusting, loaded)
