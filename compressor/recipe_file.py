"""Recipes as YAML 1.2: read with the place of every key, refused with one line, written with comments."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, get_args

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from compressor.errors import RecipeError
from compressor.intake.files import read_bounded
from compressor.intake.yaml_text import check_yaml
from compressor.recipe import RECIPES, Recipe, recipe_class
from compressor.recipe_portable import MODULES
from compressor.recipe_quantize import Quantization

_MAX_RECIPE_BYTES = 100_000  # the parser takes seconds for so many
_MAX_RECIPE_VALUES = 10_000  # aliases of aliases can stand for more values than memory holds
_OF_MODELS = ("path", "weights", "gguf", "onnx", "tokenizer")
_PATHS = (
    *(("teacher", key) for key in _OF_MODELS),
    *(("verify", "reference", key) for key in _OF_MODELS),
    ("data", "train"),
    ("data", "eval"),
    ("student", "folder"),
    ("quantize", "search", "study"),
    ("out",),
    ("cache",),
)

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class _Draft:
    """Values before validation, and where each came from ("recipe.yaml:7" or "--set")."""

    values: dict[str, Any]
    places: dict[Key, str]

    def place(self, key: Key) -> str:
        """Of the key itself, or of the nearest key around it."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return "recipe"


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `--set` overrides such as "distill.epochs=3" on top.

    Paths in the file are relative to the file, paths in overrides to the working directory.
    Raises RecipeError with file, line and remedy.
    """
    draft = _parse(path)
    for override in overrides:
        _apply(draft, override)
    return _validate(draft)


def recipe_from_values(values: Mapping[str, Any], place: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe without a file, `--set` overrides on top; `place` names its origin in errors. Raises RecipeError."""
    draft = _Draft(copy.deepcopy(dict(values)), {(): place})
    for override in overrides:
        _apply(draft, override)
    return _validate(draft)


def quantization_from(overrides: Sequence[str]) -> Quantization:
    """The settings `quantize` alone, from `--set` overrides such as "block=64". Raises RecipeError."""
    draft = _Draft({}, {(): "--set"})
    for override in overrides:
        _apply(draft, override)
    try:
        return Quantization.model_validate(draft.values)
    except ValidationError as error:
        raise RecipeError(_describe(error, draft, Quantization)) from None


def _parse(path: Path) -> _Draft:
    try:
        path.stat()  # a file that is not there has words of its own
        text = read_bounded(path, _MAX_RECIPE_BYTES, RecipeError).decode()
        try:
            check_yaml(text)
        except ValueError as beyond:
            raise RecipeError(f"{path}: {beyond}") from None
        loaded = YAML(typ="rt").load(text)
        places: dict[Key, str] = {(): str(path)}
        values = _plain(loaded, (), path, places)
    except (FileNotFoundError, NotADirectoryError):
        raise RecipeError(
            f"{path}: no such recipe; write one with: compressor init --task sentence-embedding > {path.name}"
        ) from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: expected UTF-8 text") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{line}: not valid YAML: {_first_line(error.problem or error.context)}") from None
    except RecursionError:
        raise RecipeError(f"{path}: not valid YAML: nested too deeply") from None
    except (YAMLError, ValueError) as error:  # a date such as 2001-99-99 is a ValueError
        raise RecipeError(f"{path}: not valid YAML: {_first_line(str(error))}") from None
    if not isinstance(loaded, CommentedMap):
        raise RecipeError(f"{path}:1: expected keys such as `task: sentence-embedding`, got {type(loaded).__name__}")
    _place_paths(values, path.parent)
    return _Draft(values, places)


def _place_paths(values: dict[str, Any], folder: Path) -> None:
    """Paths that are relative to the recipe's folder become relative to the working directory."""
    for *outer, last in _PATHS + MODULES:
        holder: Any = values
        for group in outer:
            holder = holder.get(group) if isinstance(holder, dict) else None
        value = holder.get(last) if isinstance(holder, dict) else None
        if isinstance(value, str) and value and (last not in ("module", "definition") or ".py:" in value):
            holder[last] = os.path.normpath(folder / value)


def _plain(node: Any, key: Key, path: Path, places: dict[Key, str]) -> Any:
    """Ordinary dicts, lists and scalars; `places` gains the line of every key and list item."""
    if len(places) > _MAX_RECIPE_VALUES:
        raise RecipeError(f"{path}: expected at most {_MAX_RECIPE_VALUES} values, aliases written out")
    if isinstance(node, CommentedMap):
        return {name: _plain_at(node, name, value, key, path, places) for name, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain_at(node, index, value, key, path, places) for index, value in enumerate(node)]
    # The round-trip loader keeps how a scalar was written in subclasses; strict validation wants the plain types.
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return node


