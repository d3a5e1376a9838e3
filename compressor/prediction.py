"""What a student's ONNX files will weigh, before anything is trained.

A file is its weights and its graph. The weights are counted; the graph (and what the quantizer adds to it) grows by the
same number of bytes with each layer, so the student is exported and quantized at two small depths, its weights without
meaning, and what these files hold beside their weights tells the rest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from compressor.distill import outputs_of
from compressor.export import export_onnx, rewrite_onnx
from compressor.materials import Materials
from compressor.preprocess import Feed
from compressor.progress import SILENT
from compressor.quantize import Mixer, quantize
from compressor.quantize.sites import NARROWEST_BLOCK
from compressor.quantize.weight_only import block_of
from compressor.recipe import Recipe
from compressor.recipe_student import TransformerStudent
from compressor.students import blank_student, is_derived
from compressor.students.derive import count

Bytes = dict[str, int]
# Bytes of a weight of a matrix; in blocks of 32, with the scale and the zero point that they share.
_WEIGHT_BYTES = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "weight-int8": 1 + 5 / 32,
    "weight-int4": 0.5 + 4.5 / 32,
}
_CALIBRATION = 8  # how many examples set the ranges changes no size


@dataclass(frozen=True)
class Choice:
    """A student that a recipe could have: what differs from the recipe, parameters, predicted bytes by precision."""

    choice: str
    parameters: int
    onnx_bytes: Bytes


def compare_choices(at: Materials) -> tuple[Choice, ...]:
    """The recipe's student, and if it is cut from the teacher, its neighbours: other layers, vocabularies, widths."""
    recipes = {"recipe": at.recipe, **_neighbours(at)}
    students = [blank_student(recipe, at.teacher_weights, at.training_inputs) for recipe in recipes.values()]
    sizes = predict_bytes(at, students)
    return tuple(
        Choice(name, count(student), size) for name, student, size in zip(recipes, students, sizes, strict=True)
    )


def predict_bytes(at: Materials, students: Sequence[nn.Module]) -> list[Bytes]:
    """Bytes of each student's ONNX files: "float32", "int8" (the first of the recipe's precisions), others by name.

    The first student is the recipe's; the others differ from it in layers, vocabulary or feed-forward width alone.
    """
    first = students[0]
    if not is_derived(at.recipe) or not isinstance(first, PreTrainedModel):
        return [_file_bytes(at, student) for student in students]
    depths = _depths(first.config.num_hidden_layers)
    at.progress.log(f"  exporting the student with {depths[0]} and with {depths[1]} layers")
    skeletons = [_skeleton(at, depth, first) for depth in depths]
    shallow, deep = [(skeleton, _file_bytes(at, skeleton)) for skeleton in skeletons]
    return [extrapolate(student, shallow, deep) for student in students if isinstance(student, PreTrainedModel)]


def extrapolate(
    student: PreTrainedModel, shallow: tuple[PreTrainedModel, Bytes], deep: tuple[PreTrainedModel, Bytes]
) -> Bytes:
    """Bytes of the student's files, from those of the same student with fewer layers and with one more than these."""
    layers = student.config.num_hidden_layers - shallow[0].config.num_hidden_layers
    graphs = [
        {precision: size - weight_bytes(model, precision) for precision, size in sizes.items()}
        for model, sizes in (shallow, deep)
    ]
    return {
        precision: graph + layers * (graphs[1][precision] - graph) + weight_bytes(student, precision)
        for precision, graph in graphs[0].items()
    }


def weight_bytes(student: nn.Module, precision: str) -> int:
    """Four bytes a weight, of a matrix what `precision` takes, one in int8; shared ones are stored once, for which int8
    takes blocks.
    """
    weights = list(student.parameters())
    matrices = sum(weight.numel() for weight in weights if weight.ndim > 1)
    vectors = sum(weight.numel() for weight in weights if weight.ndim <= 1)
    each = _WEIGHT_BYTES.get(precision, 1)
    rows, columns = (0, 1) if precision in _WEIGHT_BYTES else _shared_table(student)
    shared = 4 if precision == "static-int16" or columns % NARROWEST_BLOCK else 1 + 5 / block_of(columns, 32, True)
    return 4 * vectors + round((matrices - rows * columns) * each + rows * columns * shared)


def _shared_table(student: nn.Module) -> tuple[int, int]:
    """The shape of a table that is the last product's weight too; (0, 1) where none is."""
    if isinstance(student, PreTrainedModel):
        table: Any = student.get_input_embeddings()
        head: Any = student.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is not None and head.weight is table.weight:
            return len(table.weight), table.weight.shape[1]
    return 0, 1


