"""What the examples make of what they fetch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_definitions_of_wordnet() -> None:
    # Lines as wndb(5WN) describes them: offset, file, part of speech, words, pointers, and after the bar the gloss.
    lines = """  1 This software and database is being provided to you
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which exists
02084071 05 n 01 dog 0 000 | a member of the genus Canis; occurs in many breeds; "the dog barked all night"
07697537 13 n 02 hotdog 0 dog 0 000 | a smooth-textured sausage | of beef
09999999 18 n 01 twin 0 000 | a smooth-textured sausage | of beef
15113229 28 n 01 period 0 000 | an amount of time
"""
    nouns = lines.replace("\n", "  \n")  # two blanks end each
    assert module("wordnet_topics").definitions(nouns) == [
        ("a member of the genus Canis; occurs in many breeds", "animal"),
        ("a smooth-textured sausage | of beef", "food"),
        ("an amount of time", "time"),
    ]
