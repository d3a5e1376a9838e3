"""Recipes: what is refused, with which line and remedy, and what is accepted as which value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from ruamel.yaml import YAML

from compressor.errors import RecipeError
from compressor.recipe import ENDPOINT_RECIPES, RECIPES, OwnTaskRecipe
from compressor.recipe_file import read_recipe, recipe_from_values
from compressor.recipe_portable import portable
from compressor.recipe_student import ImageStudent
from compressor.recipe_teacher import (
    EndpointClassifier,
    EndpointWriter,
    FolderTeacher,
    HubTeacher,
    OnnxClassifierTeacher,
)
from compressor.recipe_template import recipe_template

TEXT = """\
task: sentence-embedding
teacher:
  path: models/teacher
  permission: own-model
data:
  train: train.jsonl
  eval: test.jsonl
student:
  layers: 2
distill:
  epochs: 3
"""
IMAGES = """\
task: image-classification
teacher: {module: "nets/big.py:make", weights: big.safetensors, permission: own-model}
data: {train: a.npz, eval: b.npz, size: [28, 28], classes: [cat, dog]}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        read_recipe(path, overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_recipe_with_defaults(write: Any) -> None:
    recipe = read_recipe(write(TEXT))
    assert recipe.task == "sentence-embedding"
    assert recipe.distill.epochs == 3
    assert recipe.gate.max_drop == 0.02
    assert recipe.quantize.precisions == ("dynamic-int8", "static-int8")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("task:", "tsk:", 1, "missing key task (one of sentence-embedding, "),
        ("task:", "tsk:", 1, "; is tsk meant?"),
        ("student:", "studnet:", 8, "unknown key studnet; did you mean student?"),
        ("  epochs:", "  epoch:", 11, "unknown key distill.epoch; did you mean epochs?"),
        ("  layers:", "  layer:", 9, "unknown key student.layer; did you mean layers?"),
        ("  path:", "  pth:", 3, "unknown key teacher.pth; did you mean path?"),
        ("  train:", "  trian:", 6, "unknown key data.trian; did you mean train?"),
        ("  epochs: 3", "  zzzzzz: 3", 11, "known here: epochs, batch_size"),
        ("  epochs: 3", "  epochs: three", 11, "distill.epochs: input should be a valid integer, got 'three'"),
        ("  epochs: 3", "  epochs: 0", 11, "distill.epochs"),
        ("  epochs: 3", "  epochs: 1.5", 11, "distill.epochs"),
        ("  epochs: 3", "  epochs: true", 11, "distill.epochs"),
        ("  epochs: 3", "  learning_rate: .nan", 11, "distill.learning_rate"),
        ("  epochs: 3", "  learning_rate: .inf", 11, "distill.learning_rate"),
        ("  epochs: 3", "  learning_rate: -1.0", 11, "distill.learning_rate"),
        ("  layers: 2", "  layers: two", 9, "student.layers"),
        ("  layers: 2", "  layers: [0, x]", 9, "student.layers"),
        ("  layers: 2", "  vocab: 3", 9, "student.vocab"),
        ("  train: train.jsonl\n", "", 5, "missing key data.train (training sentences"),
        ("  path: models/teacher\n", "", 2, "missing key teacher.path"),
        ("own-model", "license-permits", 2, "set teacher.license"),
        ("own-model", "written-permission", 2, "set teacher.reference"),
        ("own-model", "perhaps", 4, "teacher.permission"),
        ("sentence-embedding", "sentence-embeding", 1, "did you mean sentence-embedding?"),
        ("sentence-embedding", "translation", 1, "expected one of sentence-embedding, text-classification"),
        ("sentence-embedding", "[1]", 1, "task: expected one of"),
        # A setting of another task is an unknown key here.
        ("  epochs: 3", "  temperature: 2.0", 11, "unknown key distill.temperature"),
        ("  epochs: 3", "  cosine_weight: 0\n  similarity_weight: 0", 10, "every loss weight is 0"),
        ("distill:\n  epochs: 3", "distill: 3", 10, "distill"),
        ("distill:\n  epochs: 3", "distill: [epochs]", 10, "distill"),
        ("  epochs: 3", "  epochs: 3\n  epochs: 4", 12, 'duplicate key "epochs"'),
        ("task: sentence-embedding", "task: [sentence", 2, "not valid YAML"),
    ],
)
def test_what_is_refused_names_its_line(write: Any, old: str, new: str, line: int, words: str) -> None:
    path = write(TEXT.replace(old, new, 1))
    message = refusal(path)
    assert message.startswith(f"{path}:{line}:"), message
    assert words in message


