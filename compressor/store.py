"""Run folders: every stage's output under a key of everything it depends on, written whole or not at all.

    out/
      stages/<stage>-<key>/            finished: its files and artifact.json
      stages/<stage>-<key>.partial/    unfinished: kept for stages that can continue, replaced by the others
      result.json  report.html  bundle/

A key is the SHA-256 of the stage's name, its settings, this program's version, and the keys (or content
hashes) of its inputs, so a changed setting re-runs exactly the stages that depend on it. A stage may lie in a
folder that several run folders share.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter

from compressor import __version__
from compressor.errors import DataError
from compressor.locks import alone_in, alone_with
from compressor.progress import Progress
from compressor.result import StageTime

T = TypeVar("T")

_SEAL = "artifact.json"
CHECKPOINT = "checkpoint.pt"  # what an unfinished stage continues from; a finished one has none


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` so that a reader, or a crash, sees the old file or the new one, whole.

    Raises OSError as the file system gives it; the old file is then untouched.
    """
    temporary = _beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Raises the OSError that `write_atomic` would meet at once; a file that is there stays as it is."""
    temporary = _beside(path)
    try:
        temporary.touch()
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def replace_folder(new: Path, destination: Path) -> None:
    """Moves the folder `new` to `destination`, whose old content is removed first."""
    if destination.exists():
        doomed = destination.with_name(f".{destination.name}.{os.getpid()}.old")
        destination.rename(doomed)
        new.rename(destination)
        shutil.rmtree(doomed)
    else:
        new.rename(destination)
    _sync_folder(destination.parent)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content. Raises DataError where there is none to read: a pipe would be waited for."""
    if not path.is_file():
        raise DataError(f"{path}: expected a regular file, found none")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of every file below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def key_of(*parts: object) -> str:
    """Hex SHA-256 of a canonical JSON form of the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_jsonable).encode()).hexdigest()


@dataclass(frozen=True)
class Keyed(Generic[T]):
    """A stage's result and the key that says where it came from."""

    value: T
    key: str
    remade: bool = False  # by order of --fresh or --from, which holds for whatever depends on it


@dataclass(frozen=True)
class _Sealed(Generic[T]):
    """What artifact.json holds: the artifact, the seconds that it took, the SHA-256 of every file of the stage, and
    that of all this.
    """

    value: T
    seconds: float
    files: dict[str, str]


class WorkAhead(Exception):  # noqa: N818 (it ends a plan, it is no error)
    """Raised in planning by the first stage that is not finished."""


