"""The bill of materials against CycloneDX's own schema, which the package cyclonedx-python-lib carries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.schema._res import BOM_JSON_STRICT, JSF, SPDX_JSON
from referencing import Registry, Resource

from compressor.artifacts import OnnxModel, Provenance, TensorSpec
from compressor.bundle.bom import dump_bom, ml_bom
from compressor.device.manifest import FileEntry

MODEL = OnnxModel(
    "student",
    "dynamic-int8",
    Path("model.onnx"),
    10,
    5,
    20,
    (TensorSpec("pixels", "uint8", ("batch", 4, 4, 1)),),
    (TensorSpec("logits", "float32", ("batch", 3)),),
)
FILES = [FileEntry("model.onnx", 10, "a" * 64), FileEntry("golden.npz", 5, "b" * 64)]
EVIDENCE = {"quality": {"metric": "accuracy", "quality": {"value": 0.9, "low": 0.88, "high": 0.92}}}
TEACHER = Provenance("big", "c" * 64, "apache-2.0", "license-permits", "card", "https://example.org/terms")


def bill(lineage: Provenance = TEACHER) -> dict[str, Any]:
    data = {"training": "9 rows of ünïcode.jsonl", "evaluation": "3 rows"}
    made: dict[str, Any] = json.loads(dump_bom(ml_bom(MODEL, "image-classification", EVIDENCE, lineage, data, FILES)))
    return made


def validator() -> jsonschema.Draft7Validator:
    def read(name: Any) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(Path(name).read_text(encoding="utf-8"))
        return loaded

    schema = read(BOM_JSON_STRICT[SchemaVersion.V1_6])
    parts = {"http://cyclonedx.org/schema/spdx.SNAPSHOT.schema.json": SPDX_JSON}
    parts |= {"http://cyclonedx.org/schema/jsf-0.82.SNAPSHOT.schema.json": JSF}
    registry = Registry().with_resources((uri, Resource.from_contents(read(name))) for uri, name in parts.items())
    return jsonschema.Draft7Validator(schema, registry=registry)


@pytest.mark.parametrize(
    "lineage",
    [
        TEACHER,
        replace(TEACHER, license="llama3", reference=None, terms=None),
        Provenance("behind an endpoint", None, None, "written-permission", "letter"),
    ],
    ids=["open", "other licence", "endpoint"],
)
def test_it_follows_the_official_schema(lineage: Provenance) -> None:
    validator().validate(bill(lineage))


def test_the_schema_sees_what_is_wrong() -> None:
    """Else the test above would hold for anything."""
    with pytest.raises(jsonschema.ValidationError):
        validator().validate({**bill(), "metadata": {"component": {"type": "student", "name": "x"}}})


def test_it_names_model_teacher_and_data() -> None:
    component = bill()["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    (teacher,) = component["pedigree"]["ancestors"]
    assert (teacher["name"], teacher["licenses"]) == ("big", [{"license": {"id": "Apache-2.0"}}])
    declared = {one["name"]: one["value"] for one in teacher["properties"]}
    assert declared["compressor:permission"] == "license-permits"
    assert declared["compressor:terms"] == "https://example.org/terms"
    assert [one["description"] for one in component["modelCard"]["modelParameters"]["datasets"]] == [
        "9 rows of ünïcode.jsonl",
        "3 rows",
    ]
    assert [one["name"] for one in bill()["components"]] == ["golden.npz"]


def test_what_is_not_known_is_left_out() -> None:
    (teacher,) = bill(Provenance("x", None, None, "own-model"))["metadata"]["component"]["pedigree"]["ancestors"]
    assert "licenses" not in teacher
    assert {one["name"] for one in teacher["properties"]} == {"compressor:permission", "compressor:remote_code"}
