"""Students of a recipe: made, written and loaded again, whether cut from the teacher or brought along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel

from compressor.errors import RecipeError, StudentError
from compressor.export import export_onnx
from compressor.onnxrt import open_session, run_one
from compressor.recipe import Recipe
from compressor.students import blank_student, check_student, load_student, make_student, write_student
from compressor.students.derive import count
from compressor.tasks import task_for

TEXTS = ["the cat sat on the mat", "the dog runs", "a green house", "walking on the river", "?"]

MODULES = """
import torch
from types import SimpleNamespace

class Table(torch.nn.Module):
    def __init__(self, width=32, tokens=600):
        super().__init__()
        self.table = torch.nn.Embedding(tokens, width)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.table(input_ids) * attention_mask[..., None])

def narrow():
    return Table(8)

def few():
    return Table(tokens=453)

def of_pixels():
    return torch.nn.Linear(3, 3)

class Silent(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        raise ValueError
"""

Make = Callable[..., Recipe]


@pytest.fixture
def training_ids(tokenizer_file: Path) -> list[NDArray[np.int64]]:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    return [np.asarray(tokenizer.encode(text).ids, dtype=np.int64) for text in TEXTS]


@pytest.fixture
def module_file(tmp_path: Path) -> Path:
    path = tmp_path / "own_students.py"
    path.write_text(MODULES)
    return path


def answers(recipe: Recipe, model: torch.nn.Module, folder: Path | None) -> Tensor:
    """Of the deployable model, on texts through the tokenizer of its folder."""
    task = task_for(recipe)
    preprocessor = task.preprocessor(folder)
    feed = preprocessor.collate(preprocessor.encode(TEXTS))
    with torch.inference_mode():
        outputs: tuple[Tensor, ...] = task.deployable(model)(**{k: torch.from_numpy(v) for k, v in feed.items()})
    return outputs[0]


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 2, "hidden": 16, "heads": 2},
        {"layers": 2, "embedding": 8},
        {"layers": 3, "hidden": 24, "heads": 3, "ffn": 40, "embedding": 16, "vocab": 256},
        {"layers": 2, "choose": "influence", "importance": "gradient", "ffn": 32},
    ],
    ids=str,
)
def test_a_derived_student_loads_as_it_was_written(
    text_recipe: Make, bert: BertModel, training_ids: Any, tmp_path: Path, sizes: dict[str, Any]
) -> None:
    recipe = text_recipe(student=sizes)
    check_student(recipe, bert)
    made = make_student(recipe, bert, training_ids, tmp_path)
    student = load_student(recipe, tmp_path)
    assert count(student) == made.parameters == count(blank_student(recipe, bert, training_ids)) < count(bert)
    found = answers(recipe, student, tmp_path)
    assert found.shape == (len(TEXTS), 32), "as wide as the teacher's"
    (tmp_path / "again").mkdir()
    write_student(student, tmp_path / "again")
    (tmp_path / "again" / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    assert torch.equal(answers(recipe, load_student(recipe, tmp_path / "again"), tmp_path / "again"), found)


def test_a_narrow_table_and_a_projection_are_in_the_graph(
    text_recipe: Make, bert: BertModel, training_ids: Any, tmp_path: Path
) -> None:
    """The ONNX file has the table of 8 and no larger one, and answers as the student that was loaded."""
    recipe = text_recipe(student={"layers": 1, "hidden": 16, "heads": 2, "embedding": 8})
    make_student(recipe, bert, training_ids, tmp_path)
    task, student = task_for(recipe), load_student(recipe, tmp_path)
    preprocessor = task.preprocessor(tmp_path)
    inputs, outputs = task.graph(32, preprocessor)
    feeds = task.shape_feeds(preprocessor)
    exported = export_onnx(task.deployable(student), "student", inputs, outputs, feeds, 20, tmp_path / "student.onnx")
    feed = preprocessor.collate(preprocessor.encode(TEXTS))
    found = torch.from_numpy(run_one(open_session(exported.path), feed)[0])
    torch.testing.assert_close(found, answers(recipe, student, tmp_path), rtol=1e-4, atol=1e-5)
    shapes = {tuple(tensor.dims) for tensor in onnx.load(exported.path).graph.initializer}
    tokens = preprocessor.vocabulary_size()  # type: ignore[attr-defined]
    assert (tokens, 8) in shapes
    assert not {(tokens, 16), (tokens, 32)} & shapes


def test_a_narrower_student_answers_in_the_teachers_dimensions(
    text_recipe: Make, bert: BertModel, training_ids: Any, tmp_path: Path
) -> None:
    """The teacher's last norm leaves 16 dimensions alone: the student has just these, in their places."""
    alive = list(range(1, 32, 2))
    with torch.no_grad():
        teacher: Any = BertModel(bert.config).eval()
        for name, norm in teacher.named_parameters():
            if "LayerNorm" in name:
                norm[[i for i in range(32) if i not in alive]] = 0
    recipe = text_recipe(student={"layers": 4, "hidden": 16, "heads": 2})
    make_student(recipe, teacher, training_ids, tmp_path)
    found = answers(recipe, load_student(recipe, tmp_path), tmp_path)
    assert (found[:, [i for i in range(32) if i not in alive]] == 0).all()
    assert (found[:, alive].abs().sum(0) > 0).all()


def test_transformers_alone_loads_the_encoder_of_a_narrower_student(
    text_recipe: Make, bert: BertModel, training_ids: Any, tmp_path: Path
) -> None:
    recipe = text_recipe(student={"layers": 2, "hidden": 16, "heads": 2})
    make_student(recipe, bert, training_ids, tmp_path)
    ours: Any = load_student(recipe, tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(theirs(ids).last_hidden_state, ours(ids).last_hidden_state)


@pytest.fixture
def student_folder(vocabulary: list[str], tokenizer_file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "existing"
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return folder


def test_an_existing_folder_is_the_student(
    text_recipe: Make, bert: BertModel, training_ids: Any, student_folder: Path, tmp_path: Path
) -> None:
    recipe = text_recipe(student={"folder": student_folder})
    check_student(recipe, bert)
    (tmp_path / "run").mkdir()
    made = make_student(recipe, bert, training_ids, tmp_path / "run")
    reference = BertModel.from_pretrained(student_folder).eval()
    expected = answers(recipe, reference, student_folder)
    assert torch.equal(answers(recipe, load_student(recipe, tmp_path / "run"), tmp_path / "run"), expected)
    assert made.parameters == count(reference)
    assert made.notes == ("existing student existing",)


def test_a_module_of_the_users_is_the_student(
    text_recipe: Make, bert: BertModel, training_ids: Any, module_file: Path, tmp_path: Path
) -> None:
    recipe = text_recipe(student={"module": f"{module_file}:Table"})
    check_student(recipe, bert)
    (tmp_path / "run").mkdir()
    made = make_student(recipe, bert, training_ids, tmp_path / "run")
    student: Any = load_student(recipe, tmp_path / "run")
    assert made.parameters == 600 * 32
    vectors = student.table.weight[torch.from_numpy(training_ids[1])].mean(0)
    expected = torch.nn.functional.normalize(vectors, dim=0)
    torch.testing.assert_close(answers(recipe, student, tmp_path / "run")[1], expected)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"module": "{file}:narrow"}, "expected a last_hidden_state as wide as the teacher's 32, found one of 8"),
        (
            {"module": "{file}:of_pixels"},
            r"calling it with input_ids \(0 to 453, as its tokenizer has them\) and attention_mask",
        ),
        ({"module": "{file}:few"}, r"input_ids \(0 to 453, .* failed: index out of range"),
        ({"module": "{file}:Silent"}, r"int64 \[1, 3\], failed: ValueError$"),
        ({"module": "{file}:absent"}, "expected a callable 'absent'"),
        ({"folder": "{folder}/nowhere"}, "expected a folder in Hugging Face layout"),
    ],
)
def test_what_cannot_be_a_student(
    text_recipe: Make, bert: BertModel, module_file: Path, tmp_path: Path, student: dict[str, str], message: str
) -> None:
    given: Any = {key: value.format(file=module_file, folder=tmp_path) for key, value in student.items()}
    given = {key: Path(value) if key == "folder" else value for key, value in given.items()}
    with pytest.raises(StudentError, match=message) as raised:
        check_student(text_recipe(student=given), bert)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_tokenizer(text_recipe: Make, bert: BertModel, student_folder: Path) -> None:
    (student_folder / "tokenizer.json").unlink()
    with pytest.raises(StudentError, match=r"expected a tokenizer\.json in the student's folder"):
        check_student(text_recipe(student={"folder": student_folder}), bert)


