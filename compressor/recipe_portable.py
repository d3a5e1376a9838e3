"""A recipe as it leaves this machine: without the folders that lie here."""

from __future__ import annotations

from pathlib import Path

from compressor.recipe import Recipe

# Where a recipe names code, as file.py:callable or package.module:callable.
MODULES = (("teacher", "module"), ("student", "module"), ("verify", "reference", "module"), ("definition",))


def portable(recipe: Recipe) -> dict[str, object]:
    """The recipe for results and bundles: no folder that it writes to, and of every path, also of code, its name."""
    return {key: _portable(value, (key,)) for key, value in recipe.model_dump(exclude={"out", "cache"}).items()}


def _portable(value: object, at: tuple[str, ...]) -> object:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, dict):
        return {key: _portable(inner, (*at, key)) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_portable(inner, at) for inner in value]
    if at in MODULES and isinstance(value, str):
        return value.rpartition("/")[2]
    return value
