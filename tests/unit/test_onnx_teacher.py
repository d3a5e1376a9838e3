"""ONNX files as teachers: what they answer against numpy or torch, and which files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tokenizers import Tokenizer
from transformers import BertModel

from compressor.artifacts import TensorSpec
from compressor.errors import StudentError, TeacherError
from compressor.export import export_onnx
from compressor.materials import Materials
from compressor.progress import SILENT
from compressor.recipe import Recipe
from compressor.recipe_file import recipe_from_values
from compressor.store import sha256_file
from compressor.students import check_student
from compressor.teachers import describe_teacher, fingerprint, rights
from compressor.teachers.onnx_file import open_onnx_teacher

MakeOnnx = Callable[..., Path]
MakeRecipe = Callable[..., Recipe]
FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
TEXTS = ["the cat sat on the mat", "a dog runs!", "house"]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)


def opened(recipe: Recipe) -> Any:
    return open_onnx_teacher(recipe, recipe.teacher)  # type: ignore[arg-type]


@pytest.fixture
def recipe_for(tokenizer_file: Path, tmp_path: Path) -> MakeRecipe:
    """A recipe of a task with an ONNX teacher; images are 4 by 4 pixels, one channel, three classes."""

    def make(task: str, onnx_file: Path, **teacher: Any) -> Recipe:
        kind = "npz" if task == "image-classification" else "jsonl"
        data: dict[str, Any] = {"train": tmp_path / f"train.{kind}", "eval": tmp_path / f"eval.{kind}"}
        values: dict[str, Any] = {"task": task, "data": data, "out": tmp_path / "out"}
        values["teacher"] = {"onnx": onnx_file, "permission": "own-model", **teacher}
        if task == "image-classification":
            data |= {"size": [4, 4], "classes": ["a", "b", "c"], "mean": [0.25], "std": [0.5]}
        else:
            values["teacher"].setdefault("tokenizer", tokenizer_file)
            values["student"] = {"max_length": 16}
        return recipe_from_values(values, "test")

    return make


def classifier(make_onnx: MakeOnnx, path: Path, kind: int, shape: list[Any], *, softmax: bool = False) -> Path:
    """Flattens and multiplies with a fixed matrix; optionally with a softmax, as a second output."""
    weight = np.random.default_rng(1).standard_normal((16, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=FLOAT),
        helper.make_node("Flatten", ["values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    outputs = {"logits": (FLOAT, ["batch", 3])}
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["shares"], axis=-1))
        outputs["shares"] = (FLOAT, ["batch", 3])
    return make_onnx(path, nodes, {"images": (kind, shape)}, outputs, {"weight": weight})


def by_hand(images: NDArray[Any]) -> NDArray[np.float32]:
    weight = np.random.default_rng(1).standard_normal((16, 3)).astype(np.float32)
    return images.astype(np.float32).reshape(len(images), 16) @ weight


NORMAL = (PIXELS / np.float32(255) - 0.25) / 0.5


@pytest.mark.parametrize(
    ("kind", "shape", "images"),
    [
        (FLOAT, ["batch", 1, 4, 4], NORMAL.transpose(0, 3, 1, 2)),
        (FLOAT, ["batch", 4, 4, 1], NORMAL),
        (UINT8, ["batch", 4, 4, 1], PIXELS),
        (FLOAT, [1, 1, 4, 4], NORMAL.transpose(0, 3, 1, 2)),
    ],
    ids=["float32 channels first", "float32 channels last", "pixels", "one at a time"],
)
def test_images_in_the_form_that_the_file_takes(
    make_onnx: MakeOnnx, recipe_for: MakeRecipe, tmp_path: Path, kind: int, shape: list[Any], images: NDArray[Any]
) -> None:
    if shape[0] == 1:
        path = one_by_one(classifier(make_onnx, tmp_path / "t.onnx", kind, ["batch", *shape[1:]]))
    else:
        path = classifier(make_onnx, tmp_path / "t.onnx", kind, shape)
    teacher = opened(recipe_for("image-classification", path))
    np.testing.assert_allclose(teacher.answers({"pixels": PIXELS}), by_hand(images), rtol=1e-4, atol=1e-4)


def one_by_one(path: Path) -> Path:
    """The same file with its batch fixed at 1."""
    model = onnx.load(path)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    return path


def test_probabilities_become_their_logarithms(make_onnx: MakeOnnx, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    path = classifier(make_onnx, tmp_path / "t.onnx", FLOAT, ["batch", 1, 4, 4], softmax=True)
    declared = recipe_for("image-classification", path, output="shares", gives="probabilities")
    logits = torch.from_numpy(by_hand(NORMAL.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(opened(declared).answers({"pixels": PIXELS}), logits.log_softmax(-1), atol=1e-4)
    for wrong in ({"output": "shares"}, {"gives": "probabilities"}):
        with pytest.raises(TeacherError, match=r"set teacher\.gives|it gives logits"):
            opened(recipe_for("image-classification", path, **wrong)).answers({"pixels": PIXELS})


@pytest.fixture
def exported(bert: BertModel, tmp_path: Path) -> Path:
    """last_hidden_state of the tiny encoder, as optimum's feature extraction exports it."""

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return hidden

    tokens = ("batch", "sequence")
    inputs = [TensorSpec(name, "int64", tokens) for name in ("input_ids", "attention_mask")]
    outputs = [TensorSpec("last_hidden_state", "float32", (*tokens, 32))]
    feeds = [{spec.name: np.ones((rows, rows + 5), np.int64) for spec in inputs} for rows in (1, 3)]
    return export_onnx(Plain(), "encoder", inputs, outputs, feeds, 20, tmp_path / "encoder.onnx").path