@dataclass
class Run:
    """One run folder, held by one process at a time.

    `rerun_from` and `fresh` say which finished stages to ignore; `planning` makes nothing and raises WorkAhead instead.
    """

    folder: Path
    progress: Progress
    fresh: bool = False
    rerun_from: str | None = None
    planning: bool = False

    def __post_init__(self) -> None:
        self.times: list[StageTime] = []

    def stage(
        self,
        name: str,
        kind: type[T],
        make: Callable[[Path], T],
        after: tuple[Keyed[Any], ...],
        settings: object = None,
        *,
        keep_partial: bool = False,
        mends: bool = False,
        shared: Path | None = None,
    ) -> Keyed[T]:
        """The result of `make(folder)`, or the kept one of an earlier run with the same key.

        `make` writes its files into the folder it is given; the folder gets its final name only when it returns.
        With `keep_partial` an unfinished folder is handed to `make` again, which continues from what is in it. With
        `mends` it makes anew what is not whole of a finished folder, where that lies.
        `shared` is a folder of several runs: the stage is then theirs, and one of them at a time makes it.
        """
        key = key_of(__version__, name, settings, [upstream.key for upstream in after])
        remake = self.fresh or name == self.rerun_from or any(upstream.remade for upstream in after)
        final = (shared or self.folder / "stages") / f"{name}-{key[:16]}"
        partial = final.with_name(final.name + ".partial")
        with alone_with(final, self.progress) if shared and not self.planning else nullcontext():
            if not (remake or self.planning) and self._load(partial, kind) is not None:
                _finish(partial, final)  # a run was killed when this alone was left to do
            if not remake and (kept := self._load(final, kind)) is not None:
                self.progress.log(f"{name}: kept from an earlier run{f' in {shared}' if shared else ''}")
                self.times.append(StageTime(name, kept.seconds, reused=True))
                return Keyed(kept.value, key)
            if self.planning:
                raise WorkAhead
            self.progress.log(f"{name}:")
            if partial.exists() and not (keep_partial and not remake):
                shutil.rmtree(partial)
            # Others may be reading what is whole of a damaged result, so it is mended in its place.
            in_place = mends and not remake and final.exists() and not partial.exists()
            self._make(final if in_place else partial, kind, make)
            if not in_place:
                _finish(partial, final)
            result = _unsealed(final, kind)
            self.times.append(StageTime(name, result.seconds, reused=False))
            self.progress.log(f"{name}: done in {result.seconds:.1f} s")
        return Keyed(result.value, key, remake)

    def _make(self, folder: Path, kind: type[T], make: Callable[[Path], T]) -> None:
        """Leaves the stage whole in the folder."""
        started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        if folder.suffix == ".partial":  # which is taken for finished where it has a seal
            (folder / _SEAL).unlink(missing_ok=True)
        made = make(folder)
        _seal(folder, kind, made, round(time.monotonic() - started, 3))

    def _load(self, folder: Path, kind: type[T]) -> _Sealed[T] | None:
        """A finished stage, if all of it is what was written."""
        try:
            sealed = _unsealed(folder, kind)
        except FileNotFoundError:
            return None
        except ValueError:
            self.progress.log(f"  {folder.name}: its {_SEAL} cannot be read; the stage runs again")
            return None
        for name, sha256 in sealed.files.items():
            if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
                self.progress.log(f"  {folder.name}: {name} is missing or not what was written; the stage runs again")
                return None
        return sealed

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the run folder against other processes. Raises StorageError when another one holds it."""
        with alone_in(self.folder):
            _sweep(self.folder)
            yield


def stage_of(folder: Path) -> str:
    """The name of the stage that a folder is of."""
    return folder.name.rpartition("-")[0]


def _seal(folder: Path, kind: type[T], made: T, seconds: float) -> None:
    """Writes artifact.json, the artifact in it with relative paths."""
    seal = folder / _SEAL
    files = [path for path in folder.rglob("*") if path.is_file() and path != seal and path.name != CHECKPOINT]
    hashes = {str(path.relative_to(folder)): sha256_file(path) for path in files}
    sealed = _Sealed(_map_paths(made, lambda path: _relative(path, folder)), seconds, hashes)
    content = json.loads(TypeAdapter(_Sealed[kind]).dump_json(sealed))  # type: ignore[valid-type]
    write_atomic(seal, json.dumps({**content, "sha256": key_of(content)}, indent=1).encode())


def _unsealed(folder: Path, kind: type[T]) -> _Sealed[T]:
    """What `_seal` wrote, with the paths in that folder. Raises FileNotFoundError; ValueError where it is damaged."""
    content = (folder / _SEAL).read_bytes()
    found = json.loads(content)
    if not isinstance(found, dict) or found.pop("sha256", None) != key_of(found):
        raise ValueError
    sealed: _Sealed[T] = TypeAdapter(_Sealed[kind]).validate_json(content)  # type: ignore[valid-type]
    placed: T = _map_paths(sealed.value, lambda path: path if path.is_absolute() else folder / path)
    return dataclasses.replace(sealed, value=placed)


def _finish(sealed: Path, final: Path) -> None:
    """Gives a sealed stage its final name. Only now is the checkpoint dispensable: a kill before must not cost it."""
    (sealed / CHECKPOINT).unlink(missing_ok=True)
    replace_folder(sealed, final)


def _jsonable(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no canonical form for {type(value).__name__}")


def _relative(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path.absolute()


def _map_paths(value: Any, change: Callable[[Path], Path]) -> Any:
    """The same artifact with `change` applied to every path in it."""
    if isinstance(value, Path):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _map_paths(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, tuple):
        return tuple(_map_paths(item, change) for item in value)
    if isinstance(value, Mapping):
        return {key: _map_paths(item, change) for key, item in value.items()}
    return value


def _sweep(folder: Path) -> None:
    """Removes what a killed process left between writing a file or folder and renaming it."""
    for leftover in [*folder.glob(".*.tmp"), *folder.glob(".*.old"), *folder.glob(".*.new")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