def test_a_missing_key_comes_after_the_typo_that_explains_it(write: Any) -> None:
    assert "(and 1 more)" in refusal(write(TEXT.replace("  train:", "  trian:")))


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-4", 1e-4), ("1.0e-4", 1e-4), ("4e-4", 4e-4), (".5", 0.5), ("1", 1.0)],
)
def test_numbers_are_those_of_yaml_1_2(write: Any, written: str, meant: float) -> None:
    """YAML 1.1 reads 1e-4 as a string."""
    recipe = read_recipe(write(TEXT.replace("epochs: 3", f"learning_rate: {written}")))
    assert recipe.distill.learning_rate == meant


@pytest.mark.parametrize(("written", "meant"), [("0o17", 15), ("0x1F", 31), ("017", 17), ("60", 60)])
def test_integers_are_those_of_yaml_1_2(write: Any, written: str, meant: int) -> None:
    """YAML 1.1 reads 017 as octal."""
    assert read_recipe(write(TEXT.replace("epochs: 3", f"seed: {written}"))).distill.seed == meant


def test_no_is_a_word(write: Any, tmp_path: Path) -> None:
    """YAML 1.1 reads it as false: a label column of `no` would never match."""
    recipe = read_recipe(write(TEXT.replace("  eval:", "  positive: yes\n  negative: no\n  eval:")))
    assert (recipe.data.positive, recipe.data.negative) == ("yes", "no")  # type: ignore[union-attr]
    assert read_recipe(write(TEXT + "out: off\n")).out == tmp_path / "off"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected keys such as `task: sentence-embedding`"),
        (b"# only a comment\n", "expected keys such as"),
        (b"- task: sentence-embedding\n", "expected keys such as"),
        (b"sentence-embedding\n", "expected keys such as"),
        (b"\xff\xfet\x00", "expected UTF-8"),
        (b"task: \x00\n", "not valid YAML"),
        (b"\ttask: x\n", "not valid YAML"),
        (b"task: x\n---\ntask: y\n", "not valid YAML"),
        (b"out: 2001-99-99\n" + TEXT.encode(), "not valid YAML"),
        (b"out: !!int x\n" + TEXT.encode(), "not valid YAML"),
        (b"out: " + b"9" * 5000 + b"\n" + TEXT.encode(), "not valid YAML"),
        (b"? [1, 2]\n: 3\n" + TEXT.encode(), "keys should be strings"),
        (b"1: 3\n" + TEXT.encode(), "keys should be strings"),
        (b"out: !!python/object/apply:os.system [true]\n" + TEXT.encode(), "out"),
        (b"a: " + b"{b: " * 1000, "nested brackets"),
        (b"x: &x [*x]\n" + TEXT.encode(), "unknown key x"),
        (b"x: " + b"y" * 1_000_001, "expected at most 100,000 bytes"),
    ],
)
def test_what_is_no_recipe(write: Any, content: bytes, words: str) -> None:
    assert words in refusal(write(content))


