"""Where a bundle comes from: a folder or an archive. Nothing of it is believed before the signature is verified."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from compressor.device import disk
from compressor.device.archive import PIECE, Member, archive_bytes, read_archive
from compressor.device.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileEntry
from compressor.device.signature import MAX_SIGNATURE_BYTES, SIGNATURE
from compressor.errors import BundleError, MissingDependencyError
from compressor.intake.files import open_regular

ZSTD = bytes.fromhex("28b52ffd")  # how a frame begins (RFC 8878)
# The header of a bundle's frame has no sizes, sum or dictionary, and this window, which a reader keeps in memory.
WINDOW_LOG = 22
_HEADER = ZSTD + bytes([0, WINDOW_LOG - 10 << 3])
_PACKED_PIECE = 1 << 11  # four bytes may unpack to 128 KiB: at most 64 MiB at a time


@dataclass(frozen=True)
class Source:
    """Manifest and signature, and a function to the files of a listing, in its order, each to be read in its turn.

    An unsigned bundle has an empty signature.
    """

    manifest: bytes
    signature: bytes
    members: Callable[[Sequence[FileEntry]], Iterator[Member]]


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A bundle: a folder, an archive `.tar` or `.tar.zst`, or `-` for a `.tar` on standard input. Raises BundleError;
    MissingDependencyError where nothing here reads zstd."""
    if path.is_dir():
        with folder_source(path) as source:
            yield source
    else:
        with open_archive(path) as stream:
            yield archive_source(stream)


@contextmanager
def folder_source(folder: Path) -> Iterator[Source]:
    """A bundle that lies in a folder. Raises BundleError where it holds no bundle, or more than one."""
    with ExitStack() as opened:
        if not (folder / MANIFEST).is_file():
            raise BundleError(f"{folder}: expected a bundle with a {MANIFEST}, found none")
        manifest = opened_file(folder / MANIFEST, opened).content(MAX_MANIFEST_BYTES)
        signature = b""
        if os.path.lexists(folder / SIGNATURE):
            signature = opened_file(folder / SIGNATURE, opened).content(MAX_SIGNATURE_BYTES)

        def members(files: Sequence[FileEntry]) -> Iterator[Member]:
            check_names(folder, {entry.name for entry in files})
            for entry in files:
                with ExitStack() as one:
                    yield Member(entry.name, (found := opened_file(folder / entry.name, one)).size, found.stream)

        yield Source(manifest, signature, members)


def archive_source(stream: IO[bytes]) -> Source:
    """A bundle that comes as an archive: its manifest, its signature, its files. Raises BundleError."""
    archive = read_archive(stream)
    manifest = next_member(archive, MANIFEST).content(MAX_MANIFEST_BYTES)
    ahead: list[Member] = [] if (second := next(archive, None)) is None else [second]
    signature = b""
    if ahead and ahead[0].name == SIGNATURE:
        signature = ahead.pop().content(MAX_SIGNATURE_BYTES)

    def members(files: Sequence[FileEntry]) -> Iterator[Member]:
        for entry in files:
            yield ahead.pop() if ahead else next_member(archive, entry.name)
        if (extra := next(archive, None)) is not None or ahead:
            name = extra.name if extra else ahead[0].name
            raise BundleError(f"{name}: it is in the archive, but not in the manifest; pack the bundle again")

    return Source(manifest, signature, members)


def received(member: Member, entry: FileEntry) -> Iterator[bytes]:
    """The content of a member, which is checked to be the listed file. Raises BundleError at its end, where not.

    No more than the listed number of bytes comes out, so a disk is never filled by what was not signed.
    """
    if (member.name, member.size) != (entry.name, entry.bytes):
        raise BundleError(
            f"expected {entry.name} of {entry.bytes} bytes, got {member.name} of {member.size}; copy the bundle again"
        )
    digest = hashlib.sha256()
    for piece in member.pieces():
        digest.update(piece)
        yield piece
    if digest.hexdigest() != entry.sha256:
        raise BundleError(f"{entry.name}: its SHA-256 is not the manifest's; copy the bundle again")


def archive_of(source: Source, files: Sequence[FileEntry]) -> Iterator[bytes]:
    """The archive of a bundle with these files, in pieces. Raises BundleError where one is not what is listed."""

    def parts() -> Iterator[tuple[str, int, Iterable[bytes]]]:
        yield MANIFEST, len(source.manifest), [source.manifest]
        if source.signature:
            yield SIGNATURE, len(source.signature), [source.signature]
        for entry, member in zip(files, source.members(files), strict=True):
            yield entry.name, entry.bytes, received(member, entry)

    return archive_bytes(parts())


