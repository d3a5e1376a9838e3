"""Where data lie: a file, a folder of images, a folder in the hub's layout, the hub; opened by the `datasets` library.

Nothing that a data set brings along runs: the library refuses scripts, and pickles and archives are not listed here.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import DatasetCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from compressor.errors import DataError, first_line
from compressor.images import IMAGE_SUFFIXES
from compressor.intake.files import check_within
from compressor.intake.tables import check_table
from compressor.intake.yaml_text import front_matter
from compressor.recipe_data import DataSource
from compressor.store import key_of, sha256_file

TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# A text that reads "NA" or "null" is a text.
_OPTIONS: dict[str, dict[str, Any]] = {".csv": {"keep_default_na": False}}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "json": (".jsonl", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "imagefolder": IMAGE_SUFFIXES,
}
_FETCHED = [*(f"*{suffix}" for suffixes in _SUFFIXES.values() for suffix in suffixes), "*.md", "*.yaml"]


@dataclass(frozen=True)
class Split:
    """One split of a data set, found and not yet read.

    `files` are their names within `root`, in reading order; `layout` says how a folder of them is read.
    """

    source: DataSource
    builder: datasets.DatasetBuilder
    root: Path
    files: tuple[str, ...]
    layout: tuple[object, ...] | None

    @cached_property
    def sha256(self) -> str:
        """Over what is read: a lone file's content, or file by file with its name, and how."""
        contents = [(name, sha256_file(self.root / name)) for name in self.files]
        return contents[0][1] if self.layout is None else key_of(self.layout, contents)

    @property
    def images_in_files(self) -> bool:
        """Whether every image is a file of its own."""
        return type(self.builder).__module__.endswith(".imagefolder")

    def name_of_file(self, path: str) -> str:
        """A file's name within the data set."""
        return os.path.relpath(path, self.root)

    def table(self, cache: Path) -> datasets.Dataset:
        """All rows, in the order of the files, through the library's converted copy in `cache`. Raises DataError."""
        # The library knows files by path and time, this folder by content; a card may list splits that are not read.
        copy = cache / self.sha256[:16]
        with readable(self.source):
            self.builder.download_and_prepare(str(copy), verification_mode="no_checks")
            return self.builder.as_dataset(split=_READ)

    def stream(self) -> datasets.IterableDataset:
        """Rows as they are read from the files, without a copy. Raises DataError, also where it is read: `readable`."""
        with readable(self.source):
            return self.builder.as_streaming_dataset(split=_READ)


_READ = "train"  # the one split that a builder here is left with, whatever its name in the recipe


def fingerprint(source: DataSource) -> str:
    """SHA-256 of what a source holds: file by file with its name there, not where it lies. Raises DataError."""
    path = source.path
    if path is not None and not path.is_dir() and not source.config and not source.split:
        return sha256_file(path)
    return open_split(source).sha256


def place(source: DataSource) -> str:
    """What a report says of a source: its name, on the hub with the commit that was read. Raises DataError."""
    if source.hub is None:
        return source.name
    return source.name.replace(source.hub, f"{source.hub}@{_snapshot(source.hub, source.revision).name}", 1)


def open_split(source: DataSource) -> Split:
    """The split that a source names; writes nothing. Raises DataError."""
    path = source.path if source.path is not None else _snapshot(str(source.hub), source.revision)
    # It would tell a server that it reads a .csv.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if path.is_dir():
        return _open_folder(source, path.resolve())
    if not path.is_file():
        raise DataError(f"{path}: expected a data file (.jsonl, .csv, .parquet) or a folder, found none")
    if source.config or source.split:
        raise DataError(f"{source}: a file has no configs and no splits; leave config and split out")
    if path.suffix not in TABLES:
        raise DataError(f"{path}: expected a file ending in {', '.join(TABLES)}, got {path.suffix or 'no suffix'!r}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected rows")
    check_table(path, DataError)
    # The library takes a name for a pattern.
    options = {"data_files": glob.escape(str(path)), **_OPTIONS.get(path.suffix, {})}
    return Split(source, _builder(source, TABLES[path.suffix], options), path.parent, (path.name,), None)