def test_a_folder_with_more_tokens_than_its_table(text_recipe: Make, bert: BertModel, student_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(student_folder / "tokenizer.json"))
    tokenizer.add_tokens(["new"])
    tokenizer.save(str(student_folder / "tokenizer.json"))
    with pytest.raises(StudentError, match=r"student\.folder: its tokenizer numbers tokens up to 454, .* 454 rows"):
        check_student(text_recipe(student={"folder": student_folder}), bert)


@pytest.mark.parametrize(
    ("task", "kind"),
    [("text-classification", BertForSequenceClassification), ("token-classification", BertForTokenClassification)],
)
def test_classes_in_another_order_than_the_teachers(
    text_recipe: Make, teacher_folder: Path, student_folder: Path, tokenizer_file: Path, task: str, kind: Any
) -> None:
    """Each answer would ship under the other's name. Names that nobody gave say nothing."""

    def classifier(folder: Path, *names: str) -> Any:
        config = BertConfig(vocab_size=454, hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        config.id2label = dict(enumerate(names))
        model = kind(config)
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
        return model.eval()

    teacher, recipe = classifier(teacher_folder, "sport", "food"), text_recipe(task, student={"folder": student_folder})
    for names in (("sport", "food"), ("LABEL_0", "LABEL_1")):
        classifier(student_folder, *names)
        check_student(recipe, teacher)
    classifier(student_folder, "food", "sport")
    with pytest.raises(StudentError, match=r"its class 0 is 'food' .*, but 'sport' in its teacher") as raised:
        check_student(recipe, teacher)
    assert "\n" not in str(raised.value)


def test_a_folder_with_other_classes(
    text_recipe: Make, student_folder: Path, vocabulary: list[str], tokenizer_file: Path
) -> None:
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_attention_heads=2, num_labels=3)
    teacher = BertForSequenceClassification(config).eval()
    with pytest.raises(StudentError, match="a model for text-classification needs"):
        check_student(text_recipe("text-classification", student={"folder": student_folder}), teacher)
    config.num_labels, config.num_hidden_layers = 2, 1
    BertForSequenceClassification(config).save_pretrained(student_folder)
    (student_folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    with pytest.raises(StudentError, match="expected a logits as wide as the teacher's 3, found one of 2"):
        check_student(text_recipe("text-classification", student={"folder": student_folder}), teacher)


def test_a_student_that_is_no_smaller_is_refused(
    text_recipe: Make, bert: BertModel, teacher_folder: Path, training_ids: Any, tmp_path: Path
) -> None:
    recipe = text_recipe(student={"folder": teacher_folder})
    with pytest.raises(StudentError, match="choose fewer layers or smaller widths"):
        make_student(recipe, bert, training_ids, tmp_path)


@pytest.mark.parametrize("origin", [{"folder": Path("x")}, {"module": "x.py:make"}])
def test_an_existing_student_has_no_sizes(text_recipe: Make, origin: dict[str, Any]) -> None:
    (name,) = origin
    with pytest.raises(RecipeError, match=rf"student\.{name} is a whole student of its own: leave out ffn, vocab"):
        text_recipe(student={**origin, "ffn": 8, "vocab": 300})
    with pytest.raises(RecipeError, match="is a whole student of its own"):
        text_recipe(student={"folder": Path("x"), "module": "x.py:make"})
