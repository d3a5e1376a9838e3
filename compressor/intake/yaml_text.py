"""YAML from outside, bounded before a parser reads it and while its values are taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from compressor.errors import CompressorError, first_line
from compressor.intake.files import read_bounded

_MOST_NESTED, _MOST_MERGES = 50, 100  # for either the parser takes quadratic time
_MOST_CARD_BYTES, _MOST_CHARACTERS = 16 << 20, 500_000
_MOST_PARTS = 50_000  # the parser takes seconds for so many
_MOST_VALUES = 100_000  # aliases of aliases can stand for more values than memory holds
_REMEDY = "shorten it, or take it out"
# Whatever huggingface_hub takes for one.
_FRONT_MATTER = re.compile(r"\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r|\n|$)", re.DOTALL)


def check_yaml(text: str) -> None:
    """Raises ValueError for more than 50 nested brackets or 100 merges."""
    depth = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if depth > _MOST_NESTED:
            raise ValueError(f"expected at most {_MOST_NESTED} nested brackets")
    if (merges := text.count("<<")) > _MOST_MERGES:
        raise ValueError(f"expected at most {_MOST_MERGES} merges (<<), got {merges}")


def front_matter(card: Path, error: type[CompressorError]) -> Any:
    """The values at the head of a model's or data set's card (README.md), None without any. Raises what `read_yaml`
    raises, and `error` for a card above 16 MiB.
    """
    found = _FRONT_MATTER.match(read_bounded(card, _MOST_CARD_BYTES, error).decode("utf-8-sig", "replace"))
    return read_yaml(found[1], f"{card}: its front matter", error) if found else None


def read_yaml(text: str, what: str, error: type[CompressorError]) -> Any:
    """The values of a YAML text. Raises ValueError where it is none.

    Raises `error`, which begins with `what`, for more than 500,000 characters or 50,000 lines, commas and dashes, for
    what is too deeply nested or merged, and for more than 100,000 values with aliases written out.
    """
    try:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"expected at most {_MOST_CHARACTERS:,} characters, got {len(text):,}")
        if (parted := sum(map(text.count, (",", "\n", "\r", "- ")))) > _MOST_PARTS:
            raise ValueError(f"expected at most {_MOST_PARTS:,} lines, commas and dashes, got {parted:,}")
        check_yaml(text)
    except ValueError as reason:
        raise error(f"{what}: {reason}; {_REMEDY}") from None
    try:
        values = YAML(typ="safe").load(text)
    except RecursionError:
        raise error(f"{what}: nested too deeply; {_REMEDY}") from None
    except YAMLError as reason:
        raise ValueError(first_line(reason)) from None
    if _more_than(_MOST_VALUES, values):
        raise error(f"{what}: more than {_MOST_VALUES:,} values, aliases written out; {_REMEDY}")
    return values


def _more_than(most: int, values: Any) -> bool:
    """Whether there are more values, each counted as often as it is referred to."""
    waiting, counted = [values], 0
    while waiting:
        value, counted = waiting.pop(), counted + 1
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
        if counted + len(waiting) > most:
            return True
    return False