def _plain_at(holder: Any, name: Any, value: Any, key: Key, path: Path, places: dict[Key, str]) -> Any:
    inner = (*key, name)
    line = (holder.lc.data or {}).get(name)  # none for a key that `<<` merged in
    places[inner] = f"{path}:{line[0] + 1}" if line else places[key]
    return _plain(value, inner, path, places)


def _apply(draft: _Draft, override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise RecipeError(f"--set {override}: expected KEY=VALUE, such as distill.epochs=3")
    try:
        value = YAML(typ="safe").load(text) if text else None
    except (YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {override}: {text!r} is not a YAML value") from None
    keys = name.split(".")
    holder = draft.values
    for depth, key in enumerate(keys[:-1], 1):
        if key not in holder:
            draft.places[tuple(keys[:depth])] = "--set"
        inner = holder.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {key} is no group of settings")
        holder = inner
    holder[keys[-1]] = value
    for place in [place for place in draft.places if place[: len(keys)] == tuple(keys)]:
        del draft.places[place]
    draft.places[tuple(keys)] = "--set"


def _validate(draft: _Draft) -> Recipe:
    task = draft.values.get("task")
    if "task" not in draft.values:
        meant = difflib.get_close_matches("task", [key for key in draft.values if isinstance(key, str)], n=1)
        hint = f"; is {meant[0]} meant?" if meant else ""
        raise RecipeError(f"{draft.place(tuple(meant))}: missing key task (one of {', '.join(RECIPES)}){hint}")
    if not isinstance(task, str) or task not in RECIPES:
        raise RecipeError(
            f"{draft.place(('task',))}: task: expected one of {', '.join(RECIPES)},"
            f" got {task!r}{_nearest(str(task), RECIPES)}"
        )
    meant_class = recipe_class(task, draft.values.get("teacher"))
    try:
        return meant_class.model_validate(draft.values)
    except ValidationError as error:
        raise RecipeError(_describe(error, draft, meant_class)) from None


def _describe(error: ValidationError, draft: _Draft, model: type[BaseModel]) -> str:
    problems = error.errors(include_url=False)
    # An unknown key explains a missing one (a typo of it), so it comes first.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    key = tuple(part for part in first["loc"] if not _is_union_branch(part))
    name = ".".join(map(str, key))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    place = draft.place(key)
    holder = _model_at(model, first["loc"][:-1])
    if first["type"] == "extra_forbidden":
        known = holder.model_fields
        hint = _nearest(str(key[-1]), known) or f"; known here: {', '.join(known)}"
        return f"{place}: unknown key {name}{hint}{more}"
    if first["type"] == "missing":
        field = holder.model_fields.get(str(key[-1]))
        return f"{place}: missing key {name}{f' ({field.description})' if field else ''}{more}"
    reason = str(first["msg"]).removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{place}: {f'{name}: ' if name else ''}{reason[0].lower()}{reason[1:]}{got}{more}"


def _is_union_branch(part: str | int) -> bool:
    return isinstance(part, str) and (
        part in ("int", "str") or part.startswith(("<", "tuple[", "function-", "constrained-"))
    )


def _model_at(model: type[BaseModel], place: Key) -> type[BaseModel]:
    kinds: dict[str, type[BaseModel]] = {}
    for part in place:
        field = model.model_fields.get(str(part))
        if str(part) in kinds:
            model = kinds[str(part)]
        elif field is None:
            break
        elif groups := [one for one in (field.annotation, *get_args(field.annotation)) if _is_group(one)]:
            model = groups[0]
        kinds = kinds_of(field) if field else {}
    return model


def _is_group(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def kinds_of(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The models that a group of settings may be, by the tag that stands for each in the place of an error."""
    members = [get_args(member) for member in get_args(field.annotation)]
    # Where it may be null too, the union is a member itself.
    members += [get_args(kind) for union, *_ in filter(None, members) for kind in get_args(union)]
    return {extra[0].tag: model for model, *extra in filter(None, members) if extra and isinstance(extra[0], Tag)}


def _nearest(word: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _first_line(text: str | None) -> str:
    return (text or "unreadable").strip().splitlines()[0]
