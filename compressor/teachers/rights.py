"""Whose the teacher is, and what permits distilling it. Settled before a teacher is loaded, fetched or asked."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.errors import TeacherError
from compressor.recipe import Recipe
from compressor.recipe_teacher import (
    EndpointTeacher,
    FolderTeacher,
    GgufTeacher,
    HubTeacher,
    ModuleTeacher,
    OnnxTeacher,
)
from compressor.teachers.folder import card_license, check_folder
from compressor.teachers.hub import hub_card
from compressor.teachers.sentence import encoder_folder

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


@dataclass(frozen=True)
class Rights:
    """What was declared, else what a permissive licence on the teacher's model card says."""

    license: str | None
    permission: str
    reference: str | None
    terms: str | None


def rights(recipe: Recipe) -> Rights:
    """Licence, permission, where it can be read, and the terms of service that apply.

    Raises TeacherError when nothing permits distilling this teacher.
    """
    teacher = recipe.teacher
    if teacher.permission is not None:
        return Rights(teacher.license, teacher.permission, teacher.reference, teacher.terms)
    if isinstance(teacher, OnnxTeacher | EndpointTeacher):
        raise TeacherError(
            "teacher.permission: a black box needs what permits distilling it; set own-model, license-permits (with"
            " teacher.license, and teacher.terms for a service) or written-permission (with teacher.reference)"
        )
    card = _card(teacher)
    found = teacher.license or card
    if found is not None and found.lower() in PERMISSIVE:
        where = teacher.reference or ("model card in the teacher's folder" if card else None)
        return Rights(found, "license-permits", where, teacher.terms)
    raise TeacherError(
        f"teacher.permission: expected what permits distilling this teacher, found {found or 'no licence'}"
        " in the recipe or the teacher's model card; set own-model, license-permits or written-permission"
        " (on the command line: --own-model, --license)"
    )


def _card(teacher: FolderTeacher | HubTeacher | GgufTeacher | ModuleTeacher) -> str | None:
    if isinstance(teacher, FolderTeacher):
        check_folder(encoder_folder(teacher.path))
        return card_license(teacher.path)
    if isinstance(teacher, HubTeacher) and teacher.license is None:
        card = hub_card(teacher)
        return card_license(card.parent) if card else None
    return None
