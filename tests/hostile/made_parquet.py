"""Hostile Parquet files. Footers are written by hand, in Thrift's compact protocol, as no library would write them.

https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift has the fields and their numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

Make = Callable[[Path], Path]
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def _number(value: int) -> bytes:
    return _varint(-2 * value - 1 if value < 0 else 2 * value)


def _text(value: str) -> bytes:
    return _varint(len(value.encode())) + value.encode()


def _listed(kind: int, members: list[bytes]) -> bytes:
    head = bytes([len(members) << 4 | kind]) if len(members) < 15 else bytes([0xF0 | kind]) + _varint(len(members))
    return head + b"".join(members)


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    """Fields by number, kind and value, numbers ascending by less than 16."""
    written, last = b"", 0
    for number, kind, value in fields:
        written, last = written + bytes([(number - last) << 4 | kind]) + value, number
    return written + b"\0"


def _element(name: str, children: int | None) -> bytes:
    if children is None:
        return _struct((1, _I32, _number(1)), (3, _I32, _number(0)), (4, _BINARY, _text(name)))
    return _struct((3, _I32, _number(0)), (4, _BINARY, _text(name)), (5, _I32, _number(children)))


def _chunk(rows: int, begin: int, packed: int, unpacked: int, path: list[str], file: str | None = None) -> bytes:
    """A column of int32 in one row group."""
    said = _struct(
        (1, _I32, _number(1)),
        (2, _LIST, _listed(_I32, [_number(0)])),
        (3, _LIST, _listed(_BINARY, [_text(part) for part in path])),
        (4, _I32, _number(0)),
        (5, _I64, _number(rows)),
        (6, _I64, _number(unpacked)),
        (7, _I64, _number(packed)),
        (9, _I64, _number(begin)),
    )
    elsewhere = [] if file is None else [(1, _BINARY, _text(file))]
    return _struct(*elsewhere, (2, _I64, _number(begin)), (3, _STRUCT, said))


def _group(chunks: list[bytes], rows: int) -> bytes:
    return _struct((1, _LIST, _listed(_STRUCT, chunks)), (2, _I64, _number(100)), (3, _I64, _number(rows)))


def _footer(schema: list[bytes], rows: int, groups: list[bytes]) -> bytes:
    return _struct(
        (1, _I32, _number(2)),
        (2, _LIST, _listed(_STRUCT, schema)),
        (3, _I64, _number(rows)),
        (4, _LIST, _listed(_STRUCT, groups)),
    )


def _file(footer: bytes, length: int | None = None, data: bytes = bytes(1000)) -> Make:
    claimed = (len(footer) if length is None else length).to_bytes(4, "little")
    return _content(b"PAR1" + data + footer + claimed + b"PAR1")


def _content(content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / "rows.parquet").write_bytes(content)
        return folder / "rows.parquet"

    return make


def _one_column(
    rows: int = 10, begin: int = 4, packed: int = 100, unpacked: int = 100, file: str | None = None, said: int = 10
) -> Make:
    """A file of one column of int32, `label`, and one row group."""
    chunk = _chunk(rows, begin, packed, unpacked, ["label"], file)
    return _file(_footer([_element("root", 1), _element("label", None)], said, [_group([chunk], rows)]))


def _deep(levels: int) -> Make:
    schema = [_element(f"g{level}", 1) for level in range(levels)]
    return _file(_footer([*schema, _element("label", None)], 0, []))


def _wide(columns: int) -> Make:
    schema = [_element("root", columns), *(_element(f"c{number}", None) for number in range(columns))]
    return _file(_footer(schema, 0, []))


def _zeros(folder: Path) -> Path:
    """1.2 GB of zeros in some kilobytes."""
    path, table = folder / "rows.parquet", pa.table({"label": np.zeros(1 << 23, np.int64)})
    with parquet.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(18):
            writer.write_table(table)
    return path


def _cut(folder: Path) -> Path:
    path = honest(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "rows.parquet")
    return folder / "rows.parquet"


def honest(folder: Path) -> Path:
    """Texts, many of them the same, labels and lists, in two row groups."""
    rows = {"text": ["one", "another"] * 500, "label": [0, 1] * 500, "tags": [[1, 2], []] * 500}
    parquet.write_table(pa.table(rows), folder / "rows.parquet", row_group_size=600, compression="zstd")
    return folder / "rows.parquet"


HOSTILE: dict[str, Make] = {
    "1.2 GB of zeros": _zeros,
    "2^40 bytes unpacked": _one_column(unpacked=1 << 40),
    "2^40 rows": _one_column(rows=1 << 40, said=1 << 40),
    "negative rows": _one_column(rows=-10, said=-10),
    "other rows than its row groups": _one_column(said=1 << 40),
    "a column beyond the end": _one_column(packed=1 << 20),
    "a column before the begin": _one_column(begin=-100),
    "a column of negative size": _one_column(packed=-100),
    "a column in another file": _one_column(file="../other.parquet"),
    "20,000 columns": _wide(20_000),
    "50,000 groups in groups": _deep(50_000),
    "a footer of 4 GB": _file(b"", 0xFFFF_FFFF),
    "a footer larger than the file": _file(b"", 1 << 20),
    "a footer of 17 MB": _file(bytes(17 << 20)),
    "a footer of zeros": _file(bytes(1000)),
    "a footer of random bytes": _file(np.random.default_rng(0).bytes(1000)),
    "encrypted": _content(b"PARE" + bytes(100) + (50).to_bytes(4, "little") + b"PARE"),
    "cut off": _cut,
    "text": _content(b"no rows at all\n" * 100),
    "short": _content(b"PAR1"),
    "FIFO": _pipe,
}
HONEST: dict[str, Make] = {"rows": honest, "by hand": _one_column()}
