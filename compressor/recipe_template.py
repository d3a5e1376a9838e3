"""A recipe to fill in: every setting with its default and what it means, written from the recipe's own fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from compressor.recipe import ENDPOINT_RECIPES, RECIPES
from compressor.recipe_data import DataSource
from compressor.recipe_file import kinds_of

_ORDER = ("task", "out", "cache", "teacher", "data", "student", "distill")


def recipe_template(task: str) -> str:
    """A commented recipe for a task: required values as placeholders, optional ones at their defaults."""
    lines = [f"# A recipe for `compressor compress`, task {task}.", "", *_template_lines(RECIPES[task], "")]
    if task in ENDPOINT_RECIPES:
        lines += ["", "# Or, where the teacher is an endpoint, and only what it writes is known:", "#"]
        lines += [
            f"# {line}".rstrip() for text in _template_lines(ENDPOINT_RECIPES[task], "") for line in text.split("\n")
        ]
    return "\n".join(lines) + "\n"


def _template_lines(model: type[BaseModel], indent: str) -> Iterator[str]:
    fields = sorted(
        model.model_fields.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else len(_ORDER)
    )
    for name, field in fields:
        inner, kinds = field.annotation, list(kinds_of(field).values())
        if isinstance(inner, type) and issubclass(inner, BaseModel) and inner is not DataSource:  # that, as a path
            kinds = [inner]
        if kinds and field.default is not None:
            yield f"\n{indent}{name}:  # {field.description}"
            yield from _template_lines(kinds[0], indent + "  ")
            for other in kinds[1:]:
                yield from _alternative_lines(other, kinds[0], indent + "  ")
        else:
            yield f"{indent}{name}: {_template_value(name, field)}" + (
                f"  # {field.description}" if field.description else ""
            )


def _alternative_lines(other: type[BaseModel], first: type[BaseModel], indent: str) -> Iterator[str]:
    """What another kind has that the first has not, commented out."""
    replaced = [name for name in first.model_fields if name not in other.model_fields]
    yield f"{indent}# or, instead of {' and '.join(replaced)}:"
    for name, field in other.model_fields.items():
        if name not in first.model_fields:
            yield f"{indent}# {name}: {_template_value(name, field)}  # {field.description}"


def _template_value(name: str, field: FieldInfo) -> str:
    if name == "task":
        return str(cast(Any, field.annotation).__args__[0])
    if field.is_required():
        return {"permission": "own-model", "classes": "[first, second]", "size": "[28, 28]"}.get(name, "CHANGE-ME")
    value = field.default
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    plain = not isinstance(value, str) or (value.isprintable() and YAML(typ="safe").load(value) == value)
    return str(value) if plain else json.dumps(value)