def choice_lines(choices: Sequence[Choice]) -> list[str]:
    """A table for a reader."""
    precisions = list(choices[0].onnx_bytes)
    wide = max(len(choice.choice) for choice in choices)
    lines = [f"{'choice':{wide}}  {'parameters':>12}" + "".join(f"  {name:>12}" for name in precisions)]
    for choice in choices:
        sizes = "".join(f"  {choice.onnx_bytes[name] / 1e6:9.2f} MB" for name in precisions)
        lines.append(f"{choice.choice:{wide}}  {choice.parameters:>12,}{sizes}")
    return lines


def _neighbours(at: Materials) -> dict[str, Recipe]:
    recipe = at.recipe
    if not is_derived(recipe):
        return {}
    assert isinstance(at.teacher, PreTrainedModel)
    own, config = blank_student(recipe, at.teacher, at.training_inputs), at.teacher.config
    assert isinstance(own, PreTrainedModel)
    depth = own.config.num_hidden_layers
    assert isinstance(recipe.student, TransformerStudent)
    ffn = recipe.student.ffn
    changes: list[tuple[str, int, int]] = [
        ("layers", layers, config.num_hidden_layers) for layers in (depth - 1, depth + 1, config.num_hidden_layers)
    ]
    if own.main_input_name == "input_ids":
        tokens = own.config.vocab_size
        changes += [("vocab", size, config.vocab_size) for size in (tokens // 2, 2 * tokens, config.vocab_size)]
    changes += [("ffn", ffn // 2, ffn)] if ffn is not None else []
    found: dict[str, Recipe] = {}
    for name, value, most in changes:
        if value == getattr(own.config, {"layers": "num_hidden_layers", "vocab": "vocab_size"}.get(name, ""), None):
            continue
        if (256 if name == "vocab" else 1) <= value <= most:
            found[f"{name} {value}"] = _with_student(recipe, name, value)
    return found


def _with_student(recipe: Any, name: str, value: Any) -> Any:
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={name: value})})


def _depths(layers: int) -> tuple[int, int]:
    """At most the student's own, for some models build their first layer, or the mask of their second, differently."""
    shallow = min(max(layers - 1, 1), 2)
    return shallow, shallow + 1


def _skeleton(at: Materials, depth: int, own: PreTrainedModel) -> PreTrainedModel:
    """The recipe's student with so many layers; a teacher of one layer is taken to have none to spare."""
    if depth == own.config.num_hidden_layers:
        return own
    assert isinstance(at.teacher, PreTrainedModel)
    within = min(depth, at.teacher.config.num_hidden_layers)
    blank = blank_student(_with_student(at.recipe, "layers", within), at.teacher, at.training_inputs)
    assert isinstance(blank, PreTrainedModel)
    return blank


def _file_bytes(at: Materials, student: nn.Module) -> Bytes:
    _disturb(student)
    preprocessor = at.planning_preprocessor(student)
    feeds = [_within(feed, student) for feed in at.task.shape_feeds(preprocessor)]
    module = at.task.deployable(student).eval()
    inputs, outputs = at.task.graph(outputs_of(module, feeds[0]).shape[-1], preprocessor)
    examples = preprocessor.encode(at.data.train[:_CALIBRATION])
    sample = list(_within({str(i): example for i, example in enumerate(examples)}, student).values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        opset = at.recipe.export.opset
        exported = export_onnx(module, "student", inputs, outputs, feeds, opset, folder / "exported.onnx")
        (folder / "rewritten").mkdir()
        rewritten = rewrite_onnx(exported, feeds[:1], folder / "rewritten")
        # What these gain says nothing of an untrained student, and their bytes are few.
        settings = at.recipe.quantize.model_copy(update={"migrate": "off", "correct_bias": "off"})
        mixer = Mixer.of(rewritten, sample, preprocessor, settings)
        quantized = quantize(rewritten, mixer, folder, SILENT)
    return {
        "float32": rewritten.bytes,
        **{model.name.removeprefix("student-"): model.bytes for model in quantized.models},
    }


def _disturb(student: nn.Module) -> None:
    """Adds noise to every weight: the exporter stores equal ones once, such as the zeros that new biases all are."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in student.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.01 * torch.randn(tensor.shape, generator=generator)


def _within(feed: Feed, student: nn.Module) -> dict[str, NDArray[Any]]:
    """Token ids of the teacher, folded into the student's smaller vocabulary: only the size counts here."""
    if not isinstance(student, PreTrainedModel):
        return feed
    return {n: array % student.config.vocab_size if array.dtype == np.int64 else array for n, array in feed.items()}
