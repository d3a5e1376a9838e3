"""Hostile .npz files."""

from __future__ import annotations

import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Make = Callable[[Path], Path]


class Payload:
    """What runs when it is unpickled: it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def npy_header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    said = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    said += b" " * (-(len(said) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said


def _zeros(folder: Path) -> Path:
    """3 GB in 3 MB: one compressed block of zeros, over and over, behind a header that fits."""
    block, times = 1 << 24, 192
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = npy_header((block * times,))
    content = deflate.compress(header) + deflate.flush(zlib.Z_FULL_FLUSH)
    content += (deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)) * times + deflate.flush()
    return _by_hand(folder, content, len(header) + block * times, zipfile.ZIP_DEFLATED)


def _by_hand(folder: Path, content: bytes, size: int, method: int) -> Path:
    """An archive with the one member x.npy, which is said to have `size` bytes; its CRC-32 is right where it is stored
    as it is, and 0 where it is packed.
    """
    name, crc = b"x.npy", zlib.crc32(content) if method == zipfile.ZIP_STORED else 0
    said = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, crc, len(content), size, len(name), 0)
    local = b"PK\3\4" + said + name + content
    entry = b"PK\1\2" + struct.pack("<H", 20) + said + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    (folder / "x.npz").write_bytes(local + entry + end)
    return folder / "x.npz"


def _header(said: bytes) -> Make:
    def make(folder: Path) -> Path:
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said
        return _by_hand(folder, content, len(content), zipfile.ZIP_STORED)

    return make


def _claims(shape: tuple[int, ...], dtype: str = "|u1", more: bytes = b"") -> Make:
    def make(folder: Path) -> Path:
        content = npy_header(shape, dtype) + more
        return _by_hand(folder, content, len(content), zipfile.ZIP_STORED)

    return make


def _twice(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.npz", "w") as archive, warnings.catch_warnings(action="ignore"):
        for _ in range(2):
            archive.writestr("x.npy", npy_header((0,)))
    return folder / "x.npz"


def _pickled(folder: Path) -> Path:
    np.savez(folder / "x.npz", x=np.array([Payload(folder / "it-ran")], dtype=object), allow_pickle=True)
    return folder / "x.npz"


def _directory(folder: Path) -> Path:
    """The end of an archive whose directory has four billion bytes, it says."""
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, 0xFFFF_FF00, 0, 0)
    (folder / "x.npz").write_bytes(b"PK\3\4" + bytes(100) + end)
    return folder / "x.npz"


def _cut(folder: Path) -> Path:
    np.savez(folder / "x.npz", x=np.zeros((32, 4), np.float32))
    (folder / "x.npz").write_bytes((folder / "x.npz").read_bytes()[:-30])
    return folder / "x.npz"


def _content(content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / "x.npz").write_bytes(content)
        return folder / "x.npz"

    return make


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.npz")
    return folder / "x.npz"


HOSTILE: dict[str, Make] = {
    "3 GB of zeros": _zeros,
    "a header of 8 GB": _claims((1 << 33,)),
    "a header of negative size": _claims((-1, 8)),
    "a header of 2^64": _claims((1 << 32, 1 << 32)),
    "a header too short for it": _claims((4,), more=bytes(8)),
    "a header of objects": _claims((1,), "|O", b"\x80\x04N."),
    "a header that is code": _claims((1,), "|u1') or exit('"),
    "a header of 9,000 signs": _header(b"-" * 9000 + b"8\n"),
    "a header of 9,000 brackets": _header(b"[" * 9000 + b"\n"),
    "a header of a type that is no number": _header(b"{'descr': '<04', 'fortran_order': False, 'shape': (8,), }\n"),
    "a header of 4,000 attributes": _header(b"a" + b".a" * 4000 + b"\n"),
    "a pickle with a payload": _pickled,
    "a name twice": _twice,
    "a directory of 4 GB": _directory,
    "cut off": _cut,
    "empty": _content(b""),
    "text": _content(b"no arrays" * 100),
    "FIFO": _pipe,
}