def test_aliases_that_explode_are_refused_quickly(write: Any) -> None:
    """Nine levels of nine aliases each stand for 387 million values; in a process of its own, to bound its memory."""
    levels = [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path = write(TEXT + "\n".join(["x:", "  a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels]) + "\n")
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
    code += "from pathlib import Path; from compressor.recipe_file import read_recipe; read_recipe(Path(sys.argv[1]))"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert "RecipeError" in run.stderr.splitlines()[-1]
    assert "aliases" in run.stderr.splitlines()[-1]


def test_an_alias_and_a_merge_key_are_ordinary_yaml(write: Any) -> None:
    merged = TEXT.replace("distill:\n  epochs: 3", "distill: &d {epochs: 4}\nstudent2: {<<: *d}")
    assert "unknown key student2" in refusal(write(merged))
    used = TEXT.replace("teacher:", "out: &here work\nteacher:").replace("models/teacher", "*here")
    assert read_recipe(write(used)).teacher.path.name == "work"  # type: ignore[union-attr]


def test_paths_that_hold_no_recipe(tmp_path: Path) -> None:
    assert "compressor init" in refusal(tmp_path / "absent.yaml")
    assert "got a folder" in refusal(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "no such recipe" in refusal(tmp_path / "file" / "recipe.yaml")


@pytest.mark.parametrize(
    ("widths", "strides", "fine"),
    [([8, 16], [2], True), ([8, 16], [2, 2], False), ([8], [], False), ([8, 16, 32], [1], False)],
)
def test_one_stride_per_block(write: Any, widths: list[int], strides: list[int], fine: bool) -> None:
    path = write(IMAGES + f"student: {{widths: {widths}, strides: {strides}}}\n")
    if fine:
        student = read_recipe(path).student
        assert isinstance(student, ImageStudent)
        assert student.widths == tuple(widths)
    else:
        assert refusal(path).startswith(f"{path}:4: student")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[28, 28]", "[0, 28]", "data.size.0"),
        ("[28, 28]", "[28, -1]", "data.size.1"),
        ("[28, 28]", "[28]", "data.size"),
        ("[cat, dog]", "[cat]", "data.classes"),
        ("[cat, dog]", "[cat, dog, cat]", "data.classes"),
        ("[cat, dog]", "[cat, dog], std: [0.0]", "data.std.0"),
    ],
)
def test_image_settings_that_nothing_can_have(write: Any, old: str, new: str, key: str) -> None:
    path = write(IMAGES.replace(old, new))
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert key in message


@pytest.mark.parametrize("student", ["widths: [0, 8], strides: [1]", "widths: [8, 8], strides: [0]"])
def test_networks_that_cannot_be_built(write: Any, student: str) -> None:
    assert "greater than or equal to 1" in refusal(write(IMAGES + f"student: {{{student}}}\n"))


def test_what_is_listed_once_only(write: Any) -> None:
    twice = "quantize: {precisions: [dynamic-int8, dynamic-int8]}\n"
    assert "'dynamic-int8' is named twice" in refusal(write(TEXT + twice))
    assert "student.layers" in refusal(write(TEXT.replace("layers: 2", "layers: []")))


@pytest.mark.parametrize(("written", "share"), [("2%", 0.02), ("0.02", 0.02), ("'5 %'", 0.05), ("0%", 0.0), ("0", 0.0)])
def test_shares(write: Any, written: str, share: float) -> None:
    assert read_recipe(write(TEXT + f"gate: {{max_drop: {written}}}\n")).gate.max_drop == pytest.approx(share)


@pytest.mark.parametrize("written", ["200%", "x%", "-1%", "1.0", "nan%", "inf%", "'2'", "[2%]", "%2"])
def test_shares_that_are_none(write: Any, written: str) -> None:
    assert refusal(write(TEXT + f"gate: {{max_drop: {written}}}\n"))


@pytest.mark.parametrize("command_line", ["two percent", "2", None])
def test_shares_from_flags_are_checked_too(command_line: Any) -> None:
    values = YAML(typ="safe").load(TEXT) | {"gate": {"max_drop": command_line}}
    with pytest.raises(RecipeError, match=r"command line: gate\.max_drop"):
        recipe_from_values(values, "command line")


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("distill.epochs=7", "distill.epochs", 7),
        ("distill.learning_rate=1e-3", "distill.learning_rate", 1e-3),
        ("student.layers=[0, 3]", "student.layers", (0, 3)),
        ("student.vocab=null", "student.vocab", None),
        ("student.ffn=", "student.ffn", None),
        ("gate.max_drop=5%", "gate.max_drop", 0.05),
        ("distill={epochs: 9}", "distill.epochs", 9),
        ("teacher.reference=a=b", "teacher.reference", "a=b"),
        ("quantize.precisions=[static-int8]", "quantize.precisions", ("static-int8",)),
        ("data.text=[a, b]", "data.text", ("a", "b")),
    ],
)
def test_overrides(write: Any, override: str, where: str, value: object) -> None:
    found: Any = read_recipe(write(TEXT), [override])
    for name in where.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.epochs", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("distill.epoch=3", "--set: unknown key distill.epoch; did you mean epochs?"),
        ("distill.epochs=x", "--set: distill.epochs"),
        ("distill.epochs=[1", "not a YAML value"),
        ("out=2001-99-99", "not a YAML value"),
        ("out=!!python/object/apply:os.system [true]", "not a YAML value"),
        ("task.name=x", "task is no group of settings"),
        ("nothing.at.all=1", "unknown key nothing"),
        ("distill..epochs=1", "unknown key distill."),
        ("task=text-classification", "unknown key"),
        ("distill.seed=18446744073709551616", "--set: distill.seed: input should be less than"),
        ("distill.accumulate=3", "distill: accumulate: expected to divide batch_size"),
        ("distill.hidden_layers={}", "distill.hidden_layers: "),
    ],
)
def test_overrides_that_are_refused(write: Any, override: str, words: str) -> None:
    text = TEXT + "  cosine_weight: 0.5\n"
    assert words in refusal(write(text), override)


