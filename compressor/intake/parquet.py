"""Parquet files, whose footer is looked through before anything is unpacked.

The format, and what stands in a footer: https://parquet.apache.org/docs/file-format/.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

_MAGIC = b"PAR1"
_END_BYTES = 8  # the footer's length, and the magic number again
_MOST_FOOTER_BYTES = 16 << 20
_MOST_COLUMNS = 10_000
# Far beyond what data take that are some; a bomb claims thousands of times its size.
_MOST_UNPACKED_BYTES, _MOST_TIMES_UNPACKED = 1 << 30, 32
_MOST_ROWS, _MOST_ROWS_PER_BYTE = 1 << 24, 64


def check_parquet(file: BinaryIO) -> None:
    """Raises ValueError unless the footer is one of at most 16 MiB and 10,000 columns, whose row groups lie within the
    file, have as many rows as it says, and claim neither more than 1 GiB unpacked that is more than 32 times the file,
    nor more than 16 million rows that are more than 64 for each of its bytes.

    What a value that is written once and referred to in every row grows to is not known before it is read.
    """
    size = _check_ends(file)
    import pyarrow
    from pyarrow import parquet

    file.seek(0)
    try:
        metadata = parquet.read_metadata(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"its footer cannot be read: {str(error).splitlines()[0][:200]}") from None
    if metadata.num_columns > _MOST_COLUMNS:
        raise ValueError(f"expected at most {_MOST_COLUMNS:,} columns, got {metadata.num_columns:,}")
    unpacked = _check_row_groups(metadata, size)
    if unpacked > max(_MOST_UNPACKED_BYTES, _MOST_TIMES_UNPACKED * size):
        raise ValueError(f"{unpacked:,} bytes when unpacked, from a file of {size:,}; write it again, less packed")
    if metadata.num_rows > max(_MOST_ROWS, _MOST_ROWS_PER_BYTE * size):
        raise ValueError(f"{metadata.num_rows:,} rows in a file of {size:,} bytes; expected data in them")


def _check_ends(file: BinaryIO) -> int:
    """The size of the file, whose footer has its length bounded: the library makes room for what it says."""
    size = file.seek(0, os.SEEK_END)
    if size < len(_MAGIC) + _END_BYTES:
        raise ValueError("too short for a Parquet file")
    file.seek(size - _END_BYTES)
    end = file.read(_END_BYTES)
    if end[4:] != _MAGIC:
        raise ValueError("does not end as a Parquet file does (PAR1); an encrypted one is not read")
    footer = int.from_bytes(end[:4], "little")
    if footer > min(_MOST_FOOTER_BYTES, size - len(_MAGIC) - _END_BYTES):
        raise ValueError(f"its footer claims {footer:,} bytes; expected at most {_MOST_FOOTER_BYTES:,}, in the file")
    return size


def _check_row_groups(metadata: FileMetaData, size: int) -> int:
    """Bytes of all row groups unpacked, as the footer says."""
    unpacked = rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        for column in range(group.num_columns):
            chunk = group.column(column)
            begin = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
                begin = min(begin, chunk.dictionary_page_offset)
            sizes = (group.num_rows, begin, chunk.total_compressed_size, chunk.total_uncompressed_size)
            if min(sizes) < 0 or begin + chunk.total_compressed_size > size or chunk.file_path:
                raise ValueError(f"row group {number}, column {chunk.path_in_schema}: does not lie within the file")
            unpacked += chunk.total_uncompressed_size
    if rows != metadata.num_rows:
        raise ValueError(f"claims {metadata.num_rows:,} rows, its row groups {rows:,}; write it again")
    return unpacked
