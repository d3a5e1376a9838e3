"""Teachers: one file per kind. Here: which kind a recipe names, and whose it is."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from compressor.artifacts import Provenance, Teacher
from compressor.errors import TeacherError
from compressor.recipe import FolderTeacher, ImageClassificationRecipe, Recipe
from compressor.store import key_of, sha256_file, sha256_tree
from compressor.teachers.folder import check_folder, load_folder
from compressor.teachers.module import load_module, source_file
from compressor.teachers.rights import rights
from compressor.teachers.sentence import encoder_folder

__all__ = ["describe_teacher", "fingerprint", "load_teacher", "rights", "teacher_folder"]


def load_teacher(recipe: Recipe) -> nn.Module:
    """The raw teacher model, float32, in evaluation mode, without gradients. Raises TeacherError."""
    if isinstance(recipe, ImageClassificationRecipe):
        model: nn.Module = load_module(recipe.teacher.module, recipe.teacher.weights)
    else:
        model = load_folder(
            teacher_folder(recipe.teacher),
            recipe.task,
            recipe.student.max_length,
            remote_code=recipe.teacher.trust_remote_code,
        )
    return model.requires_grad_(False)


def teacher_folder(teacher: FolderTeacher) -> Path:
    """Where the model of a folder lies: config.json, weights, tokenizer.json. Raises TeacherError."""
    folder = encoder_folder(teacher.path)
    check_folder(folder)
    return folder


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 over everything that makes the teacher what it is. Raises TeacherError."""
    teacher = recipe.teacher
    if isinstance(teacher, FolderTeacher):
        teacher_folder(teacher)
        return sha256_tree(teacher.path)
    if not teacher.weights.is_file():
        raise TeacherError(f"{teacher.weights}: expected the teacher's weights (safetensors), found none")
    return key_of(sha256_file(teacher.weights), sha256_file(source_file(teacher.module, TeacherError)))


def describe_teacher(recipe: Recipe, model: nn.Module, sha256: str) -> Teacher:
    """What is recorded of the teacher: its size, whose it is, what permits its use. Raises TeacherError as `rights`."""
    teacher = recipe.teacher
    own = rights(recipe)
    folder = isinstance(teacher, FolderTeacher)
    source = teacher.path.name if isinstance(teacher, FolderTeacher) else teacher.module.rpartition("/")[2]
    return Teacher(
        kind="folder" if folder else "module",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        provenance=Provenance(
            source,
            sha256,
            own.license,
            own.permission,
            own.reference,
            own.terms,
            getattr(teacher, "trust_remote_code", False),
        ),
    )