def test_the_last_override_counts(write: Any) -> None:
    assert read_recipe(write(TEXT), ["distill.epochs=4", "distill.epochs=5"]).distill.epochs == 5


def test_paths_are_relative_to_the_recipe_and_overrides_to_the_working_directory(write: Any, tmp_path: Path) -> None:
    recipe: Any = read_recipe(write(TEXT), ["data.eval=other.jsonl"])
    assert recipe.teacher.path == tmp_path / "models" / "teacher"
    assert recipe.data.train.path == tmp_path / "train.jsonl"
    assert recipe.data.eval.path == Path("other.jsonl")
    absolute: Any = read_recipe(write(TEXT.replace("models/teacher", "/somewhere/else")))
    assert absolute.teacher.path == Path("/somewhere/else")
    image: Any = read_recipe(write(IMAGES))
    assert image.teacher.module == f"{tmp_path}/nets/big.py:make"
    package: Any = read_recipe(write(IMAGES.replace("nets/big.py:make", "nets.big:make")))
    assert package.teacher.module == "nets.big:make"


@pytest.mark.parametrize("reference", ["big.py", "big.py:", ":make", "big.py:make()", "a b.py:make", ""])
def test_module_references_that_are_none(write: Any, reference: str) -> None:
    assert "teacher.module" in refusal(write(IMAGES.replace("nets/big.py:make", reference)))


@pytest.mark.parametrize("task", RECIPES)
def test_the_template_is_a_recipe_once_it_is_filled_in(write: Any, task: str) -> None:
    template = recipe_template(task)
    parsed = YAML(typ="safe").load(template)
    assert parsed["task"] == task
    for key in ("module", "definition"):
        template = template.replace(f"{key}: CHANGE-ME", f"{key}: net.py:make")
    recipe = read_recipe(write(template.replace("CHANGE-ME", "x")))
    plain = RECIPES[task].model_fields
    assert set(parsed) == set(plain), "every setting is shown"
    assert recipe.distill == type(recipe.distill)(), "and shown at its default"
    if not isinstance(recipe, OwnTaskRecipe):  # whose student has no default
        assert recipe.student == type(recipe.student)()