def test_token_vectors_are_pooled_by_their_mean(
    exported: Path, recipe_for: MakeRecipe, text_recipe: MakeRecipe
) -> None:
    at, reference = (
        Materials(recipe, SILENT) for recipe in (recipe_for("sentence-embedding", exported), text_recipe())
    )
    got, expected = at.answers(at.teacher_inputs(TEXTS)), reference.answers(reference.teacher_inputs(TEXTS))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_embedding_is_brought_to_unit_length(embedder_onnx: Path, recipe_for: MakeRecipe) -> None:
    at = Materials(recipe_for("sentence-embedding", embedder_onnx), SILENT)
    found = at.answers(at.teacher_inputs(TEXTS))
    assert found.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def text_classifier(
    make_onnx: MakeOnnx, path: Path, extra: str | None = None, sequence: int | str = "sequence"
) -> Path:
    """logits [batch, 2]: how many tokens there are, and the sum of the third input, if there is one."""
    names = ["input_ids", "attention_mask", *([extra] if extra else [])]
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "last"], ["tokens"], keepdims=1),
        helper.make_node("ReduceSum", [names[-1], "last"], ["others"], keepdims=1),
        helper.make_node("Concat", ["tokens", "others"], ["whole"], axis=1),
        helper.make_node("Cast", ["whole"], ["logits"], to=FLOAT),
    ]
    inputs = {name: (INT64, ["batch", sequence]) for name in names}
    return make_onnx(path, nodes, inputs, {"logits": (FLOAT, ["batch", 2])}, {"last": np.array([1])})


