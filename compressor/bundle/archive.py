"""A bundle as one file, `.tar.zst`: the archive of `compressor.device.archive`, compressed.

The same bundle gives the same bytes with the same version of zstd, and always the same archive below it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard

from compressor.device import disk
from compressor.device.manifest import MANIFEST, read_manifest
from compressor.device.signature import verify_by
from compressor.device.source import WINDOW_LOG, archive_of, folder_source, open_source, write_files
from compressor.errors import BundleError, StorageError, UsageError

_SUFFIXES = (".tar", ".tar.zst")
_PLENTY_BYTES, _TIMES = 1 << 30, 32  # what an archive may unpack to, or so many times its size
_LEVEL = 9  # int8 weights hardly shrink, and each level above takes twice the time


@dataclass(frozen=True)
class Packed:
    """An archive that was written."""

    path: Path
    bytes: int
    sha256: str


def pack(folder: Path, path: Path) -> Packed:
    """Writes a bundle, which must be whole, as one file `.tar.zst`, or `.tar` by its name. Raises BundleError;
    UsageError for another name."""
    if not path.name.endswith(_SUFFIXES):
        raise UsageError(f"{path}: expected a name that ends in .tar.zst, or in .tar")
    digest, size = hashlib.sha256(), 0

    def counted(pieces: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal size
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            yield piece

    with folder_source(folder) as source:
        pieces = archive_of(source, read_manifest(source.manifest, str(folder / MANIFEST)).files)
        new = disk.unfinished(path.parent)
        try:
            disk.write_new(new, counted(_compressed(pieces) if path.suffix == ".zst" else pieces))
            disk.move(new, path)
        except BaseException as error:
            new.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:  # of a write, which knows no name
                error.filename = str(path)
            raise
    return Packed(path, size, digest.hexdigest())


def _compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    settings = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=WINDOW_LOG, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def unpack(path: Path, folder: Path, public_key: Path | None = None) -> None:
    """Writes the bundle of an archive into a new folder, each file checked against the manifest. Before the first of
    them the signature by this key is, where one is given, and the room for all of them.

    Raises BundleError, SignatureError, StorageError; UsageError where the folder is there already.
    """
    if folder.exists():
        raise UsageError(f"{folder}: it is there already; choose another with --out")
    new = disk.unfinished(folder.parent)
    try:
        with open_source(path) as source:
            if public_key is not None:
                verify_by(public_key, source.signature, source.manifest)
            manifest = read_manifest(source.manifest)
            _check_room(path, manifest.bytes, folder.parent)
            write_files(source, manifest.files, new)
        disk.move(new, folder)
    except BaseException:
        if new.exists():
            disk.remove(new)
        raise


def _check_room(path: Path, listed: int, where: Path) -> None:
    if listed > max(_PLENTY_BYTES, _TIMES * (packed := path.stat().st_size)):
        raise BundleError(
            f"{path}: {packed:,} bytes that unpack to {listed:,}; expected at most {_PLENTY_BYTES:,}, or {_TIMES} times"
            " as many"
        )
    if listed > (free := shutil.disk_usage(where).free):
        raise StorageError(f"{path}: unpacks to {listed:,} bytes, and {where} has room for {free:,}; free some space")


@contextmanager
def as_folder(path: Path, public_key: Path | None = None) -> Iterator[Path]:
    """A bundle as a folder: itself, or a `.tar.zst` or `.tar` file unpacked for as long as this lasts, its signature by
    this key verified before, where one is given. Raises what `unpack` raises."""
    if not path.name.endswith(_SUFFIXES) or path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="compressor-") as temporary:
        folder = Path(temporary) / path.name.removesuffix(".zst").removesuffix(".tar")
        unpack(path, folder, public_key)
        yield folder
