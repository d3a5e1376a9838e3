"""A bundle as an OCI image layout: a folder with JSON and blobs (https://github.com/opencontainers/image-spec, 1.1).

The one layer is the archive `.tar.zst`, and the manifest has an `artifactType`, as an artifact that is no container.
Any tool that copies image layouts brings it to a registry. Trust stays with the signature in the bundle.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.bundle.archive import pack
from compressor.device.manifest import FORMAT_VERSION
from compressor.device.signature import SIGNATURE, Statement, read_signature
from compressor.errors import StorageError, UsageError
from compressor.intake.files import read_bounded
from compressor.intake.json_text import strict_json
from compressor.store import write_atomic

ARTIFACT_TYPE = f"application/vnd.compressor.bundle.v{FORMAT_VERSION}"
LAYER_TYPE = f"{ARTIFACT_TYPE}.tar+zstd"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_EMPTY_TYPE, _EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
_TAG_KEY = "org.opencontainers.image.ref.name"
_MOST_INDEX_BYTES = 8 << 20
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)

Json = dict[str, Any]


def write_layout(bundle: Path, folder: Path, tag: str) -> str:
    """Adds a signed bundle to an image layout, which is made where there is none, as what the tag names from now on.

    Returns the digest of its manifest. Raises BundleError, SignatureError; UsageError for a tag that is none;
    StorageError where the folder holds something else.
    """
    if not _TAG.fullmatch(tag):
        raise UsageError(f"oci:{folder}:{tag}: expected a tag of letters, digits, '.', '_' and '-'")
    said = read_signature((bundle / SIGNATURE).read_bytes()).statement
    with _held(folder):
        return _added(bundle, said, folder, tag)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it, after whoever else adds to it, without a file for that in it."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _added(bundle: Path, said: Statement, folder: Path, tag: str) -> str:
    index = _index(folder)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    new = blobs / ".layer.tar.zst"
    packed = pack(bundle, new)
    new.replace(blobs / packed.sha256)
    manifest: Json = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": _blob(blobs, _EMPTY, _EMPTY_TYPE),
        "layers": [
            {
                "mediaType": LAYER_TYPE,
                "digest": f"sha256:{packed.sha256}",
                "size": packed.bytes,
                "annotations": {"org.opencontainers.image.title": f"{said.product}-{said.version}.tar.zst"},
            }
        ],
        "annotations": {
            "org.opencontainers.image.title": said.product,
            "org.opencontainers.image.version": str(said.version),
        },
    }
    entry = _blob(blobs, _json(manifest), MANIFEST_TYPE)
    entry |= {"artifactType": ARTIFACT_TYPE, "annotations": {_TAG_KEY: tag}}
    others = [other for other in index["manifests"] if other.get("annotations", {}).get(_TAG_KEY) != tag]
    write_atomic(folder / "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    write_atomic(folder / "index.json", _json({**index, "manifests": [*others, entry]}))
    return str(entry["digest"])


def _index(folder: Path) -> Json:
    path = folder / "index.json"
    if not any(folder.iterdir()):
        return {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    wrong = StorageError(f"{folder}: expected an OCI image layout or an empty folder, got something else")
    if not path.is_file():
        raise wrong
    found = strict_json(read_bounded(path, _MOST_INDEX_BYTES, StorageError), str(path), StorageError)
    manifests = found.get("manifests") if isinstance(found, dict) else None
    if not isinstance(manifests, list) or not all(map(_is_entry, manifests)):
        raise wrong
    return dict(found)


def _is_entry(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("annotations", {}), dict)


def _blob(blobs: Path, content: bytes, media_type: str) -> Json:
    sha256 = hashlib.sha256(content).hexdigest()
    write_atomic(blobs / sha256, content)
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": len(content)}


def _json(value: Json) -> bytes:
    return json.dumps(value, indent=1).encode()
