"""An .npz, its members looked at before any of them is unpacked: numpy allocates what a header claims."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from compressor.errors import CompressorError
from compressor.intake.files import open_regular

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

# What reading one, or an array of it, raises where something inside is wrong.
UNREADABLE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, TypeError, NotImplementedError)

_MOST_MEMBERS = 100_000
_MOST_DIRECTORY_BYTES = 1 << 24
# What it may hold when it is unpacked: so much, or so many times the bytes of the file.
_MOST_BYTES, _MOST_GROWTH = 1 << 30, 8
# The end of a zip's directory, its 64-bit form and what points to that: APPNOTE.TXT, 4.3.14 to 4.3.16.
_END, _END_64, _POINTER_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_END_BYTES, _END_64_BYTES, _POINTER_64_BYTES = 22, 56, 20


@contextmanager
def open_npz(path: Path, error: type[CompressorError]) -> Iterator[NpzFile]:
    """The arrays of an .npz file, each read where it is asked for; none is larger than what the file can hold.

    Raises `error` where that is no regular file, one of UNREADABLE, in words, for all that is wrong inside.
    """
    import numpy as np

    with open_regular(path, error) as file:
        _check_members(file)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays


def _check_members(file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    most = max(_MOST_BYTES, _MOST_GROWTH * size)
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS or len({member.filename for member in members}) != len(members):
            raise ValueError(f"expected at most {_MOST_MEMBERS:,} arrays, each once, got {len(members):,}")
        if (unpacked := sum(member.file_size for member in members)) > most:
            raise ValueError(f"{size:,} bytes that unpack to {unpacked:,}; expected at most {most:,}")
        for member in members:
            _check_array(archive, member)


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    from numpy.lib import format as npy

    with archive.open(member) as content:
        version = npy.read_magic(content)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename}: format {version} is none of plain arrays")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        try:
            shape, _, dtype = read(content)
        # Of Python's parser, which numpy gives at most 10,000 characters.
        except (MemoryError, RecursionError, SyntaxError, tokenize.TokenError):
            raise ValueError(f"{member.filename}: its header is none of plain arrays") from None
        if dtype.hasobject:
            raise ValueError(f"{member.filename}: holds Python objects, which can run code; expected numbers")
        wanted = content.tell() + math.prod(shape) * dtype.itemsize
        if any(count < 0 for count in shape) or wanted != member.file_size:
            raise ValueError(f"{member.filename}: {dtype} {shape} has {wanted:,} bytes, got {member.file_size:,}")


def _check_directory(file: BinaryIO, size: int) -> None:
    """The directory is read whole, whatever it says of its size."""
    file.seek(max(0, size - _END_BYTES - _END_64_BYTES - _POINTER_64_BYTES - (1 << 16)))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0:
        raise ValueError("no archive of arrays, or cut off")
    claimed = int.from_bytes(tail[at + 12 : at + 16], "little")
    before = at - _POINTER_64_BYTES - _END_64_BYTES
    if before >= 0 and tail[at - _POINTER_64_BYTES :].startswith(_POINTER_64) and tail[before:].startswith(_END_64):
        claimed = int.from_bytes(tail[before + 40 : before + 48], "little")
    if claimed > _MOST_DIRECTORY_BYTES:
        raise ValueError(f"its directory claims {claimed:,} bytes; expected at most {_MOST_DIRECTORY_BYTES:,}")
