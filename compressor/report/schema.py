"""The format of `result.json`: its JSON Schema, and the only way to read one. docs/result.md is the prose."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType

from compressor.errors import DataError
from compressor.intake.files import read_bounded
from compressor.report.rows import baseline, shipped_model
from compressor.result import RESULT_SCHEMA_VERSION, Result

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

# A name of its own carries the reading rules down the whole tree; pydantic takes none for a bare dataclass.
_ResultFile = NewType("_ResultFile", Result)
_MOST_BYTES = 64 << 20
_REMEDY = "run the recipe again with this version, or read the file with the version that wrote it"


def result_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `result.json`: every field, none besides, no NaN."""
    schema = _adapter().json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Result"
    schema["properties"]["schema_version"]["const"] = RESULT_SCHEMA_VERSION
    return schema


def read_result(path: Path) -> Result:
    """Read and check a `result.json`; whatever is wrong with it is a one-line DataError."""
    if not path.exists():
        raise DataError(f"expected a result at {path}, got nothing there; give the path of a result.json")
    raw = read_bounded(path, _MOST_BYTES, DataError)
    _check_version(raw, path)
    return _validated(raw, path)


def _check_version(raw: bytes, path: Path) -> None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected JSON in {path}, got {error}; run the recipe again to write it anew") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != RESULT_SCHEMA_VERSION or isinstance(version, bool):
        raise DataError(
            f"expected a result with schema_version {RESULT_SCHEMA_VERSION} in {path}, got {version!r}; {_REMEDY}"
        )


def _validated(raw: bytes, path: Path) -> Result:
    from pydantic import ValidationError

    try:
        result = _adapter().validate_json(raw)
    except ValidationError as error:
        raise DataError(f"expected a result in {path}, got {_first_problem(error)}; {_REMEDY}") from error
    _check_models(result, path)
    return result


def _check_models(result: Result, path: Path) -> None:
    """What a schema cannot say: a teacher, a shipped model that is there, one row per name."""
    try:
        baseline(result), shipped_model(result)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    names = [model.name for model in result.models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"expected one model per name in {path}, got {twice[0]!r} more than once; {_REMEDY}")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" and {error.error_count() - 1} more problems" if error.error_count() > 1 else ""
    return f"{first['msg'].lower()!r} at {where or 'the top'}{more}"


@cache
def _adapter() -> TypeAdapter[_ResultFile]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(_ResultFile, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