def _open_folder(source: DataSource, root: Path) -> Split:
    card = _card(root)
    if source.config or source.split or card or _has_tables(root):
        # By the path of a folder: a relative name could be that of one of the library's own builders.
        builder = _builder(source, str(root), {"name": source.config})
    else:
        everything = glob.escape(str(root)) + "/**"
        builder = _builder(source, "imagefolder", {"data_files": everything, "drop_labels": False})
    module = type(builder).__module__.rpartition(".")[2]
    if module not in _SUFFIXES:
        raise DataError(f"{source}: holds {module} files; expected {', '.join(TABLES)} or images")
    splits = builder.config.data_files
    if source.split is None and len(splits) > 1:
        raise DataError(f"{source}: has the splits {', '.join(splits)}; name one with split")
    split = source.split or next(iter(splits))
    if split not in splits:
        raise DataError(f"{source}: has no split {split}; it has {', '.join(splits)}")
    files = [file for file in splits[split] if _is_read(Path(file), module)]
    if not files:
        raise DataError(
            f"{source}: no data files in it; expected {', '.join(TABLES)} or images ({', '.join(IMAGE_SUFFIXES)})"
        )
    if outside := [file for file in files if not Path(os.path.normpath(file)).is_relative_to(root)]:
        raise DataError(f"{source}: its card names {outside[0]}, which lies outside of it")
    for file in files:
        check_within(Path(file), root, DataError)
        if module != "imagefolder" or Path(file).name in _METADATA:
            check_table(Path(file), DataError)
    builder.config.data_files = {_READ: files}
    names = tuple(Path(file).relative_to(root).as_posix() for file in files)
    return Split(source, builder, root, names, (module, card))


def _builder(source: DataSource, name: str, options: dict[str, Any]) -> datasets.DatasetBuilder:
    # It makes its folder at once, and is told where to write when it writes.
    with readable(source), TemporaryDirectory() as nowhere:
        return datasets.load_dataset_builder(name, cache_dir=nowhere, **options)


def _is_read(file: Path, module: str) -> bool:
    # An archive would be unpacked.
    return file.suffix.lower() in _SUFFIXES[module] or (module == "imagefolder" and file.name in _METADATA)


@contextmanager
def readable(source: DataSource) -> Iterator[None]:
    """Turns what the library raises over data that it cannot read into a DataError of one line."""
    try:
        yield
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise _unreadable(source, error.__cause__ or error) from None
    except (ValueError, FileNotFoundError, RuntimeError, NotImplementedError) as error:
        # ValueError: also a damaged .parquet, text that is not UTF-8. RuntimeError: a folder with a script.
        raise _unreadable(source, error) from None


def _unreadable(source: DataSource, cause: BaseException) -> DataError:
    if "corresponds to no data" in str(cause):
        return DataError(f"{source}: no rows in it")
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) if lines and lines[0].endswith(("missing.", ":")) else "".join(lines[:1])
    form = source.path.suffix if source.path and source.path.suffix else "a data set"
    return DataError(f"{source}: not readable as {form}: {reason[:300] or 'malformed'}")


def _has_tables(root: Path) -> bool:
    """Whether a folder holds data files other than images and what is said of them."""
    return any(path.suffix in TABLES and path.name not in _METADATA for path in root.rglob("*"))


def _card(root: Path) -> object:
    """What the card of a data set says of its configs and features; None without a card that does."""
    readme, beside = root / "README.md", root / datasets.config.REPOYAML_FILENAME
    if beside.exists():  # the library would read it like a card
        raise DataError(f"{beside}: is not read; move what it says into the front matter of {readme.name}")
    if not readme.is_file():
        return None
    try:
        front_matter(readme, DataError)
        said = DatasetCard.load(readme, ignore_metadata_errors=False).data.to_dict()
    except DataError:
        raise
    except Exception as error:  # of YAML, of the card's own checks
        raise DataError(f"{readme}: its front matter cannot be read: {first_line(error)}") from None
    found = {key: said[key] for key in ("configs", "dataset_info") if key in said}
    return found or None


@lru_cache
def _snapshot(repository: str, revision: str | None) -> Path:
    """The repository as a folder in huggingface_hub's cache, named by its commit; fetched where it is not there yet.

    Once a process: with a branch, the hub would be asked anew at every call, and could answer otherwise.
    """
    try:
        found = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=_FETCHED)
    except (HfHubHTTPError, RepositoryNotFoundError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(
            f"data: {repository}{f' at {revision}' if revision else ''} cannot be fetched from the hub: {reason[:300]};"
            " check the name and the network, or download the folder and name it as path"
        ) from None
    return Path(found)
