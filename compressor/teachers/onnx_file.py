"""A teacher that is an ONNX file, run by onnxruntime: a black box, of which only the outputs are used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.errors import BundleError, TeacherError
from compressor.intake.onnx_model import check_onnx
from compressor.intake.trial import admit_onnx
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed, TextPreprocessor
from compressor.recipe import ImageClassificationRecipe, Recipe
from compressor.recipe_teacher import OnnxClassifierTeacher, OnnxEmbeddingTeacher, OnnxImageTeacher, OnnxTeacher

# What exporters call the output that holds what a task learns from.
_USUAL_OUTPUTS = {
    "sentence-embedding": ("sentence_embedding", "token_embeddings", "last_hidden_state"),
    "text-classification": ("logits",),
    "token-classification": ("logits",),
    "image-classification": ("logits",),
}
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class OnnxTeacherModel:
    """An open ONNX teacher: `feed` turns a task's feed into the file's, `answers` gives what a student learns from."""

    file: OnnxModel
    _recipe: Recipe
    _session: ort.InferenceSession
    _output: TensorSpec

    def feed(self, feed: Feed) -> Feed:
        """The task's feed (tokens and mask; or pixels) as this file's inputs take it."""
        if isinstance(self._recipe, ImageClassificationRecipe):
            return _image_feed(feed["pixels"], self.file.inputs[0], self._recipe)
        whole = {**feed, "token_type_ids": np.zeros_like(feed["input_ids"])}
        return {
            spec.name: self._padded(whole[spec.name], spec.shape[1]).astype(spec.dtype) for spec in self.file.inputs
        }

    def _padded(self, tokens: NDArray[Any], length: int | str) -> NDArray[Any]:
        """A file may have been exported for one length; what is padded is masked."""
        if isinstance(length, str):
            return tokens
        if tokens.shape[1] > length:
            raise TeacherError(f"{self.file.path.name}: takes {length} tokens; set student.max_length to at most that")
        return np.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))

    def answers(self, feed: Feed) -> NDArray[np.float32]:
        """Logits or unit vectors for a feed of the task: float32 [rows, width], or of a task that answers tokens [rows,
        sequence, width]. Raises TeacherError.
        """
        rows = len(next(iter(feed.values())))
        if self.file.inputs[0].shape[0] == 1:  # exported for single inputs
            singles = [{name: array[row : row + 1] for name, array in feed.items()} for row in range(rows)]
            return np.concatenate([self._answer(single) for single in singles])
        return self._answer(feed)

    def _answer(self, feed: Feed) -> NDArray[np.float32]:
        place = [spec.name for spec in self.file.outputs].index(self._output.name)
        try:
            found = run_one(self._session, self.feed(feed))[place].astype(np.float32)
        except BundleError as error:
            raise TeacherError(f"{self.file.path.name}: {error}") from None
        if self._recipe.task == "sentence-embedding":
            return _unit_vectors(found, feed["attention_mask"], self._output.name)
        return self._logits(found)

    def _logits(self, found: NDArray[np.float32]) -> NDArray[np.float32]:
        recipe = self._recipe
        assert isinstance(recipe.teacher, OnnxClassifierTeacher | OnnxImageTeacher)
        if isinstance(recipe, ImageClassificationRecipe):
            classes = recipe.data.classes
        else:
            assert isinstance(recipe.teacher, OnnxClassifierTeacher)
            classes = recipe.teacher.classes
        before = "rows, sequence" if recipe.task == "token-classification" else "rows"
        if found.ndim != 2 + before.count(",") or found.shape[-1] != len(classes):
            raise TeacherError(
                f"{self.file.path.name}: expected the output {self._output.name} to be [{before}, {len(classes)}], one"
                f" column for each class, got {list(found.shape)}"
            )
        distribution = bool((found >= 0).all() and np.allclose(found.sum(axis=-1), 1, atol=1e-3))
        if recipe.teacher.gives == "probabilities":
            if not distribution:
                raise TeacherError(f"{self.file.path.name}: {self._output.name} does not sum to 1; it gives logits")
            # Logits up to a constant per row, which no softmax sees; the least float32 keeps its logarithm finite.
            return np.log(np.maximum(found, np.finfo(np.float32).tiny))
        if distribution:
            raise TeacherError(
                f"{self.file.path.name}: {self._output.name} holds probabilities; set teacher.gives: probabilities"
            )
        return found


def open_onnx_teacher(recipe: Recipe, teacher: OnnxTeacher) -> OnnxTeacherModel:
    """Opens the file. Raises TeacherError: it does not load, or its inputs or outputs are not a task's."""
    path = teacher.onnx
    check_onnx_file(path)
    admit_onnx(path, TeacherError)
    try:
        described = describe_onnx(path, "teacher", "as given")
        session = open_session(path, len(os.sched_getaffinity(0)))
    except (BundleError, DecodeError, StopIteration) as error:
        raise TeacherError(f"{path}: expected an ONNX file that onnxruntime opens: {error}") from None
    if isinstance(teacher, OnnxImageTeacher):
        _check_image_input(path, described)
    else:
        _check_text_inputs(path, described)
    model = OnnxTeacherModel(described, recipe, session, _chosen_output(path, described, teacher.output, recipe.task))
    if isinstance(teacher, OnnxEmbeddingTeacher | OnnxClassifierTeacher):
        _check_tokens(model, session, TextPreprocessor(teacher.tokenizer, 2).last_id)
    return model


