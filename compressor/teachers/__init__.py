"""Teachers: one file per kind. Here: which kind a recipe names, what it is, and where its parts lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compressor.artifacts import Provenance, Teacher
from compressor.errors import TeacherError
from compressor.recipe import ImageClassificationRecipe, Recipe, TextRecipe
from compressor.recipe_teacher import (
    EndpointTeacher,
    FolderTeacher,
    GgufTeacher,
    HubTeacher,
    ModuleTeacher,
    OnnxClassifierTeacher,
    OnnxEmbeddingTeacher,
    OnnxTeacher,
)
from compressor.store import key_of, sha256_file, sha256_tree
from compressor.teachers.folder import check_folder, check_tokens, load_folder
from compressor.teachers.gguf import check_gguf, gguf_tokenizer_file, load_gguf
from compressor.teachers.hub import hub_commit, hub_folder
from compressor.teachers.module import load_module, source_file
from compressor.teachers.onnx_file import check_onnx_file
from compressor.teachers.rights import rights
from compressor.teachers.sentence import encoder_folder
from compressor.teachers.vision import load_vision_folder

__all__ = [
    "Answers",
    "describe_teacher",
    "fingerprint",
    "load_teacher",
    "named",
    "rights",
    "root_folder",
    "teacher_folder",
]

# What a teacher answers to examples, in any number: float32 [examples, width], logits or embeddings.
Answers = Callable[[Sequence[Any]], NDArray[np.float32]]


def load_teacher(recipe: Recipe) -> nn.Module:
    """The raw teacher model, float32, in evaluation mode, without gradients. Raises TeacherError.

    Only for teachers whose weights are in reach: folders, the hub, torch modules.
    """
    teacher = recipe.teacher
    if isinstance(teacher, ModuleTeacher):
        model: nn.Module = load_module(teacher.module, teacher.weights)
    elif isinstance(teacher, GgufTeacher):
        model = load_gguf(teacher.gguf)
        check_tokens(teacher.gguf, model, gguf_tokenizer_file(teacher.gguf, recipe.out / "cache"))
    elif isinstance(teacher, FolderTeacher | HubTeacher):
        folder, remote_code = teacher_folder(teacher), teacher.trust_remote_code
        if isinstance(recipe, ImageClassificationRecipe):
            model = load_vision_folder(folder, recipe.data, remote_code=remote_code)
        else:
            assert isinstance(recipe, TextRecipe)
            model = load_folder(folder, recipe.task, recipe.student.max_length, remote_code=remote_code)
    else:
        raise TeacherError("a black box has no weights to load; only its outputs can be had")
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise TeacherError(f"{named(recipe)[1]}: its weights hold NaN or infinity: get them anew")
    return model.requires_grad_(False)


def root_folder(teacher: FolderTeacher | HubTeacher) -> Path:
    """The folder that a teacher is; fetched from the hub where it has to be. Raises TeacherError."""
    return hub_folder(teacher) if isinstance(teacher, HubTeacher) else teacher.path


def teacher_folder(teacher: FolderTeacher | HubTeacher) -> Path:
    """Where the model of a folder lies: config.json, weights, tokenizer.json. Raises TeacherError."""
    folder = encoder_folder(root_folder(teacher))
    check_folder(folder)
    return folder


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 over everything that makes the teacher's answers what they are. Raises TeacherError."""
    teacher = recipe.teacher
    if isinstance(teacher, FolderTeacher | HubTeacher):
        teacher_folder(teacher)
        return sha256_tree(root_folder(teacher))
    if isinstance(teacher, OnnxTeacher):
        check_onnx_file(teacher.onnx)
        tokenizer = teacher.tokenizer if isinstance(teacher, OnnxEmbeddingTeacher | OnnxClassifierTeacher) else None
        if tokenizer is not None and not tokenizer.is_file():
            raise TeacherError(f"{tokenizer}: expected the teacher's tokenizer.json, found none")
        read = teacher.model_dump(include={"output", "gives", "classes"})
        return key_of(sha256_file(teacher.onnx), tokenizer and sha256_file(tokenizer), read)
    if isinstance(teacher, EndpointTeacher):
        return key_of(
            teacher.model_dump(
                include={"endpoint", "model", "classes", "prompt", "top_logprobs", "label_probability", "max_tokens"}
            )
        )
    if isinstance(teacher, GgufTeacher):
        check_gguf(teacher.gguf)
        return sha256_file(teacher.gguf)
    if not teacher.weights.is_file():
        raise TeacherError(f"{teacher.weights}: expected the teacher's weights (safetensors), found none")
    return key_of(sha256_file(teacher.weights), sha256_file(source_file(teacher.module, TeacherError)))


def named(recipe: Recipe) -> tuple[str, str]:
    """The kind of a recipe's teacher, and what it is called, without the folders that it lies in."""
    teacher = recipe.teacher
    if isinstance(teacher, FolderTeacher):
        return "folder", teacher.path.name
    if isinstance(teacher, HubTeacher):
        return "hub", f"{teacher.hub}@{hub_commit(teacher)}"
    if isinstance(teacher, GgufTeacher):
        return "gguf", teacher.gguf.name
    if isinstance(teacher, OnnxTeacher):
        return "onnx", teacher.onnx.name
    if isinstance(teacher, EndpointTeacher):
        return "endpoint", f"{teacher.model} at {urlsplit(teacher.endpoint).hostname}"
    return "module", teacher.module.rpartition("/")[2]


def describe_teacher(recipe: Recipe, parameters: int, sha256: str) -> Teacher:
    """What is recorded of the teacher: its size, whose it is, what permits its use. Raises TeacherError as `rights`.

    `parameters` is 0 where that is unknown; `sha256` is the teacher's `fingerprint`.
    """
    teacher, own = recipe.teacher, rights(recipe)
    kind, source = named(recipe)
    hash_: str | None = sha256
    if isinstance(teacher, OnnxTeacher):
        hash_ = sha256_file(teacher.onnx)
    elif isinstance(teacher, EndpointTeacher):
        hash_ = None
    remote_code = isinstance(teacher, FolderTeacher | HubTeacher) and teacher.trust_remote_code
    lineage = Provenance(source, hash_, own.license, own.permission, own.reference, own.terms, remote_code)
    return Teacher(kind, parameters, lineage)
