"""The manifest of a bundle, normative in docs/bundle-format.md: what is in it, whose it is, and how to check it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from compressor.artifacts import TASKS, Provenance, TensorSpec
from compressor.device.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    FileEntry,
    GoldenCheck,
    Requirements,
    check_cases,
    check_listing,
    manifest_json,
)
from compressor.device.source import check_folder
from compressor.errors import BundleError
from compressor.intake.files import read_bounded
from compressor.intake.onnx_model import OnnxFacts

_STRICT = ConfigDict(extra="forbid")


@checked_dataclass(frozen=True, config=_STRICT)
class Manifest:
    format_version: int
    task: str
    model: str
    precision: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    answer: dict[str, Any]
    golden: GoldenCheck
    requires: Requirements
    lineage: Provenance
    recipe: dict[str, Any]
    evidence: dict[str, Any]
    built_with: dict[str, str]
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle whose manifest has been read; its files are checked by `check_files`."""

    folder: Path
    manifest: Manifest


def dump_manifest(manifest: Manifest) -> bytes:
    """The canonical text of a manifest: the same content gives the same bytes."""
    content = TypeAdapter(Manifest).dump_python(manifest, mode="json")
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def open_bundle(folder: Path) -> OpenedBundle:
    """Reads the manifest. Raises BundleError: no bundle, not readable, another format version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder}: expected a bundle with a {MANIFEST}, found none")
    content = manifest_json(read_bounded(path, MAX_MANIFEST_BYTES, BundleError), str(path))
    try:
        manifest = TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BundleError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
    if manifest.task not in TASKS:
        raise BundleError(
            f"{path}: expected a task of {', '.join(TASKS)}, got {manifest.task!r}; use the version that wrote it"
        )
    check_listing(manifest.files, str(path))
    check_cases(manifest.golden, len(manifest.inputs), len(manifest.outputs), str(path))
    return OpenedBundle(folder, manifest)


def check_files(bundle: OpenedBundle) -> None:
    """Every listed file has the listed size and SHA-256, and nothing else is there, links least. Raises BundleError."""
    if bundle.manifest.model not in {entry.name for entry in bundle.manifest.files}:
        raise BundleError(f"{bundle.folder}: {bundle.manifest.model} is no file of the bundle; copy the bundle again")
    check_folder(bundle.folder, bundle.manifest.files)


def check_one_file(model: Path, facts: OnnxFacts) -> None:
    """A bundle's model holds all of its tensors. Raises BundleError."""
    if facts.outside:
        raise BundleError(
            f"{model}: expected a model in one file, but tensor {facts.outside[0].name!r} lies in another; build the"
            " bundle again"
        )
