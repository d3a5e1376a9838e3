"""A bundle as one stream of bytes: a tar archive of which there is exactly one for each bundle.

Members are regular files with the one header that their name and size allow, in the order of docs/bundle-format.md.
What reads them builds that header itself and compares, so no field of it can say anything else, and no member can be
a link, a device, a path out of the folder, or a record that asks for memory. Python's tarfile, which knows all of
these, is not used for reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from compressor.errors import BundleError

BLOCK = 512
PIECE = 1 << 18
_END = bytes(2 * BLOCK)
_NAME_BYTES = 100


@dataclass
class Member:
    """One file of an archive, or of a folder that is read like one. `pieces` gives its content, once."""

    name: str
    size: int
    stream: IO[bytes]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.size

    def pieces(self) -> Iterator[bytes]:
        """The content, `size` bytes in all. Raises BundleError where it ends before."""
        while self.left:
            piece = self.stream.read(min(PIECE, self.left))
            if not piece:
                raise BundleError(f"{self.name}: it ends {self.left} bytes early; copy the bundle again")
            self.left -= len(piece)
            yield piece

    def content(self, limit: int) -> bytes:
        """All of it. Raises BundleError where that is more than `limit` bytes."""
        if self.size > limit:
            raise BundleError(f"{self.name}: expected at most {limit} bytes, got {self.size}")
        return b"".join(self.pieces())


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member: POSIX ustar, a regular file, mode 0644, owner and group 0, time 0."""
    head = b"".join(
        [
            name.encode().ljust(_NAME_BYTES, b"\0"),
            b"0000644\0" + 2 * b"0000000\0",  # mode, owner, group
            b"%011o\0" % size,
            b"%011o\0" % 0,  # time of modification
            b" " * 8,  # the sum, which counts itself as spaces
            b"0".ljust(1 + _NAME_BYTES, b"\0"),  # a regular file, and the name of what a link would point to
            b"ustar\x0000".ljust(8 + 64, b"\0"),  # and the names of owner and group
        ]
    ).ljust(BLOCK, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def archive_bytes(files: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """The archive of these files, each with its name, size and content, in pieces."""
    for name, size, pieces in files:
        yield member_header(name, size)
        yield from pieces
        yield bytes(-size % BLOCK)
    yield _END


def read_archive(stream: IO[bytes]) -> Iterator[Member]:
    """The members of an archive, each to be read before the next is asked for. Raises BundleError."""
    while any(head := _block(stream, "a header")):
        member = _member(head, stream)
        yield member
        for _ in member.pieces():  # what nobody wanted
            pass
        padding = -member.size % BLOCK
        if stream.read(padding) != bytes(padding):
            raise BundleError(f"{member.name}: what follows it is not empty; copy the archive again")
    if any(_block(stream, "an end")) or stream.read(1):
        raise BundleError("the archive does not end after its last member; copy it again")


def _member(head: bytes, stream: IO[bytes]) -> Member:
    name_bytes, size_digits = head[:_NAME_BYTES].rstrip(b"\0"), head[124:135]
    try:
        member = Member(name_bytes.decode("ascii"), int(size_digits, 8), stream)
        same = member.size >= 0 and member_header(member.name, member.size) == head
    except ValueError:
        same = False
    if not same:
        raise BundleError(f"{name_bytes[:40]!r}: expected a plain file as docs/bundle-format.md has it; pack it again")
    return member


def _block(stream: IO[bytes], what: str) -> bytes:
    block = stream.read(BLOCK)
    if len(block) != BLOCK:
        raise BundleError(f"expected {what} of {BLOCK} bytes, got {len(block)}: no archive of a bundle, or cut off")
    return block
