"""Columns of a .jsonl, .csv or .parquet file, read by the `datasets` library."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from compressor.errors import DataError
from compressor.progress import Progress
from compressor.store import sha256_file

# A text that reads "NA" or "null" is a text.
_OPTIONS: dict[str, dict[str, Any]] = {".csv": {"keep_default_na": False}}
_NAMED = 5  # rows in a message
_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class BadRows:
    """Rows of a file that hold no text, counted and named by their numbers from 1."""

    path: Path
    numbers: list[int] = field(default_factory=list)

    def usable(self, number: int, *texts: object) -> bool:
        """Whether all are texts with something in them; else row `number` is noted."""
        good = all(isinstance(text, str) and bool(text.strip()) for text in texts)
        if not good:
            self.numbers.append(number)
        return good

    def settle(self, rows: int, most: float, progress: Progress) -> None:
        """Says how many of `rows` were left out, and which. Raises DataError for more than the share `most` of them."""
        if not self.numbers:
            return
        named = ", ".join(map(str, self.numbers[:_NAMED])) + (", ..." if len(self.numbers) > _NAMED else "")
        bad = f"{len(self.numbers):,} of {rows:,} rows without text (row {named})"
        if len(self.numbers) > most * rows:
            raise DataError(f"{self.path}: {bad}; expected at most {most:.1%}: mend the file, or set data.max_bad_rows")
        progress.log(f"  {self.path.name}: left out {bad}")


def read_columns(path: Path, columns: Sequence[str], cache: Path) -> dict[str, list[Any]]:
    """The named columns, row by row in file order. `cache` is a folder for the library's converted copy.

    Raises DataError: no such file, empty, not readable as what its suffix says, or a column is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a data file (.jsonl, .csv, .parquet), found none")
    if path.suffix not in _BUILDERS:
        raise DataError(f"{path}: expected a file ending in {', '.join(_BUILDERS)}, got {path.suffix or 'no suffix'!r}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected rows with {', '.join(columns)}")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        table = datasets.load_dataset(
            # The library takes a name for a pattern.
            _BUILDERS[path.suffix],
            data_files=glob.escape(str(path)),
            split="train",
            cache_dir=str(cache / sha256_file(path)[:16]),  # the library knows a file by path and time
            **_OPTIONS.get(path.suffix, {}),
        )
        missing = [name for name in columns if name not in table.column_names]
        found = {} if missing else {name: table[name][:] for name in columns}
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise _unreadable(path, error.__cause__ or error) from None
    except ValueError as error:  # also a damaged .parquet, text that is not UTF-8
        raise _unreadable(path, error) from None
    if missing:
        there = ", ".join(table.column_names)
        raise DataError(f"{path}: missing column {', '.join(missing)}; it has {there}: name yours under data")
    if not len(table):
        raise DataError(f"{path}: no rows; expected rows with {', '.join(columns)}")
    return found


def _unreadable(path: Path, cause: BaseException) -> DataError:
    if "corresponds to no data" in str(cause):
        return DataError(f"{path}: no rows in it")
    lines = str(cause).strip().splitlines()
    return DataError(f"{path}: not readable as {path.suffix}: {lines[0] if lines else 'malformed'}")
