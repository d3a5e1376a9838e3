"""Whose the teacher is, and what permits distilling it. Settled before a teacher is loaded, fetched or asked."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.errors import TeacherError
from compressor.recipe import Recipe
from compressor.recipe_teacher import EndpointTeacher, FolderTeacher, HubTeacher, OnnxTeacher, TeacherRights
from compressor.teachers.folder import card_licenses, check_folder
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

    Raises TeacherError when nothing permits distilling this teacher, and when the recipe's licence is not the card's
    and nothing says where it can be read.
    """
    teacher = recipe.teacher
    stated = _stated(teacher)
    if teacher.license and stated and teacher.license.lower() not in [one.lower() for one in stated]:
        raise TeacherError(
            f"teacher.license: {teacher.license}, but the teacher's model card says {', '.join(stated)}; leave it to"
            " the card, or set teacher.reference to where that licence can be read"
        )
    if teacher.permission is not None:
        return Rights(teacher.license, teacher.permission, teacher.reference, teacher.terms)
    if isinstance(teacher, OnnxTeacher | EndpointTeacher):
        raise TeacherError(
            "teacher.permission: a black box needs what permits distilling it; set own-model, license-permits (with"
            " teacher.license, and teacher.terms for a service) or written-permission (with teacher.reference)"
        )
    found = (teacher.license,) if teacher.license else stated
    if found and all(one.lower() in PERMISSIVE for one in found):
        where = teacher.reference or ("model card in the teacher's folder" if stated else None)
        return Rights(", ".join(found), "license-permits", where, teacher.terms)
    raise TeacherError(
        f"teacher.permission: expected what permits distilling this teacher, found {', '.join(found) or 'no licence'}"
        " in the recipe or the teacher's model card; set own-model, license-permits or written-permission"
        " (on the command line: --own-model, --license)"
    )


def _stated(teacher: TeacherRights) -> tuple[str, ...]:
    """The licences on the teacher's model card, where they count: all of them must permit it. Raises TeacherError."""
    if teacher.permission not in (None, "license-permits") or (teacher.license and teacher.reference):
        return ()
    if isinstance(teacher, FolderTeacher):
        check_folder(encoder_folder(teacher.path))
        return card_licenses(teacher.path)
    if isinstance(teacher, HubTeacher):
        card = hub_card(teacher)
        return card_licenses(card.parent) if card else ()
    return ()
