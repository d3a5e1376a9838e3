"""result.json: what is written can be read, what is no result is refused, the document keeps up with the code."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import get_args, get_type_hints

import jsonschema
import pytest
from pydantic import TypeAdapter

from compressor.errors import DataError
from compressor.report.schema import read_result, result_schema
from compressor.result import Result

DOCUMENT = Path(__file__).parents[2] / "docs" / "result.md"


def document(result: Result) -> dict[str, object]:
    dumped = TypeAdapter(Result).dump_python(result, mode="json")
    assert isinstance(dumped, dict)
    return dumped


def dataclasses_within(kind: object) -> set[type]:
    """Every dataclass that a type mentions, itself included."""
    if not dataclasses.is_dataclass(kind):
        return {each for argument in get_args(kind) for each in dataclasses_within(argument)}
    assert isinstance(kind, type)
    inner = (dataclasses_within(hint) for hint in get_type_hints(kind).values())
    return {kind}.union(*inner)


def example_in_document() -> dict[str, object]:
    found = re.search(r"^```json\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    parsed = json.loads(found.group(1))
    assert isinstance(parsed, dict)
    return parsed


def test_what_is_written_reads_back_equal(result: Result, tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document(result)), encoding="utf-8")
    assert read_result(path) == result


def test_the_schema_accepts_a_result_and_is_a_schema(result: Result):
    jsonschema.Draft202012Validator.check_schema(result_schema())
    jsonschema.validate(document(result), result_schema())


@pytest.mark.parametrize(
    "spoil",
    [
        {"schema_version": 1},
        {"surprise": 1},
        {"models": [{"name": "teacher"}]},
        {"stages": [{"stage": "distill", "seconds": "412", "reused": False}]},
    ],
)
def test_schema_and_reader_refuse_the_same(result: Result, tmp_path: Path, spoil: dict[str, object]):
    spoiled = document(result) | spoil
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoiled, result_schema())
    path = tmp_path / "result.json"
    path.write_text(json.dumps(spoiled), encoding="utf-8")
    with pytest.raises(DataError):
        read_result(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected JSON"),
        (b"\xff\xfe\x00", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[]", "got None"),
        (b'{"schema_version": 1}', "expected a result with schema_version 5 .* got 1"),
        (b'{"schema_version": true}', "got True"),
        (b'{"schema_version": 5}', "field required.* more problems"),
    ],
)
def test_a_file_that_is_no_result_is_one_line(tmp_path: Path, content: bytes, expected: str):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected) as caught:
        read_result(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path):
    with pytest.raises(DataError, match=r"got nothing there; give the path"):
        read_result(tmp_path / "nothing.json")


def test_no_result_is_waited_for_or_read_without_end(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="expected a regular file, got a pipe"):
        read_result(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 3 << 30)
    with pytest.raises(DataError, match="expected at most 67,108,864 bytes"):
        read_result(tmp_path / "large")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shipped": "lost"}, "got 'lost'"),
        ({"models": []}, "got none"),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(
    result: Result, tmp_path: Path, change: dict[str, object], expected: str
):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document(result) | change), encoding="utf-8")
    with pytest.raises(DataError, match=expected):
        read_result(path)


def test_two_models_of_one_name_are_refused(result: Result, tmp_path: Path):
    path = tmp_path / "result.json"
    twice = dataclasses.replace(result, models=(*result.models, result.models[1]))
    path.write_text(json.dumps(document(twice)), encoding="utf-8")
    with pytest.raises(DataError, match="got 'student' more than once"):
        read_result(path)


def test_no_number_is_infinite_or_missing(result: Result, tmp_path: Path):
    path = tmp_path / "result.json"
    spoiled = document(result)
    history = spoiled["history"]
    assert isinstance(history, dict)
    for value in (float("nan"), float("inf")):
        path.write_text(json.dumps(spoiled | {"history": history | {"seconds": value}}), encoding="utf-8")
        with pytest.raises(DataError, match=r"finite number.*history\.seconds"):
            read_result(path)


def test_the_document_names_every_field():
    text = DOCUMENT.read_text(encoding="utf-8").partition("## Example")[0]
    kinds = dataclasses_within(Result)
    assert len(kinds) >= 12
    fields = {each.name for kind in kinds for each in dataclasses.fields(kind)}
    assert {name for name in fields if f"`{name}`" not in text} == set()


def test_the_example_in_the_document_is_the_fixture(small_result: Result):
    example = example_in_document()
    jsonschema.validate(example, result_schema())
    assert example == document(small_result)
