"""What a device needs of a bundle's manifest, read with the standard library. docs/bundle-format.md is normative."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from compressor.errors import BundleError
from compressor.intake.json_text import strict_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 8 << 20
MAX_FILES = 1000
MAX_FILE_BYTES = (1 << 33) - 1  # what the header of a member of an archive can say
MAX_CASES = 10_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_STRICT = {"extra": "forbid"}  # for the host's reader, which is pydantic

T = TypeVar("T")


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle. `name` is relative, with `/`; every file but manifest and signature is listed."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class GoldenCheck:
    """How close the golden outputs must be reproduced: the mean cosine and, where set, the largest difference."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT
    cases: int
    min_cosine: float
    max_abs_error: float | None


@dataclass(frozen=True)
class Requirements:
    """What a device must have. Versions of ONNX Runtime are such as `1.20.0`; no `onnxruntime_max`: any later one.

    `instruction_sets` names for each machine (`uname -m`) the flags of /proc/cpuinfo that it must have; empty: any
    machine will do, otherwise one that is named. `ram_bytes`: memory that must be available.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT
    ir_version: int
    onnxruntime_min: str
    onnxruntime_max: str | None
    providers: tuple[str, ...]
    instruction_sets: dict[str, tuple[str, ...]]
    ram_bytes: int


@dataclass(frozen=True)
class DeviceManifest:
    """The part of a manifest that a device acts on; `inputs` and `outputs` are names."""

    model: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    golden: GoldenCheck
    requires: Requirements
    files: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)


def manifest_json(content: bytes, what: str) -> Any:
    """The value of a manifest's text, of this format. Raises BundleError, which names `what`."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{what}: expected at most {MAX_MANIFEST_BYTES} bytes, got {len(content)}")
    found = strict_json(content, what, BundleError)
    version = found.get("format_version") if isinstance(found, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{what}: expected bundle format {FORMAT_VERSION}, got {version}; use the version that wrote it"
        )
    return found


def read_manifest(content: bytes, what: str = MANIFEST) -> DeviceManifest:
    """What a device needs of a manifest. Raises BundleError, which names `what`."""
    found = manifest_json(content, what)
    try:
        manifest = DeviceManifest(
            _text(found["model"]),
            _whole(found["opset"]),
            tuple(_text(spec["name"]) for spec in found["inputs"]),
            tuple(_text(spec["name"]) for spec in found["outputs"]),
            _plain(GoldenCheck, found["golden"]),
            _plain(Requirements, found["requires"]),
            tuple(_plain(FileEntry, entry) for entry in found["files"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{what}: a key is missing or of another type: {error}; build the bundle again") from None
    check_listing(manifest.files, what)
    check_cases(manifest.golden, len(manifest.inputs), len(manifest.outputs), what)
    if manifest.model not in {entry.name for entry in manifest.files}:
        raise BundleError(f"{what}: {manifest.model} is no file of the bundle; build it again")
    return manifest


def check_cases(golden: GoldenCheck, inputs: int, outputs: int, what: str) -> None:
    """There is something to try: inputs, outputs, golden cases, and not endlessly many. Raises BundleError."""
    if not 0 < golden.cases <= MAX_CASES or not inputs or not outputs:
        raise BundleError(
            f"{what}: expected inputs, outputs and from 1 to {MAX_CASES:,} golden cases, got {inputs}, {outputs} and"
            f" {golden.cases}; build the bundle again"
        )


def check_listing(files: tuple[FileEntry, ...], what: str) -> None:
    """Names are plain, relative, sorted and different; sizes and hashes are such. Raises BundleError."""
    if len(files) > MAX_FILES:
        raise BundleError(f"{what}: expected at most {MAX_FILES} files, got {len(files)}")
    for entry in files:
        if not _NAME.fullmatch(entry.name) or len(entry.name) > 100 or entry.name in (MANIFEST, "signature.json"):
            raise BundleError(f"{what}: {entry.name!r} is no name for a file of a bundle; build it again")
        if not 0 <= entry.bytes <= MAX_FILE_BYTES or not _SHA256.fullmatch(entry.sha256):
            raise BundleError(f"{what}: {entry.name}: no size or no SHA-256; build the bundle again")
    names = [entry.name for entry in files]
    if names != sorted(set(names)):
        raise BundleError(f"{what}: expected files sorted by name, each once; build the bundle again")


def _plain(kind: type[T], value: Mapping[str, Any]) -> T:
    """A dataclass of plain fields from an object with exactly their keys."""
    expected = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if set(value) != expected:
        raise ValueError(", ".join(sorted(set(value) ^ expected)))
    types = get_type_hints(kind)
    return kind(**{name: _READERS[types[name]](value[name]) for name in expected})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r}")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:  # a whole number has no largest
        raise ValueError("a number beyond the largest") from None


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r}")
    return tuple(map(_text, value))


def _named_texts(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r}")
    return {name: _texts(texts) for name, texts in value.items()}


_READERS: dict[Any, Any] = {
    str: _text,
    int: _whole,
    float: _number,
    float | None: lambda value: None if value is None else _number(value),
    str | None: lambda value: None if value is None else _text(value),
    tuple[str, ...]: _texts,
    dict[str, tuple[str, ...]]: _named_texts,
}