def test_text_for_a_classifier(make_onnx: MakeOnnx, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    """[CLS], the words and [SEP] count; token types are zeros; a fixed length is filled with masked tokens."""
    expected = [[8, 0], [6, 0], [3, 0]]
    for sequence in ("sequence", 16):
        path = text_classifier(make_onnx, tmp_path / f"{sequence}.onnx", "token_type_ids", sequence)
        recipe = recipe_for("text-classification", path, classes=["short", "long"])
        at = Materials(recipe, SILENT)
        np.testing.assert_array_equal(at.answers(at.teacher_inputs(TEXTS)), expected)
        assert at.task.answer_settings(tmp_path)["classes"] == ["short", "long"]


def test_a_file_of_a_shorter_length_says_so(make_onnx: MakeOnnx, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    path = text_classifier(make_onnx, tmp_path / "t.onnx", None, 5)
    at = Materials(recipe_for("text-classification", path, classes=["a", "b"]), SILENT)
    with pytest.raises(TeacherError, match=r"takes 5 tokens; set student\.max_length"):
        at.answers(at.teacher_inputs(TEXTS))


def test_a_token_that_the_file_does_not_know(
    embedder_onnx: Path, recipe_for: MakeRecipe, tokenizer_file: Path, tmp_path: Path
) -> None:
    """Its table has 454 rows: told when it is opened, not at the first text with that token."""
    opened(recipe_for("sentence-embedding", embedder_onnx))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_tokens(["new"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TeacherError, match=r"does not take token 454, the last one of teacher\.tokenizer") as raised:
        opened(recipe_for("sentence-embedding", embedder_onnx, tokenizer=tmp_path / "tokenizer.json"))
    assert "\n" not in str(raised.value)


def test_other_classes_than_columns(make_onnx: MakeOnnx, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    path = text_classifier(make_onnx, tmp_path / "t.onnx")
    at = Materials(recipe_for("text-classification", path, classes=["a", "b", "c"]), SILENT)
    with pytest.raises(TeacherError, match=r"to be \[rows, 3\], one column for each class, got \[3, 2\]"):
        at.answers(at.teacher_inputs(TEXTS))


def test_files_that_are_no_teacher(make_onnx: MakeOnnx, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    images = classifier(make_onnx, tmp_path / "i.onnx", FLOAT, ["batch", 1, 4, 4], softmax=True)
    positions = text_classifier(make_onnx, tmp_path / "p.onnx", "position_ids")
    noise, outside = tmp_path / "n.onnx", tmp_path / "o.onnx"
    noise.write_bytes(b"\xff" * 64)
    big = onnx.load(images)
    onnx.save(big, outside, save_as_external_data=True, size_threshold=0)
    two = {"classes": ["a", "b"]}
    for task, path, settings, words in [
        ("image-classification", tmp_path / "absent.onnx", {}, "found none"),
        ("image-classification", noise, {}, "expected an ONNX model"),
        ("image-classification", outside, {}, "keeps its weights in another file"),
        ("image-classification", images, {"output": "embedding"}, "expected an output embedding, found logits, shares"),
        ("image-classification", positions, {}, "expected one input of images"),
        (
            "text-classification",
            images,
            two,
            "expected inputs of input_ids, attention_mask",
        ),
        ("text-classification", positions, two, "position_ids"),
    ]:
        with pytest.raises(TeacherError) as raised:
            opened(recipe_for(task, path, **settings))
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_black_box_needs_a_permission_of_its_own(embedder_onnx: Path, recipe_for: MakeRecipe) -> None:
    """A permissive licence alone is enough for weights that are in reach, not here; and nothing has been opened."""
    with pytest.raises(TeacherError, match="a black box needs what permits distilling it"):
        rights(recipe_for("sentence-embedding", Path("absent.onnx"), permission=None, license="MIT"))
    allowed = recipe_for("sentence-embedding", embedder_onnx, permission="license-permits", license="MIT")
    assert rights(allowed).license == "MIT"


def test_what_is_recorded(embedder_onnx: Path, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_for("sentence-embedding", embedder_onnx)
    found = describe_teacher(recipe, 3, fingerprint(recipe))
    assert (found.kind, found.provenance.source) == ("onnx", embedder_onnx.name)
    assert found.provenance.sha256 == sha256_file(embedder_onnx)
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    settings: list[dict[str, Any]] = [{}, {"output": "sentence_embedding"}, {"tokenizer": other}]
    assert len({fingerprint(recipe_for("sentence-embedding", embedder_onnx, **one)) for one in settings}) == 3


def test_no_student_is_cut_from_a_black_box(embedder_onnx: Path, recipe_for: MakeRecipe) -> None:
    with pytest.raises(StudentError, match="black box"):
        check_student(recipe_for("sentence-embedding", embedder_onnx), None)
