"""Teachers: one file per kind. Here: which kind a recipe names, and whose it is."""

from __future__ import annotations

from torch import nn

from compressor.artifacts import Provenance, Teacher
from compressor.errors import TeacherError
from compressor.recipe import FolderTeacher, ImageClassificationRecipe, Recipe
from compressor.store import key_of, sha256_file, sha256_tree
from compressor.teachers.folder import card_license, check_folder, load_folder
from compressor.teachers.module import load_module, source_file

__all__ = ["describe_teacher", "fingerprint", "load_teacher", "rights"]

# Licences (SPDX, lower case) that permit derived works without asking.
PERMISSIVE = {
    "apache-2.0",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc0-1.0",
    "isc",
    "mit",
    "unlicense",
}


def load_teacher(recipe: Recipe) -> nn.Module:
    """The raw teacher model, float32, in evaluation mode, without gradients. Raises TeacherError."""
    if isinstance(recipe, ImageClassificationRecipe):
        model: nn.Module = load_module(recipe.teacher.module, recipe.teacher.weights)
    else:
        model = load_folder(recipe.teacher.path, recipe.task, recipe.student.max_length)
    return model.requires_grad_(False)


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 over everything that makes the teacher what it is. Raises TeacherError."""
    teacher = recipe.teacher
    if isinstance(teacher, FolderTeacher):
        check_folder(teacher.path)
        return sha256_tree(teacher.path)
    if not teacher.weights.is_file():
        raise TeacherError(f"{teacher.weights}: expected the teacher's weights (safetensors), found none")
    return key_of(sha256_file(teacher.weights), sha256_file(source_file(teacher.module, TeacherError)))


def describe_teacher(recipe: Recipe, model: nn.Module, sha256: str) -> Teacher:
    """What is recorded of the teacher: its size, whose it is, what permits its use. Raises TeacherError as `rights`."""
    teacher = recipe.teacher
    license_, permission, reference = rights(recipe)
    folder = isinstance(teacher, FolderTeacher)
    source = teacher.path.name if isinstance(teacher, FolderTeacher) else teacher.module.rpartition("/")[2]
    return Teacher(
        kind="folder" if folder else "module",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        provenance=Provenance(source, sha256, license_, permission, reference),
    )


def rights(recipe: Recipe) -> tuple[str | None, str, str | None]:
    """Licence, permission and where it can be read: as declared, else by a permissive licence in the teacher's folder.

    Raises TeacherError when nothing permits distilling this teacher.
    """
    teacher = recipe.teacher
    if teacher.permission is not None:
        return teacher.license, teacher.permission, teacher.reference
    card = card_license(teacher.path) if isinstance(teacher, FolderTeacher) else None
    found = teacher.license or card
    if found is not None and found.lower() in PERMISSIVE:
        return found, "license-permits", teacher.reference or ("model card in the teacher's folder" if card else None)
    raise TeacherError(
        f"teacher.permission: expected what permits distilling this teacher, found {found or 'no licence'}"
        " in the recipe or the teacher's model card; set own-model, license-permits or written-permission"
        " (on the command line: --own-model, --license)"
    )
