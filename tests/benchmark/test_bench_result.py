"""The format of what `compressor bench --json` writes: the schema, its reader, and its page."""

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import jsonschema
import pytest

from compressor.benchmark.result import BenchResult, bench_schema, run_found
from compressor.errors import BenchmarkError

DOCUMENT = Path(__file__).parents[2] / "docs" / "bench-result.md"


def dataclasses_within(kind):
    """Every dataclass that a type mentions, itself included."""
    if not dataclasses.is_dataclass(kind):
        return {each for argument in get_args(kind) for each in dataclasses_within(argument)}
    return {kind}.union(*(dataclasses_within(hint) for hint in get_type_hints(kind).values()))


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(bench_schema())


def test_the_page_names_every_field():
    text = DOCUMENT.read_text(encoding="utf-8")
    kinds = dataclasses_within(BenchResult)
    assert len(kinds) >= 20
    fields = {each.name for kind in kinds for each in dataclasses.fields(kind)}
    assert {name for name in fields if f"`{name}`" not in text} == set()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "field required"),
        ({"surprise": 1}, "field required|unexpected"),
        ({"format_version": "x"}, "of another version"),
    ],
)
def test_a_runner_of_another_version_is_one_line(document, message):
    with pytest.raises(BenchmarkError, match=message) as caught:
        run_found(document)
    assert "\n" not in str(caught.value)
    assert "use the runner that this version was built with" in str(caught.value)
