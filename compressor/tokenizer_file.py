"""A tokenizer.json, opened and used so that whatever its library says of it is one line for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from compressor.errors import DataError, first_line
from compressor.intake.json_text import check_json

_MOST_BYTES = 1 << 27  # one of 262,000 tokens has 33 MB


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file. Raises DataError."""
    if path.exists():
        check_json(path, _MOST_BYTES, DataError)
    with tokenizing(path):
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{path}: expected a tokenizer.json that loads: {error}") from None


@contextmanager
def tokenizing(path: Path) -> Iterator[None]:
    """While this lasts a panic of the library, which is no Exception and has no name to import, is a DataError."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise DataError(f"{path}: its library gives up on a text: {first_line(error)}; simplify its patterns") from None
