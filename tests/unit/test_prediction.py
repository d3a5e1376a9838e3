"""Predicted bytes of ONNX files, against files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_transformers import FAMILIES, VOCAB, inputs_of, output_of
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.artifacts import TensorSpec
from compressor.export import export_onnx
from compressor.onnxrt import open_session, run_one
from compressor.prediction import Bytes, Choice, choice_lines, extrapolate, weight_bytes
from compressor.preprocess import ImagePreprocessor
from compressor.progress import SILENT
from compressor.quantize import Mixer, quantize
from compressor.recipe_quantize import Quantization
from compressor.recipe_student import TextStudent
from compressor.students.derive import blank_model, derive_model


class First(nn.Module):
    """A model's first output, of one kind of input."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.model(input_ids=input_ids, attention_mask=attention_mask)[0],)


class OfPixels(First):
    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (self.model(pixel_values=pixel_values)[0],)


def files_of(model: PreTrainedModel, folder: Path) -> Bytes:
    """Exports and quantizes; the file's first output is the model's."""
    model.config.use_cache = False
    pixels = model.main_input_name == "pixel_values"
    feeds = [{name: tensor[:rows].numpy() for name, tensor in inputs_of(model).items()} for rows in (2, 4)]
    if pixels:
        inputs = [TensorSpec("pixel_values", "float32", ("batch", 3, 16, 16))]
    else:
        inputs = [TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
    expected = output_of(model, inputs_of(model))
    of_tokens = not pixels and expected.ndim == 3
    shape = ("batch", "sequence", expected.shape[-1]) if of_tokens else ("batch", *expected.shape[1:])
    module = (OfPixels if pixels else First)(model)
    folder.mkdir()
    exported = export_onnx(
        module, "student", inputs, [TensorSpec("answer", "float32", shape)], feeds, 20, folder / "student.onnx"
    )
    found = torch.from_numpy(run_one(open_session(exported.path), feeds[1])[0])
    if of_tokens:
        found = found * inputs_of(model)["attention_mask"][..., None]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    settings = Quantization(precisions=("dynamic-int8",))
    mixer = Mixer.of(exported, [], ImagePreprocessor(1, 1, 1), settings)
    quantized = quantize(exported, mixer, folder, SILENT)
    (int8,) = quantized.models
    return {"float32": exported.bytes, "int8": int8.bytes}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_students_file_weighs_what_was_predicted(name: str, tmp_path: Path) -> None:
    """From the files of two layers and of three, those of four, which answer as the student does."""
    family = FAMILIES[name]
    teacher = family.model()
    students = [
        derive_model(
            teacher, TextStudent(layers=tuple(range(n)), hidden=16, heads=2, ffn=24), [inputs_of(teacher)]
        ).model
        for n in (2, 3, 4)
    ]
    files = [files_of(student, tmp_path / str(n)) for n, student in enumerate(students)]
    predicted = extrapolate(students[2], (students[0], files[0]), (students[1], files[1]))
    assert predicted.keys() == files[2].keys() == {"float32", "int8"}
    for precision, size in files[2].items():
        assert predicted[precision] == pytest.approx(size, rel=0.02), precision


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_other_sizes_are_predicted_from_the_same_files(name: str, tmp_path: Path) -> None:
    """Another vocabulary and feed-forward than the files have; Llama's token table is its output layer too."""
    family = FAMILIES[name]
    teacher = family.model()
    sizes = [(1, 24, VOCAB), (2, 24, VOCAB), (3, 48, 2 * VOCAB)]
    students = [blank_model(teacher, TextStudent(layers=n, ffn=ffn), tokens).eval() for n, ffn, tokens in sizes]
    for student in students:
        for parameter in student.parameters():  # equal ones, such as biases of 0, would be stored once
            torch.nn.init.normal_(parameter.requires_grad_(False), std=0.1)
    *small, other = students
    shallow, deep = [(model, files_of(model, tmp_path / str(n))) for n, model in enumerate(small)]
    predicted = extrapolate(other, shallow, deep)
    for precision, size in files_of(other, tmp_path / "other").items():
        assert predicted[precision] == pytest.approx(size, rel=0.02), precision


def test_bytes_of_weights_by_hand() -> None:
    """A matrix of 3 by 5 and a bias of 3."""
    linear = nn.Linear(5, 3)
    assert weight_bytes(linear, "float32") == 4 * (15 + 3)
    assert weight_bytes(linear, "int8") == 15 + 4 * 3


@pytest.mark.parametrize(("name", "shared"), [("llama", 1), ("qwen2", 0)])
def test_of_a_table_that_is_the_last_product_too_int8_is_in_blocks(name: str, shared: int) -> None:
    model = FAMILIES[name].model()
    assert int(model.get_output_embeddings().weight is model.get_input_embeddings().weight) == shared
    table, columns = model.get_input_embeddings().weight.numel(), model.get_input_embeddings().weight.shape[1]
    assert columns % 32 == 0
    others = [weight for weight in model.parameters() if weight is not model.get_input_embeddings().weight]
    rest = sum(weight.numel() * (1 if weight.ndim > 1 else 4) for weight in others)
    assert weight_bytes(model, "int8") == rest + table + shared * 5 * table // 32
    assert weight_bytes(model, "static-int16") == rest + (4 if shared else 1) * table
    assert weight_bytes(model, "weight-int8") - weight_bytes(model, "float16") < 0


def test_a_table_for_a_reader() -> None:
    choices = (
        Choice("recipe", 4_624_000, {"float32": 17_900_000, "int8": 4_530_000}),
        Choice("layers 1", 3_636_992, {"float32": 13_960_000, "int8": 3_530_000}),
    )
    assert choice_lines(choices) == [
        "choice      parameters       float32          int8",
        "recipe       4,624,000      17.90 MB       4.53 MB",
        "layers 1     3,636,992      13.96 MB       3.53 MB",
    ]
