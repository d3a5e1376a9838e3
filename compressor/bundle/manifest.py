"""The manifest of a bundle, normative in docs/bundle-format.md: what is in it, whose it is, and how to check it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from compressor.artifacts import Provenance, TensorSpec
from compressor.errors import BundleError

BUNDLE_FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 8 << 20
_STRICT = ConfigDict(extra="forbid")


@checked_dataclass(frozen=True, config=_STRICT)
class FileEntry:
    """One file of the bundle. `name` is relative, with `/`; every file but the manifest is listed."""

    name: str
    bytes: int
    sha256: str


@checked_dataclass(frozen=True, config=_STRICT)
class GoldenCheck:
    """How close the golden outputs must be reproduced: the mean cosine and, where set, the largest difference."""

    cases: int
    min_cosine: float
    max_abs_error: float | None


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
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: expected at most {_MAX_MANIFEST_BYTES} bytes, got {path.stat().st_size}")
    try:
        content = json.loads(path.read_bytes())
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != BUNDLE_FORMAT_VERSION:
            raise BundleError(
                f"{path}: expected bundle format {BUNDLE_FORMAT_VERSION}, got {version}; use the version that wrote it"
            )
        manifest = TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BundleError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path}: not valid JSON; copy the bundle again") from None
    return OpenedBundle(folder, manifest)


def check_files(bundle: OpenedBundle) -> None:
    """Every listed file has the listed size and SHA-256, and nothing else is there, links least. Raises BundleError."""
    listed = {entry.name: entry for entry in bundle.manifest.files}
    found = set()
    for parent, folders, files in os.walk(bundle.folder):
        for name in [*folders, *files]:
            path = Path(parent) / name
            if path.is_symlink():
                raise BundleError(f"{path}: a bundle holds no links; copy it again")
        if not files and not folders:
            raise BundleError(f"{parent}: an empty folder that the manifest does not name; remove it")
        found |= {(Path(parent) / name).relative_to(bundle.folder).as_posix() for name in files}
    found.discard(MANIFEST)
    if missing := sorted(set(listed) - found):
        raise BundleError(f"{bundle.folder}: {missing[0]} is missing; copy the bundle again")
    if extra := sorted(found - set(listed)):
        raise BundleError(f"{bundle.folder}: {extra[0]} is not in the manifest; remove it or copy the bundle again")
    if bundle.manifest.model not in listed:
        raise BundleError(f"{bundle.folder}: {bundle.manifest.model} is no file of the bundle; copy the bundle again")
    for name, entry in listed.items():
        path = bundle.folder / name
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(f"{path}: expected {entry.bytes} bytes, got {size}; copy the bundle again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise BundleError(f"{path}: its SHA-256 is not the manifest's; copy the bundle again")
