"""Image classifiers in Hugging Face folders: as teachers, cut into students, brought along as students."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_transformers import FAMILIES, FFN, HEADS, HIDDEN, LAYERS, output_of
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
)

from compressor.errors import CompressorError, RecipeError, StudentError, TeacherError
from compressor.export import export_onnx
from compressor.onnxrt import open_session, run_one
from compressor.recipe import Recipe
from compressor.recipe_file import recipe_from_values
from compressor.recipe_student import TextStudent
from compressor.students import blank_student, check_student, is_derived, load_student, make_student, write_student
from compressor.students.derive import count, derive_model
from compressor.students.vision import derive_vision
from compressor.tasks import task_for
from compressor.teachers import describe_teacher, fingerprint, load_teacher

CLASSES = ("ant", "bee", "cat", "dog", "elk")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
Make = Callable[..., Recipe]


@pytest.fixture
def vit() -> Any:
    """Four layers, 16 by 16 pixels, patches of 4 by 4, three channels."""
    model = FAMILIES["vit"].model()
    model.config.id2label = dict(enumerate(CLASSES))
    return model


@pytest.fixture
def vit_folder(vit: PreTrainedModel, tmp_path: Path) -> Path:
    folder = tmp_path / "vit"
    vit.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_of(vit_folder: Path, tmp_path: Path) -> Make:
    """A recipe with the ViT as its teacher; keyword arguments replace groups of settings, or single ones of `data`."""

    def make(**groups: Any) -> Recipe:
        values: dict[str, Any] = {
            "task": "image-classification",
            "teacher": {"path": vit_folder, "permission": "own-model"},
            "out": tmp_path / "out",
            **groups,
        }
        data = {"train": tmp_path / "train.npz", "eval": tmp_path / "eval.npz", "size": [16, 16]}
        values["data"] = {**data, "classes": CLASSES, "mean": MEAN, "std": STD, **groups.get("data", {})}
        return recipe_from_values(values, "test")

    return make


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """uint8 [20, 16, 16, 3], darker from channel to channel."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3))
    return (noise * np.array([1.0, 0.6, 0.3])).astype(np.uint8)


