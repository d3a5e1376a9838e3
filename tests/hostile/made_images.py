"""Hostile images, as what their files hold."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable

from PIL import Image


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def _gif(width: int, height: int, frames: int = 1) -> bytes:
    """Frames of one pixel each on a screen of so many."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00"
    return head + frame * frames + b";"


def _tiff(width: int, height: int, frames: int = 1) -> bytes:
    """Grey frames of so many pixels, one directory behind the other, with the same 64 bytes of content."""
    size, first = 2 + 8 * 12 + 4, 8 + 64
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 278: height, 279: 64}  # as TIFF 6.0 numbers them
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
    following = [first + number * size for number in range(1, frames)] + [0]
    return (
        b"II*\0"
        + struct.pack("<I", first)
        + bytes(64)
        + b"".join(directory + struct.pack("<I", offset) for offset in following)
    )


def _picture(**saving: object) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, **saving)  # type: ignore[arg-type]
    return content.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "PNG: 10^10 pixels": lambda: _png(100_000, 100_000),
    "PNG: 2^31 wide": lambda: _png(1 << 31, 1),
    "PNG: cut off": lambda: _picture(format="PNG")[:45],
    "GIF: 4 * 10^9 pixels": lambda: _gif(65_535, 65_535),
    "GIF: two frames": lambda: _gif(8, 8, 2),
    "GIF: three million frames": lambda: _gif(8, 8, 3_000_000),
    "TIFF: 10^10 pixels": lambda: _tiff(100_000, 100_000),
    "TIFF: 2^32 wide": lambda: _tiff((1 << 32) - 1, 1),
    "TIFF: two frames": lambda: _tiff(8, 8, 2),
    "TIFF: 100,000 frames": lambda: _tiff(8, 8, 100_000),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "pickle": lambda: pickle.dumps([1]),
    "empty": lambda: b"",
}
HONEST: dict[str, Callable[[], bytes]] = {
    "GIF": lambda: _picture(format="GIF"),
    "TIFF": lambda: _picture(format="TIFF"),
    "TIFF by hand": lambda: _tiff(8, 8),
}
