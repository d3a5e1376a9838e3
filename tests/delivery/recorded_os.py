# ruff: noqa: PTH102, PTH105, PTH106, PTH108, PTH211 (it is an `os`)
"""An `os` for `compressor.device.disk` that knows what a disk would hold if the power failed at any of its calls.

POSIX promises little: what was written to a file lasts once the file was synced, and a name in a folder once the folder
was. So a crash may leave any file that was not synced cut off at any length, and of the changes of each folder since it
was synced any number of the first ones, whatever became of other folders. `Disk.after_crash` draws one such state.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGES = ("mkdir", "open", "write", "fsync", "replace", "symlink", "unlink", "rmdir")


@dataclass
class File:
    content: bytes = b""
    lasting: bytes = b""
    synced: bool = False


@dataclass
class Link:
    target: str


@dataclass
class Folder:
    """`names` as programs see them; `lasting` as of the last sync, and what was changed since, in order."""

    names: dict[str, Any] = field(default_factory=dict)
    lasting: dict[str, Any] = field(default_factory=dict)
    since: list[dict[str, Any]] = field(default_factory=list)

    def change(self, **names: Any) -> None:
        """Gives names another meaning, at once; None: none."""
        self.since.append(names)
        apply(self.names, names)


def apply(names: dict[str, Any], change: dict[str, Any]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """What a folder holds, all of it lasting at first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = read(root)

    def node(self, path: Path) -> Any:
        node = self.top
        for part in path.relative_to(self.root).parts:
            node = node.names[part]
        return node

    def after_crash(self, to: Path, generator: random.Random) -> None:
        """Writes one of the states that a crash now may leave, into a new folder."""
        write_crashed(self.top, to, generator)


def read(path: Path) -> Any:
    if path.is_symlink():
        return Link(str(path.readlink()))
    if path.is_file():
        content = path.read_bytes()
        return File(content, content, True)
    names = {inner.name: read(inner) for inner in path.iterdir()}
    return Folder(names, dict(names))


def write_crashed(node: Any, to: Path, generator: random.Random) -> None:
    if isinstance(node, Link):
        to.symlink_to(node.target)
    elif isinstance(node, File):
        lasting = node.lasting
        if not node.synced:
            lasting = node.content[: generator.choice([0, generator.randint(0, len(node.content)), len(node.content)])]
        to.write_bytes(lasting)
    else:
        to.mkdir()
        names = dict(node.lasting)
        for change in node.since[: generator.choice([0, generator.randint(0, len(node.since)), len(node.since)])]:
            apply(names, change)
        for name, inner in names.items():
            write_crashed(inner, to / name, generator)


class RecordedOs:
    """Everything of `os`, and a disk that follows what is done. `before` is called before each change."""

    def __init__(self, disk: Disk, before: Any) -> None:
        self.disk = disk
        self.before = before
        self.opened: dict[int, Path] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def mkdir(self, path: Path, mode: int) -> None:
        self.before("mkdir")
        os.mkdir(path, mode)
        self.disk.node(path.parent).change(**{path.name: Folder()})

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self.before("open")
        descriptor = os.open(path, flags, mode)
        self.opened[descriptor] = path
        if flags & os.O_CREAT:
            self.disk.node(path.parent).change(**{path.name: File()})
        return descriptor

    def write(self, descriptor: int, content: bytes) -> int:
        self.before("write")
        count = os.write(descriptor, content)
        file = self.disk.node(self.opened[descriptor])
        file.content, file.synced = file.content + bytes(content[:count]), False
        return count

    def fsync(self, descriptor: int) -> None:
        self.before("fsync")
        os.fsync(descriptor)
        node = self.disk.node(self.opened[descriptor])
        if isinstance(node, File):
            node.lasting, node.synced = node.content, True
        else:
            node.lasting, node.since = dict(node.names), []

    def replace(self, old: Path, new: Path) -> None:
        self.before("replace")
        os.replace(old, new)
        assert old.parent == new.parent, "a rename from folder to folder may last in one of them only"
        folder = self.disk.node(old.parent)
        folder.change(**{new.name: folder.names[old.name], old.name: None})

    def symlink(self, target: str, path: Path) -> None:
        self.before("symlink")
        os.symlink(target, path)
        self.disk.node(path.parent).change(**{path.name: Link(target)})

    def unlink(self, path: Path) -> None:
        self.before("unlink")
        os.unlink(path)
        self.disk.node(path.parent).change(**{path.name: None})

    def rmdir(self, path: Path) -> None:
        self.before("rmdir")
        os.rmdir(path)
        self.disk.node(path.parent).change(**{path.name: None})
