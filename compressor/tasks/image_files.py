"""Labelled images from image files: folders by class, the library's metadata files, tables that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError
from compressor.preprocess import ImagePreprocessor
from compressor.progress import Progress, without_chatter
from compressor.recipe import LabelledImages
from compressor.recipe_data import DataSource
from compressor.tasks.sources import Split, open_split, readable
from compressor.tasks.tables import BadRows, choose_columns, class_names, name_of, stream_rows

# If none of so many can be used, the rest is not looked at.
_HOPELESS = 1000

# What names it in a message, its content or the path of its file, and if that is read its class by name or number.
_Row = tuple[Any, ...]


def read_images(
    data: LabelledImages, source: DataSource, seed: int | None, labelled: bool, cache: Path, progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Images uint8 [N, height, width, channels] and, if they are `labelled`, their classes int64 [N].

    With a seed up to `data.max_train` of them, in an order that depends on it; without, all in the order of the files.
    Only those that are used are decoded, and the others are not looked at. Raises DataError.
    """
    height, width = data.size
    channels = len(data.mean)
    if channels not in (1, 3) or len(data.std) != channels:
        raise DataError(
            f"{source}: expected 1 or 3 values in data.mean and data.std, got {channels} and {len(data.std)}"
        )
    preprocessor = ImagePreprocessor(height, width, channels, data.resize)
    columns = (data.image, data.label) if labelled else (data.image,)
    rows, most = _rows(data, source, columns, seed, cache)
    pixels, classes = np.empty((most, height, width, channels), np.uint8), np.empty(most, np.int64)
    bad = BadRows(source, "images", "")
    used = seen = 0
    with progress.bar(source.name, most, "image") as bar, without_chatter():
        for name, image, *labels in rows:
            seen += 1
            bar.advance()
            try:
                for label in labels:
                    classes[used] = _class(label, data.classes)
                pixels[used] = preprocessor.decode(_content(image))
            except DataError as error:
                bad.note(f"{name}: {error}")
            else:
                used += 1
            if used == most or (not used and seen == _HOPELESS):
                break
    bad.settle(seen, data.max_bad_rows, progress)
    if not used:
        raise DataError(f"{source}: no images in it")
    return pixels[:used], classes[:used] if labelled else None


def _rows(
    data: LabelledImages, source: DataSource, columns: Sequence[str], seed: int | None, cache: Path
) -> tuple[Iterator[_Row], int]:
    """Rows in the order in which they are wanted, and how many may be used at most."""
    split = open_split(source)
    if data.streaming and seed is not None and not split.images_in_files:
        assert data.max_train is not None
        streamed = stream_rows(source, columns, seed, None)
        return ((f"row {name}", *values) for name, values in streamed), data.max_train
    rows = _listed(split, columns) if split.images_in_files else _stored(split, columns, cache)
    order = np.arange(len(rows)) if seed is None else np.random.default_rng(seed).permutation(len(rows))
    most = len(rows) if seed is None else min(len(rows), data.max_train or len(rows))
    return (rows[int(index)] for index in order), most


def _listed(split: Split, columns: Sequence[str]) -> list[_Row]:
    """Of an image folder, its paths. The library's converted copy would go on naming a folder that has moved."""
    image, *labels = columns
    with readable(split.source):
        stream = choose_columns(split.source, split.stream(), columns)
        names = {label: class_names(stream, label, None) for label in labels}
        return [
            (
                split.name_of_file(row[image]["path"]),
                Path(row[image]["path"]),
                *(name_of(row[label], names[label]) for label in labels),
            )
            for row in stream
        ]


@dataclass(frozen=True)
class _Stored:
    """The rows of a table, read one at a time."""

    table: datasets.Dataset
    image: str
    names: dict[str, list[str] | None]  # of the label, where it is read

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> _Row:
        row = self.table[index]
        return f"row {index + 1}", row[self.image], *(name_of(row[label], names) for label, names in self.names.items())


def _stored(split: Split, columns: Sequence[str], cache: Path) -> _Stored:
    table = choose_columns(split.source, split.table(cache), columns)
    image, *labels = columns
    return _Stored(table, image, {label: class_names(table, label, None) for label in labels})


def _content(image: Any) -> Path | bytes:
    """What to decode. A table holds its images: a path in it could be that of any file."""
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, Path | bytes):
        raise DataError("no image in it")
    return content


def _class(label: Any, classes: Sequence[str]) -> int:
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, int) and 0 <= label < len(classes):
        return label
    raise DataError(f"class {label!r} is not in data.classes")
