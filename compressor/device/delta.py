"""An update as its difference from the current version: an archive of a bundle in which files are left out or patched.

Manifest and signature come first, as always. Then, for each file of the manifest in its order: the file; or
`NAME.bsdiff`, a patch to the file of that name in the current version; or nothing, where that file is the same. The
patch is in the format BSDIFF40 (http://www.daemonology.net/bsdiff/): a header of 32 bytes, then three bz2 streams:
triples of numbers, bytes to add to old ones, bytes to insert. What comes out is checked against the manifest like any
other file.
"""

from __future__ import annotations

import bz2
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from compressor.device.archive import PIECE, Member, read_archive
from compressor.device.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileEntry
from compressor.device.signature import MAX_SIGNATURE_BYTES, SIGNATURE
from compressor.device.source import Source, next_member, opened_file
from compressor.errors import BundleError

SUFFIX = ".bsdiff"
MAX_PATCHED_BYTES = 512 << 20  # old and new are both in memory
_MAGIC = b"BSDIFF40"
_HEADER_BYTES, _TRIPLE_BYTES = 32, 24


def delta_source(stream: IO[bytes], base: Path) -> Source:
    """A bundle that comes as its difference from one in a folder. Raises BundleError."""
    archive = read_archive(stream)
    manifest = next_member(archive, MANIFEST).content(MAX_MANIFEST_BYTES)
    signature = next_member(archive, SIGNATURE).content(MAX_SIGNATURE_BYTES)

    def members(files: Sequence[FileEntry]) -> Iterator[Member]:
        ahead = next(archive, None)
        for entry in files:
            if ahead is not None and ahead.name == entry.name:
                yield ahead
                ahead = next(archive, None)
                continue
            with ExitStack() as opened:
                old = opened_file(base / entry.name, opened)
                if ahead is None or ahead.name != entry.name + SUFFIX:
                    yield Member(entry.name, old.size, old.stream)
                    continue
                limit = min(entry.bytes, MAX_PATCHED_BYTES)
                new = patched(old.content(MAX_PATCHED_BYTES), ahead.content(MAX_PATCHED_BYTES), limit)
            yield Member(entry.name, len(new), io.BytesIO(new))
            ahead = next(archive, None)
        if ahead is not None:
            raise BundleError(f"{ahead.name}: it belongs to no file of the manifest; send the whole bundle")

    return Source(manifest, signature, members)


def patched(old: bytes, patch: bytes, limit: int) -> bytes:
    """What a patch makes of an old file, of at most `limit` bytes. Raises BundleError where the patch is none."""
    wrong = BundleError("a patch is not in the format BSDIFF40, or for another file; send the whole bundle")
    if len(patch) < _HEADER_BYTES or patch[:8] != _MAGIC:
        raise wrong
    control_bytes, added_bytes, size = (_number(patch[at : at + 8]) for at in (8, 16, 24))
    if min(control_bytes, added_bytes) < 0 or not 0 <= size <= limit:
        raise wrong
    added_at = _HEADER_BYTES + control_bytes
    control = _Unpacked(patch[_HEADER_BYTES:added_at])
    added, inserted = _Unpacked(patch[added_at : added_at + added_bytes]), _Unpacked(patch[added_at + added_bytes :])
    source, new = np.frombuffer(old, np.uint8), np.zeros(size, np.uint8)
    at, place, idle = 0, 0, False
    try:
        while at < size:
            triple = control.read(_TRIPLE_BYTES)
            add, insert, skip = (_number(triple[i : i + 8]) for i in (0, 8, 16))
            # Triples that do nothing but skip stand alone, or there could be any number of them.
            if min(add, insert) < 0 or add + insert > size - at or (idle and not add + insert):
                raise wrong
            idle = not add + insert
            new[at : at + add] = np.frombuffer(added.read(add), np.uint8)
            _add_old(new[at : at + add], source, place)
            new[at + add : at + add + insert] = np.frombuffer(inserted.read(insert), np.uint8)
            at, place = at + add + insert, place + add + skip
    except (OSError, EOFError):  # of bz2
        raise wrong from None
    return new.tobytes()


def _add_old(new: NDArray[np.uint8], old: NDArray[np.uint8], place: int) -> None:
    """Adds the old bytes from `place` on, modulo 256; before and after the old file there are zeros."""
    first, last = max(0, -place), min(len(new), len(old) - place)
    if first < last:
        new[first:last] += old[place + first : place + last]


def _number(eight: bytes) -> int:
    """A number of BSDIFF40: 63 bits, the lowest byte first, and a sign."""
    value = int.from_bytes(eight, "little")
    return -(value & ((1 << 63) - 1)) if value >> 63 else value


class _Unpacked:
    """A bz2 stream, of which no more is unpacked than is asked for."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._decompressor = bz2.BZ2Decompressor()

    def read(self, size: int) -> bytes:
        """Exactly so many bytes. Raises EOFError where there are not, OSError where it is no bz2."""
        parts = []
        while size:
            if self._decompressor.eof or (self._decompressor.needs_input and not self._packed):
                raise EOFError
            part = self._decompressor.decompress(self._packed, min(size, PIECE))
            self._packed = b""
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
