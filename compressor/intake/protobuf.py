"""The wire format of protocol buffers, read without a library: https://protobuf.dev/programming-guides/encoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

Buffer = bytes | mmap


MOST_TEXT_BYTES = 1 << 27


@dataclass
class Budget:
    """How many fields of a file may still be looked at, in all of its messages together."""

    most: int
    spent: int = 0

    def spend(self, count: int = 1) -> None:
        """Raises ValueError where there are more than `most`."""
        self.spent += count
        if self.spent > self.most:
            raise ValueError(f"more than {self.most:,} fields")


def fields(data: Buffer, start: int, end: int, budget: Budget) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message in data[start:end]: number, wire type, and where the content begins and ends; of a
    varint its value and 0.

    Raises ValueError where that is no message, and where the budget is spent. Groups, which no writer has used for
    decades, are none.
    """
    at = start
    while at < end:
        budget.spend()
        tag, at = varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == LENGTH:
            size, at = varint(data, at, end)
            if size > end - at:
                raise ValueError(f"a field claims {size:,} bytes of {end - at:,}")
            yield number, kind, at, at + size
            at += size
        elif kind == VARINT:
            value, at = varint(data, at, end)
            yield number, kind, value, 0
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
            if size > end - at:
                raise ValueError("it ends within a number")
            yield number, kind, at, at + size
            at += size
        else:
            raise ValueError(f"no field has the wire type {kind}")
        if number == 0:
            raise ValueError("no field has the number 0")


def text(data: Buffer, start: int, end: int) -> str:
    """A text of at most 128 MiB, checked before it is copied. Raises ValueError."""
    if end - start > MOST_TEXT_BYTES:
        raise ValueError(f"a text of {end - start:,} bytes; expected at most {MOST_TEXT_BYTES:,}")
    return data[start:end].decode()


def varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """A number of up to 64 bits at data[at], and where it ends. Raises ValueError."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise ValueError("a number does not end")


def signed(value: int) -> int:
    """An int64 of the 64 bits of a varint."""
    return value - (1 << 64) if value >> 63 else value


def varints(data: Buffer, start: int, end: int) -> Iterator[int]:
    """The numbers of a packed field. Raises ValueError."""
    while start < end:
        value, start = varint(data, start, end)
        yield value