def write_files(source: Source, files: Sequence[FileEntry], folder: Path) -> None:
    """Writes a bundle with these files into a new folder, and makes all of it durable. Raises BundleError where one is
    not what is listed."""
    disk.make_folder(folder)
    disk.write_new(folder / MANIFEST, [source.manifest])
    if source.signature:
        disk.write_new(folder / SIGNATURE, [source.signature])
    for entry, member in zip(files, source.members(files), strict=True):
        path = folder / entry.name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            if not (folder / parent).is_dir():
                disk.make_folder(folder / parent)
        disk.write_new(path, received(member, entry))
    for place, _, _ in os.walk(folder):
        disk.sync_folder(Path(place))


def check_folder(folder: Path, files: Sequence[FileEntry]) -> None:
    """A folder holds the listed files, beside manifest and signature, and nothing else. Raises BundleError."""
    check_names(folder, {entry.name for entry in files})
    for entry in files:
        with ExitStack() as opened:
            member = opened_file(folder / entry.name, opened)
            if member.size != entry.bytes:
                raise BundleError(
                    f"{folder / entry.name}: expected {entry.bytes} bytes, got {member.size}; copy the bundle again"
                )
            digest = hashlib.sha256()
            for piece in member.pieces():
                digest.update(piece)
            if digest.hexdigest() != entry.sha256:
                raise BundleError(f"{folder / entry.name}: its SHA-256 is not the manifest's; copy the bundle again")


def check_names(folder: Path, listed: set[str]) -> None:
    """Every listed file is there, and nothing else is, links and empty folders least. Raises BundleError."""
    found = set()
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent) / name
            if path.is_symlink():
                raise BundleError(f"{path}: a bundle holds no links; copy it again")
        if not files and not folders:
            raise BundleError(f"{parent}: an empty folder that the manifest does not name; remove it")
        found |= {(Path(parent) / name).relative_to(folder).as_posix() for name in files}
    found -= {MANIFEST, SIGNATURE}
    if missing := sorted(listed - found):
        raise BundleError(f"{folder}: {missing[0]} is missing; copy the bundle again")
    if extra := sorted(found - listed):
        raise BundleError(f"{folder}: {extra[0]} is not in the manifest; remove it or copy the bundle again")


def opened_file(path: Path, opened: ExitStack) -> Member:
    """A regular file, no link, that does not block when opened."""
    stream = opened.enter_context(open_regular(path, BundleError, links=False))
    return Member(path.name, os.fstat(stream.fileno()).st_size, stream)


@contextmanager
def open_archive(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of an archive `.tar` or `.tar.zst`, unpacked, or of standard input (`-`), as they are. Raises
    BundleError; MissingDependencyError where nothing here reads zstd."""
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    with ExitStack() as opened:
        stream = opened_file(path, opened).stream
        packed = stream.read(len(ZSTD)) == ZSTD
        stream.seek(0)
        try:
            if packed:
                with _unpacked(stream, path) as unpacked:
                    yield unpacked
            else:
                yield stream
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None


@contextmanager
def _unpacked(stream: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    # Python has zstd from 3.14 on; before, a package.
    try:
        from compression.zstd import ZstdDecompressor, ZstdError  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        try:
            import zstandard
        except ModuleNotFoundError:
            raise MissingDependencyError(
                f"{path}: nothing here reads zstd; pip install zstandard, or send a .tar (`zstd -d`)"
            ) from None
        frame, errors = zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError
    else:
        frame, errors = ZstdDecompressor(), ZstdError
    if (header := stream.read(len(_HEADER))) != _HEADER:
        raise BundleError(f"expected a frame that begins with {_HEADER.hex()}, got {header.hex()}; pack it again")
    stream.seek(0)
    try:
        yield io.BufferedReader(_Frame(stream, frame), PIECE)
    except errors as error:
        raise BundleError(f"not what was packed: {error}; copy it again") from None


class _Frame(io.RawIOBase):
    """What a file unpacks to that is one frame and nothing else; reading beyond its end raises BundleError if not.

    `frame` has `decompress`, `eof` and `unused_data`, as the decompressors of both libraries do.
    """

    def __init__(self, packed: IO[bytes], frame: Any) -> None:
        self._packed, self._frame, self._ready = packed, frame, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._frame.eof:
            if not (piece := self._packed.read(_PACKED_PIECE)):
                raise BundleError("its frame ends early; copy it again")
            self._ready = memoryview(self._frame.decompress(piece))
        if not self._ready and (self._frame.unused_data or self._packed.read(1)):
            raise BundleError("something is behind its frame; pack it again")
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def next_member(archive: Iterator[Member], name: str) -> Member:
    """The next member, which must have this name. Raises BundleError."""
    member = next(archive, None)
    if member is None or member.name != name:
        found = "its end" if member is None else member.name
        raise BundleError(f"expected {name} at this place of the archive, got {found}; pack the bundle again")
    return member