@pytest.mark.parametrize("task", ENDPOINT_RECIPES)
def test_the_template_has_the_recipe_of_an_endpoint(write: Any, task: str) -> None:
    """Below the other, commented out."""
    _, _, below = recipe_template(task).partition("\n# Or, where the teacher is an endpoint")
    lines = [line.removeprefix("#").removeprefix(" ") for line in below.splitlines()[1:]]
    template = "\n".join(lines).replace("endpoint: CHANGE-ME", "endpoint: https://host/v1")
    recipe = read_recipe(write(template.replace("CHANGE-ME", "x").replace("permission: null", "permission: own-model")))
    assert type(recipe) is ENDPOINT_RECIPES[task]
    assert set(YAML(typ="safe").load(template)) == set(ENDPOINT_RECIPES[task].model_fields)
    assert recipe.distill == type(recipe.distill)()
    given = {"endpoint": "https://host/v1", "model": "x", "permission": "own-model"}
    assert recipe.teacher == EndpointWriter.model_validate(given), "what was not filled in is at its default"


@pytest.mark.parametrize("model", [*RECIPES.values(), *ENDPOINT_RECIPES.values()])
def test_every_setting_is_documented(model: type[BaseModel]) -> None:
    def undocumented(model: type[BaseModel]) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += undocumented(field.annotation)
            if not field.description and name != "task":
                found.append(name)
        return found

    assert not undocumented(model)


@pytest.mark.parametrize("text", [TEXT, IMAGES])
def test_a_portable_recipe_holds_no_folder(write: Any, tmp_path: Path, text: str) -> None:
    recipe = read_recipe(write(text + "out: deep/run\n"))
    content = portable(recipe)
    written = json.dumps(content)  # a result and a manifest hold it as JSON
    assert str(tmp_path) not in written
    assert "deep" not in written
    assert "out" not in content
    assert content["task"] == recipe.task


def test_a_portable_recipe_changes_paths_and_nothing_else(write: Any) -> None:
    reference = "contract of legal/terms.py:3 signed"
    found: Any = portable(read_recipe(write(IMAGES.replace("own-model", f'own-model, reference: "{reference}"'))))
    assert found["teacher"]["reference"] == reference
    assert found["teacher"]["module"] == "big.py:make"


def test_a_portable_recipe_reads_back_as_the_same_settings(write: Any) -> None:
    recipe: Any = read_recipe(write(TEXT + "gate: {max_drop: 3%}\n"))
    again: Any = recipe_from_values(portable(recipe), "test")
    assert again.model_dump(exclude={"teacher", "data", "out"}) == recipe.model_dump(exclude={"teacher", "data", "out"})


@given(text=st.text(alphabet=st.sampled_from("ab:-[]{}&*!#\"'|>%@` \n\t0123456789.<?,~é\x00"), max_size=60))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
def test_whatever_stands_in_a_recipe_it_is_refused_in_one_line(write: Any, text: str) -> None:
    refusal(write(text))


@given(text=st.text(alphabet=st.sampled_from("ab:-[]{}&*!#\"'|>%@` \t0123456789.<?,~é"), max_size=30))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
def test_whatever_is_set_it_is_refused_in_one_line(write: Any, text: str) -> None:
    refusal(write(TEXT), f"distill.nothing={text}")


ENDPOINT = """\
task: text-classification
teacher:
  endpoint: https://host/v1
  model: big
  classes: [sport, food]
  permission: own-model
data: {train: a.jsonl, eval: b.jsonl}
"""