def by_hand(images: NDArray[np.uint8]) -> Tensor:
    """What the network is shown of images, in float64 by the definition of mean and std."""
    return torch.from_numpy(((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32))


def logits_of(recipe: Recipe, model: torch.nn.Module, images: NDArray[np.uint8]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = task_for(recipe).deployable(model)(torch.from_numpy(images))[0]
    return logits


def refused(kind: type[CompressorError], act: Callable[[], object]) -> str:
    with pytest.raises(kind) as raised:
        act()
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_folder_teaches_what_its_model_says(
    recipe_of: Make, vit: PreTrainedModel, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    recipe = recipe_of()
    teacher = load_teacher(recipe)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    expected = output_of(vit, {"pixel_values": by_hand(images)})
    torch.testing.assert_close(logits_of(recipe, teacher, images), expected, rtol=1e-4, atol=1e-4)
    described = describe_teacher(recipe, count(teacher), fingerprint(recipe))
    assert (described.kind, described.provenance.source) == ("folder", "vit")
    assert str(tmp_path) not in str(described)


def test_a_name_on_the_hub(
    recipe_of: Make, vit: PreTrainedModel, vit_folder: Path, put_on_hub: Callable[[Path], Path]
) -> None:
    put_on_hub(vit_folder)
    recipe = recipe_of(teacher={"hub": "org/tiny", "permission": "own-model"})
    loaded = load_teacher(recipe).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in vit.state_dict().items())


def test_the_graph_says_what_torch_says(
    recipe_of: Make, vit: PreTrainedModel, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    task = task_for(recipe_of())
    preprocessor = task.preprocessor(None)
    inputs, outputs = task.graph(len(CLASSES), preprocessor)
    feeds = task.shape_feeds(preprocessor)
    exported = export_onnx(task.deployable(vit), "teacher", inputs, outputs, feeds, 20, tmp_path / "teacher.onnx")
    logits, probabilities = run_one(open_session(exported.path), {"pixels": images})
    expected = output_of(vit, {"pixel_values": by_hand(images)})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probabilities, expected.double().softmax(-1), atol=1e-5)


def test_with_everything_kept_the_student_is_the_teacher(
    recipe_of: Make, vit: PreTrainedModel, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    recipe: Any = recipe_of(student={"layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "ffn": FFN})
    derive_vision(vit, recipe, list(images), tmp_path)
    student = load_student(recipe, tmp_path)
    assert torch.equal(logits_of(recipe, student, images), logits_of(recipe, vit, images))
    message = refused(StudentError, lambda: make_student(recipe, vit, list(images), tmp_path))
    assert "choose fewer layers or smaller widths" in message


def test_what_matters_is_measured_on_normalised_training_images(
    recipe_of: Make, vit: PreTrainedModel, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    """The student is the one that is cut on images normalised by hand; raw pixels would make another."""
    sizes: dict[str, Any] = {"layers": 3, "choose": "influence", "hidden": 16, "heads": 2, "ffn": 20}
    recipe = recipe_of(student=sizes)
    made = make_student(recipe, vit, list(images), tmp_path)
    student = load_student(recipe, tmp_path).state_dict()
    assert count(load_student(recipe, tmp_path)) == made.parameters == count(blank_student(recipe, vit, list(images)))
    assert made.notes[1:] == ("hidden 16 of 32", "heads 2 of 4", "feed-forward 20 of 64")

    def cut(pixels: Tensor) -> dict[str, Tensor]:
        feeds = [{"pixel_values": part} for part in pixels.split(16)]
        return derive_model(vit, TextStudent(**sizes), feeds).model.state_dict()

    def differ(other: dict[str, Tensor]) -> list[str]:
        return [name for name, tensor in other.items() if not torch.allclose(tensor, student[name], atol=1e-5)]

    assert not differ(cut(by_hand(images)))
    assert differ(cut(torch.from_numpy(images).permute(0, 3, 1, 2).float()))


def test_transformers_alone_loads_a_student(
    recipe_of: Make, vit: PreTrainedModel, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    recipe = recipe_of(student={"ffn": 16})
    make_student(recipe, vit, list(images), tmp_path)
    student = load_student(recipe, tmp_path)
    (tmp_path / "again").mkdir()
    write_student(student, tmp_path / "again")
    theirs = ViTForImageClassification.from_pretrained(tmp_path / "again", local_files_only=True)
    assert theirs.config.num_hidden_layers == LAYERS, "null keeps all of them"
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    found = output_of(theirs.eval(), {"pixel_values": by_hand(images)})
    torch.testing.assert_close(found, logits_of(recipe, student, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"layers": 5}, "student.layers: expected 1 to 4 (the teacher's depth), got 5"),
        ({"layers": 2, "hidden": 64}, "student.hidden: expected at most 32 (the teacher's), got 64"),
        ({"hidden": 20, "heads": 3}, "student.hidden: expected a multiple of the 3 heads, got 20"),
        ({"layers": 2, "ffn": 65}, "student.ffn: expected at most 64 (the teacher's), got 65"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(recipe_of: Make, vit: PreTrainedModel, student: dict[str, int], message: str) -> None:
    assert message in refused(StudentError, lambda: check_student(recipe_of(student=student), vit))


def test_what_no_student_is_cut_from(recipe_of: Make) -> None:
    convolutions = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2))
    recipe = recipe_of(student={"layers": 1})
    assert "no student can be derived from a 'convnext'" in refused(
        StudentError, lambda: check_student(recipe, convolutions)
    )
    own = refused(StudentError, lambda: check_student(recipe, torch.nn.Flatten()))
    assert own.startswith("no student can be cut from a torch module of your own; set student.widths for a small CNN")
    assert "from a black box; set student.widths" in refused(StudentError, lambda: check_student(recipe, None))


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES[:4], "tells 5 classes apart, but data.classes names 4"),
        (("ant", "bee", "cow", "dog", "elk"), "its class 2 is 'cat' (id2label in its config.json), but 'cow' in"),
        (("bee", "ant", "cat", "dog", "elk"), "its class 0 is 'ant' (id2label in its config.json), but 'bee' in"),
    ],
    ids=["fewer", "another", "another order"],
)
def test_classes_that_are_not_the_models(recipe_of: Make, classes: tuple[str, ...], message: str) -> None:
    assert message in refused(TeacherError, lambda: load_teacher(recipe_of(data={"classes": classes})))


def test_classes_that_nobody_named_are_counted(recipe_of: Make, vit_folder: Path) -> None:
    set_config(vit_folder, id2label={str(number): f"LABEL_{number}" for number in range(5)})
    assert isinstance(load_teacher(recipe_of()), ViTForImageClassification)
    assert "names 4" in refused(TeacherError, lambda: load_teacher(recipe_of(data={"classes": CLASSES[:4]})))


def test_images_that_the_model_does_not_read(recipe_of: Make) -> None:
    small = refused(TeacherError, lambda: load_teacher(recipe_of(data={"size": [12, 16]})))
    assert "reads images of 16 by 16 pixels (image_size in its config.json), but data.size is [12, 16]" in small
    grey = refused(TeacherError, lambda: load_teacher(recipe_of(data={"mean": [0.5], "std": [0.5]})))
    assert "reads images of 3 channels, but data.mean has 1 values: one for each channel" in grey


def test_images_of_another_size_than_the_config_names(recipe_of: Make, vit_folder: Path) -> None:
    """A network of convolutions reads them, whatever size its config names."""
    shutil.rmtree(vit_folder)
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, id2label=dict(enumerate(CLASSES)))
    ConvNextForImageClassification(config).save_pretrained(vit_folder)
    assert config.image_size == 224
    recipe = recipe_of(data={"size": [16, 24]})
    assert logits_of(recipe, load_teacher(recipe), np.zeros((2, 16, 24, 3), np.uint8)).shape == (2, 5)


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, True),
        ({"image_mean": MEAN, "image_std": STD}, True),
        ({"image_mean": [0.5, 0.4, 0.3001], "image_std": STD}, True),
        ({"image_mean": MEAN, "image_std": [0.5, 0.5, 0.5]}, False),
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": STD}, False),
        ({"image_mean": MEAN, "image_std": STD, "do_normalize": False}, False),
        # x / 127.5, less 1, 0.8, 0.6, over 0.4, 0.5, 0.6, is the same.
        (
            {"image_mean": [2 * v for v in MEAN], "image_std": [2 * v for v in STD], "rescale_factor": 1 / 127.5},
            True,
        ),
        ({"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 127.5}, False),
        (
            {"image_mean": [255 * v for v in MEAN], "image_std": [255 * v for v in STD], "do_rescale": False},
            True,
        ),
    ],
    ids=str,
)
def test_the_recipe_normalises_as_the_processor(
    recipe_of: Make, vit_folder: Path, settings: dict[str, Any], fits: bool
) -> None:
    (vit_folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if fits:
        load_teacher(recipe_of())
    else:
        assert "set data.mean: [" in refused(TeacherError, lambda: load_teacher(recipe_of()))


def test_what_is_told_of_a_processor_can_be_pasted(recipe_of: Make, vit_folder: Path) -> None:
    (vit_folder / "preprocessor_config.json").write_text('{"image_mean": [0.485, 0.456, 0.406], "image_std": 0.225}')
    told = refused(TeacherError, lambda: load_teacher(recipe_of()))
    assert told.endswith("set data.mean: [0.485, 0.456, 0.406] and data.std: [0.225]")
    load_teacher(recipe_of(data={"mean": [0.485, 0.456, 0.406], "std": [0.225] * 3}))
    (vit_folder / "preprocessor_config.json").write_text("[]")
    assert "expected a JSON object" in refused(TeacherError, lambda: load_teacher(recipe_of()))


def test_folders_that_classify_no_images(recipe_of: Make, vit_folder: Path) -> None:
    weights = vit_folder / "model.safetensors"
    weights.rename(vit_folder / "pytorch_model.bin")
    assert "pickles only, which can run code" in refused(TeacherError, lambda: load_teacher(recipe_of()))
    shutil.rmtree(vit_folder)
    BertForSequenceClassification(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(vit_folder)
    assert "transformers does not load it" in refused(TeacherError, lambda: load_teacher(recipe_of()))


@pytest.fixture
def student_folder(vit: PreTrainedModel, tmp_path: Path) -> Path:
    """One layer less than the teacher, and weights of its own."""
    config = type(vit.config)(**{**vit.config.to_dict(), "num_hidden_layers": LAYERS - 1})
    torch.manual_seed(7)
    ViTForImageClassification(config).save_pretrained(tmp_path / "existing")
    return tmp_path / "existing"


def test_an_existing_folder_is_the_student(
    recipe_of: Make, vit: PreTrainedModel, student_folder: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    recipe = recipe_of(student={"folder": student_folder})
    check_student(recipe, vit)
    assert not is_derived(recipe)
    (tmp_path / "run").mkdir()
    made = make_student(recipe, vit, [], tmp_path / "run")
    assert made.notes == ("existing student existing",)
    reference = ViTForImageClassification.from_pretrained(student_folder, local_files_only=True).eval()
    assert made.parameters == count(reference)
    expected = output_of(reference, {"pixel_values": by_hand(images)})
    found = logits_of(recipe, load_student(recipe, tmp_path / "run"), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_existing_folder_that_does_not_fit(recipe_of: Make, vit: PreTrainedModel, student_folder: Path) -> None:
    recipe = recipe_of(student={"folder": student_folder})
    set_config(student_folder, id2label=dict(enumerate(reversed(CLASSES))))
    message = refused(StudentError, lambda: check_student(recipe, vit))
    assert message.startswith("student.folder: ")
    assert "its class 0 is 'elk'" in message
    absent = recipe_of(student={"folder": student_folder / "nowhere"})
    assert "found nothing" in refused(StudentError, lambda: check_student(absent, vit))


@pytest.mark.parametrize(
    ("student", "derived"),
    [
        ({}, False),
        ({"widths": [8, 16], "strides": [2]}, False),
        ({"module": "x.py:make"}, False),
        ({"folder": Path("x")}, False),
        ({"layers": 3, "hidden": 256, "heads": 4, "ffn": 1024}, True),
        ({"layers": [0, 2]}, True),
        ({"heads": 4}, True),
        ({"ffn": 16, "importance": "gradient"}, True),
    ],
    ids=str,
)
def test_a_size_says_that_the_student_is_cut(recipe_of: Make, student: dict[str, Any], derived: bool) -> None:
    assert is_derived(recipe_of(student=student)) == derived


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            {"layers": 2, "ffn": 8, "widths": [8, 16], "strides": [2]},
            "layers, ffn cut the student from the teacher, widths, strides build a small CNN: leave out the one or the",
        ),
        ({"choose": "influence", "widths": [8, 8, 8]}, "choose cut the student from the teacher, widths build"),
        ({"folder": Path("x"), "layers": 2}, "student.folder is a whole student of its own: leave out layers"),
        (
            {"module": "x.py:make", "widths": [8, 8, 8]},
            "student.module is a whole student of its own: leave out widths",
        ),
        (
            {"module": "x.py:make", "folder": Path("x")},
            "student.folder is a whole student of its own: leave out module",
        ),
        (
            {"importance": "gradient"},
            "importance say what is chosen of a teacher: set one of layers, hidden, heads, ffn",
        ),
        ({"layer": 2}, "unknown key student.layer; did you mean layers?"),
        ({"vocab": 300}, "unknown key student.vocab"),
        ({"layers": 0.5}, "student.layers"),
    ],
    ids=str,
)
def test_students_of_two_kinds_are_refused(recipe_of: Make, student: dict[str, Any], message: str) -> None:
    assert message in refused(RecipeError, lambda: recipe_of(student=student))