def check_onnx_file(path: Path) -> None:
    """Raises TeacherError unless there is an ONNX file with all its weights in it."""
    if not path.is_file():
        raise TeacherError(f"{path}: expected the teacher as an ONNX file, found none")
    if check_onnx(path, TeacherError).outside:
        raise TeacherError(f"{path}: keeps its weights in another file; save it as one file")


def _chosen_output(path: Path, described: OnnxModel, wanted: str | None, task: str) -> TensorSpec:
    by_name = {spec.name: spec for spec in described.outputs}
    if wanted is None and len(by_name) == 1:
        return described.outputs[0]
    usual = (wanted,) if wanted is not None else _USUAL_OUTPUTS[task]
    found = next((by_name[name] for name in usual if name in by_name), None)
    if found is None:
        raise TeacherError(
            f"{path}: expected an output {' or '.join(usual)}, found {', '.join(by_name)}; set teacher.output"
        )
    return found


def _check_text_inputs(path: Path, described: OnnxModel) -> None:
    names = [spec.name for spec in described.inputs]
    if "input_ids" not in names or set(names) - set(_TEXT_INPUTS):
        raise TeacherError(f"{path}: expected inputs of {', '.join(_TEXT_INPUTS)}, found {', '.join(names)}")


def _check_tokens(model: OnnxTeacherModel, session: ort.InferenceSession, last: int) -> None:
    """Tried out: which of the file's weights is the table of its tokens is not known."""
    ids = np.array([[0, last]], dtype=np.int64)
    try:
        run_one(session, model.feed({"input_ids": ids, "attention_mask": np.ones_like(ids)}))
    except BundleError as error:
        raise TeacherError(
            f"{model.file.path}: does not take token {last}, the last one of teacher.tokenizer; expected the"
            f" tokenizer.json of that model: {error}"
        ) from None


def _check_image_input(path: Path, described: OnnxModel) -> None:
    specs = described.inputs
    if len(specs) != 1 or len(specs[0].shape) != 4 or specs[0].dtype not in ("uint8", "float32"):
        found = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)
        raise TeacherError(
            f"{path}: expected one input of images, uint8 or float32 with four dimensions, found {found}"
        )


def _image_feed(pixels: NDArray[Any], spec: TensorSpec, recipe: ImageClassificationRecipe) -> Feed:
    """uint8 as decoded; float32 scaled and normalised as the recipe's data.mean and data.std say. Channels lie where
    the file's input has as many: last, or else second.
    """
    channels = len(recipe.data.mean)
    images = pixels
    if spec.dtype == "float32":
        mean, std = np.asarray(recipe.data.mean, np.float32), np.asarray(recipe.data.std, np.float32)
        images = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    if spec.shape[3] != channels or spec.shape[1] == channels:
        images = images.transpose(0, 3, 1, 2)
    return {spec.name: np.ascontiguousarray(images)}


def _unit_vectors(found: NDArray[np.float32], mask: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Token vectors [rows, sequence, width] by their mean where the mask is 1; then everything at unit length."""
    if found.ndim == 3:
        weight = mask[..., None].astype(np.float32)
        found = (found * weight[:, : found.shape[1]]).sum(1) / np.maximum(weight.sum(1), np.float32(1e-9))
    if found.ndim != 2:
        raise TeacherError(
            f"teacher.output: expected {name} to be [rows, width] or [rows, sequence, width], got {list(found.shape)}"
        )
    unit: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12))
    return unit