@pytest.mark.parametrize(
    ("teacher", "kind"),
    [
        ("path: a", FolderTeacher),
        ("hub: org/name", HubTeacher),
        ("onnx: a.onnx\n  tokenizer: t.json\n  classes: [a, b]", OnnxClassifierTeacher),
        ("endpoint: https://host/v1\n  model: m\n  classes: [a, b]", EndpointClassifier),
    ],
)
def test_a_key_tells_which_kind_of_teacher_is_meant(write: Any, tmp_path: Path, teacher: str, kind: type) -> None:
    recipe = read_recipe(write(f"task: text-classification\nteacher:\n  {teacher}\ndata: {{train: a, eval: b}}\n"))
    assert type(recipe.teacher) is kind
    if isinstance(recipe.teacher, OnnxClassifierTeacher):
        assert (recipe.teacher.onnx, recipe.teacher.tokenizer) == (tmp_path / "a.onnx", tmp_path / "t.json")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("  model: big\n", "", 2, "missing key teacher.model (the model's name there)"),
        ("  model:", "  modle:", 4, "unknown key teacher.modle; did you mean model?"),
        ("  model: big", "  path: x\n  model: big", 4, "unknown key teacher.path"),
        ("https://host/v1", "https://me:planted@host/v1", 3, "teacher.endpoint: expected a URL without user, password"),
        ("[sport, food]", "[sport]", 5, "teacher.classes"),
        ("own-model", "own-model\n  concurrency: 0", 7, "teacher.concurrency"),
        ("own-model", "license-permits\n  license: MIT", 2, "set teacher.terms"),
    ],
)
def test_errors_of_one_kind_do_not_speak_of_the_others(write: Any, old: str, new: str, line: int, words: str) -> None:
    path = write(ENDPOINT.replace(old, new, 1))
    message = refusal(path)
    assert message.startswith(f"{path}:{line}:"), message
    assert words in message
    assert "<" not in message, "the tag of a kind is no key"
    assert "planted" not in message


OTHER_TEACHERS: dict[str, set[str]] = {
    "sentence-embedding": {"hub", "onnx"},
    "text-classification": {"hub", "onnx", "endpoint"},
    "token-classification": {"hub", "onnx"},
    "text-generation": {"hub", "gguf"},
    "image-classification": {"hub", "module", "onnx"},
    "own": set(),
}


@pytest.mark.parametrize("task", RECIPES)
def test_the_template_shows_every_kind_of_teacher(task: str) -> None:
    """One is written out; the keys of each of the others stand below it, commented out, and of no other."""
    lines = recipe_template(task).splitlines()
    assert sum(line.startswith("  # or, instead of ") for line in lines) == len(OTHER_TEACHERS[task])
    settings = {line.split(":")[0].strip("# ") for line in lines if line.startswith("  # ")}
    assert settings & {"path", "hub", "gguf", "onnx", "endpoint", "module"} == OTHER_TEACHERS[task]


@pytest.mark.parametrize("setting", ["hidden_weight: 1.0", "relation_weight: [0.0, 1.0]"])
@pytest.mark.parametrize(
    "teacher",
    ["endpoint: https://host/v1\n  model: big", "onnx: a.onnx\n  tokenizer: t.json"],
    ids=["endpoint", "onnx"],
)
def test_nothing_is_learnt_from_inside_a_black_box(write: Any, teacher: str, setting: str) -> None:
    text = ENDPOINT.replace("endpoint: https://host/v1\n  model: big", teacher) + f"distill: {{{setting}}}\n"
    assert "a black box shows nothing of its inside: set distill.hidden_weight" in refusal(write(text))


@pytest.mark.parametrize(
    ("task", "teacher", "words"),
    [
        ("token-classification", "{endpoint: x}", "endpoint teaches text-classification and text-generation alone"),
        ("sentence-embedding", "{module: 'm.py:make'}", "module teaches image-classification and own alone"),
        ("text-classification", "{module: 'm.py:make'}", "this task takes path, hub, onnx, endpoint"),
        ("text-generation", "{onnx: x}", "onnx teaches all tasks but text-generation and own; this task takes path"),
        ("image-classification", "{gguf: x}", "gguf teaches text-generation alone; this task takes path, hub, module"),
    ],
)
def test_a_kind_of_teacher_of_other_tasks(write: Any, task: str, teacher: str, words: str) -> None:
    path = write(f"task: {task}\nteacher: {teacher}\ndata: {{train: a, eval: b}}\n")
    message = refusal(path)
    assert message.startswith(f"{path}:2: teacher: "), message
    assert words in message
    assert "unknown key" not in message


def test_a_student_that_generates_text_has_a_config(write: Any) -> None:
    written = "task: text-generation\nteacher: {path: a}\ndata: {train: a, eval: b}\nstudent: {module: 'm.py:make'}\n"
    assert "bring the student along as folder" in refusal(write(written))
