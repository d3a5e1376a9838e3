"""Rows of a .jsonl, .csv or .parquet file or of a data set in the hub's layout, read by the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from compressor.errors import DataError
from compressor.progress import Progress
from compressor.recipe_data import DataSource
from compressor.tasks.sources import Split, open_split, readable

_NAMED = 5  # rows in a message
_BUFFER = 10_000  # rows among which a stream is shuffled

# What names it in a message, and its values in the columns asked for.
Row = tuple[int | str, tuple[Any, ...]]


@dataclass
class BadRows:
    """Rows that cannot be used, counted and named: text by numbers from 1 (`3`, `3 of name.csv`), images by files."""

    source: DataSource
    what: str = "rows without text"
    called: str = "row "
    names: list[str] = field(default_factory=list)

    def usable(self, name: int | str, *texts: object) -> bool:
        """Whether all are texts with something in them; else the row is noted."""
        good = all(isinstance(text, str) and bool(text.strip()) for text in texts)
        if not good:
            self.note(name)
        return good

    def note(self, name: int | str) -> None:
        """Counts a row as a bad one."""
        self.names.append(str(name))

    def settle(self, rows: int, most: float, progress: Progress) -> None:
        """Says how many of `rows` were left out, and which. Raises DataError for more than the share `most` of them."""
        if not self.names:
            return
        named = ", ".join(self.names[:_NAMED]) + (", ..." if len(self.names) > _NAMED else "")
        bad = f"{len(self.names):,} of {rows:,} {self.what} ({self.called}{named})"
        if len(self.names) > most * rows:
            raise DataError(f"{self.source}: {bad}; expected at most {most:.1%}: mend them, or set data.max_bad_rows")
        progress.log(f"  {self.source.name}: left out {bad}")


def read_columns(
    source: DataSource, columns: Sequence[str], cache: Path, classes: Sequence[object] | None = ()
) -> dict[str, list[Any]]:
    """The named columns, row by row in file order. `cache` is a folder for the library's converted copy.

    A class that the data set numbers and names is given by its name where one of its names is among `classes`, and by
    its number otherwise; with None always by its name. Raises DataError: no such data, empty, not readable, or a
    column is missing.
    """
    table = open_split(source).table(cache)
    chosen = choose_columns(source, table, columns)
    if not len(chosen):
        raise DataError(f"{source}: no rows; expected rows with {', '.join(columns)}")
    found: dict[str, list[Any]] = {}
    with readable(source):
        for column in columns:
            names = class_names(chosen, column, classes)
            found[column] = [name_of(value, names) for value in chosen[column][:]]
    return found


def enumerate_rows(columns: dict[str, list[Any]]) -> Iterator[Row]:
    """The rows of columns, from 1."""
    return enumerate(zip(*columns.values(), strict=True), 1)


def stream_rows(
    source: DataSource, columns: Sequence[str], seed: int, classes: Sequence[object] | None = ()
) -> Iterator[Row]:
    """Rows with their values in `columns`, as `read_columns` gives them, in an order that depends on `seed`.

    Files come in random order, and each row is drawn from 10,000 that were read ahead. Raises DataError.
    """
    split = open_split(source)
    with readable(source):
        stream = choose_columns(source, split.stream(), columns)
        names = [class_names(stream, column, classes) for column in columns]
        for row, values in _shuffled(split, stream, seed):
            if missing := [column for column in columns if column not in values]:
                raise missing_columns(source, missing, values)
            yield row, tuple(name_of(values[column], known) for column, known in zip(columns, names, strict=True))


def _shuffled(split: Split, stream: datasets.IterableDataset, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    # The library's own shuffle gives the same kind of order, but not the numbers by which bad rows are named.
    generator = np.random.default_rng(seed)
    ahead: list[tuple[str, dict[str, Any]]] = []
    for number in generator.permutation(stream.num_shards):
        of_file = f" of {split.files[number]}" if len(split.files) > 1 else ""
        for row, values in enumerate(stream.shard(stream.num_shards, int(number)), 1):
            ahead.append((f"{row}{of_file}", values))
            if len(ahead) > _BUFFER:
                drawn = int(generator.integers(len(ahead)))
                ahead[drawn], ahead[-1] = ahead[-1], ahead[drawn]
                yield ahead.pop()
    for index in generator.permutation(len(ahead)):
        yield ahead[index]


def choose_columns(source: DataSource, table: Any, columns: Sequence[str]) -> Any:
    """The same table with these columns alone, images as their files are. Raises DataError for a missing one.

    The columns of a stream of .csv are not known before it is read.
    """
    if len(set(columns)) < len(columns):
        raise DataError(f"{source}: expected different columns, got {', '.join(columns)}: name yours under data")
    if table.column_names is None:
        return table
    if missing := [name for name in columns if name not in table.column_names]:
        raise missing_columns(source, missing, table.column_names)
    chosen = table.select_columns(list(columns))
    for name in columns:
        if isinstance(chosen.features[name], datasets.Image):
            chosen = chosen.cast_column(name, datasets.Image(decode=False))
    return chosen


def missing_columns(source: DataSource, missing: Sequence[str], there: Sequence[str] | dict[str, Any]) -> DataError:
    """The error for columns that are not there."""
    message = f"{source}: missing column {', '.join(missing)}; it has {', '.join(there)}: name yours under data"
    return DataError(message, missing)


@contextmanager
def labels_learnt_from(*columns: str) -> Iterator[None]:
    """While training data are read: where it is these columns with labels that are missing, says how to do without."""
    try:
        yield
    except DataError as error:
        if not error.missing or not set(error.missing) <= set(columns):
            raise
        raise DataError(
            f"{error}, or set distill.hard_weight to 0 and distill.control to false: then no labels are needed"
        ) from None


def class_names(table: Any, column: str, classes: Sequence[object] | None) -> list[str] | None:
    """What the data set calls its numbered classes, where one of these names is among `classes` or that is None.

    Of a column of lists, what it calls their members.
    """
    feature = (table.features or {}).get(column)
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.ClassLabel) and (classes is None or set(feature.names) & set(classes)):
        return list(feature.names)
    return None


def name_of(value: Any, names: list[str] | None) -> Any:
    """The name of a class that is given by its number, or the value itself; of a list, of each of its members."""
    if isinstance(value, list):
        return [name_of(member, names) for member in value]
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
