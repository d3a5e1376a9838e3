"""What an update differs in from the version before: the archive that `compressor.device.delta` reads."""

from __future__ import annotations

from pathlib import Path

from compressor.device.archive import archive_bytes
from compressor.device.delta import MAX_PATCHED_BYTES, SUFFIX, patched
from compressor.device.manifest import MANIFEST, read_manifest
from compressor.device.signature import SIGNATURE
from compressor.device.source import check_folder
from compressor.errors import MissingDependencyError

WORTH_SHARE = 0.5  # of the whole: a difference above is not worth the risk and the work on the device


def difference(old: Path, new: Path) -> bytes | None:
    """The archive of a bundle in the folder `new`, for a device that has the one in `old`; None where it is not under
    half of the whole. Raises BundleError; MissingDependencyError without bsdiff4."""
    old_manifest, new_manifest = ((folder / MANIFEST).read_bytes() for folder in (old, new))
    before = {entry.name: entry for entry in read_manifest(old_manifest).files}
    files = read_manifest(new_manifest).files
    check_folder(old, tuple(before.values()))
    check_folder(new, files)
    parts = [(MANIFEST, new_manifest), (SIGNATURE, (new / SIGNATURE).read_bytes())]
    for entry in files:
        content = (new / entry.name).read_bytes()
        if entry.name not in before:
            parts.append((entry.name, content))
        elif before[entry.name].sha256 != entry.sha256:
            parts.append(_smaller(entry.name, (old / entry.name).read_bytes(), content))
    whole = sum(entry.bytes for entry in files)
    made = b"".join(archive_bytes((name, len(content), [content]) for name, content in parts))
    return made if len(made) < WORTH_SHARE * whole else None


def _smaller(name: str, old: bytes, new: bytes) -> tuple[str, bytes]:
    """The file, or a patch to the old one where that is smaller; it is tried before it is believed."""
    if max(len(old), len(new)) > MAX_PATCHED_BYTES:
        return name, new
    try:
        import bsdiff4
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "--base needs the package 'bsdiff4', which is not installed; run: pip install 'compressor[delta]'"
        ) from None
    patch: bytes = bsdiff4.diff(old, new)
    return (name + SUFFIX, patch) if len(patch) < len(new) and patched(old, patch, len(new)) == new else (name, new)
