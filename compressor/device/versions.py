"""Versions of a bundle on a device, one of them current: docs/delivery.md is normative.

    ROOT/
      current -> versions/<id>     what serves: replaced by one rename, so that it is always the old version or the new
      versions/<id>/               a bundle, whole and tested; <id> is the SHA-256 of its signature.json. Or
      versions/<id>.1/             where the folder of the other name was damaged, and this replaced it
      state.json                   which product this is, the floor, which version was current before
      keys/<key id>.pub            whose signatures count
      .lock                        held by the one installer at work

The order of an update: signature, floor, what the device must have; then the files, each against its hash; then the
self-test; then `pending` in the state, the swap, the commit. Until the swap nothing that serves was touched. After it
the next command finishes the commit, should this one be killed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.device import disk
from compressor.device.compatible import check_compatible, this_machine
from compressor.device.lock import KEYS, alone_on
from compressor.device.manifest import MANIFEST, DeviceManifest, read_manifest
from compressor.device.selftest import SelfTest, self_test
from compressor.device.signature import (
    SIGNATURE,
    Statement,
    check_expiry,
    key_id,
    public_pem,
    read_public_key,
    read_signature,
    verify_signature,
)
from compressor.device.source import Source, check_folder, folder_source, write_files
from compressor.device.state import (
    AGAIN,
    CURRENT,
    STATE,
    VERSIONS,
    State,
    current_version,
    id_of,
    read_state,
    write_state,
)
from compressor.errors import BundleError, DeviceError, SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Test = Callable[[Path, DeviceManifest], SelfTest]


@dataclass(frozen=True)
class Status:
    """What a device has. `current` and `previous` are ids of versions; where nothing is installed, all is None."""

    current: str | None
    product: str | None
    version: int | None
    manifest_sha256: str | None
    floor: int
    previous: str | None


@dataclass(frozen=True)
class Installed:
    """What an update did. `self_test` is None where the version was current already, and whole.

    `before`: the id of what was current, the same where it was put there anew; None where nothing was.
    """

    status: Status
    self_test: SelfTest | None
    before: str | None


def described(found: Status | Installed) -> dict[str, Any]:
    """As JSON has it: the status; of an update the self-test, where there was one, and what was current before."""
    if isinstance(found, Installed):
        return {**asdict(found.status), **{key: value for key, value in asdict(found).items() if key != "status"}}
    return {**asdict(found), "self_test": None}


def install(source: Source, root: Path, public_key: Path | None = None, test: Test = self_test) -> Installed:
    """Makes a signed bundle the current version of a device; whatever goes wrong, the old version stays current. Where
    it is current already, and not whole, it is put there anew.

    `public_key` is trusted where the device trusts none yet. Raises SignatureError, BundleError, DeviceError,
    StorageError; OSError as the file system gives it.
    """
    with alone_on(root):
        state = _recovered(root)
        keys = _trusted(root, public_key)
        statement = verify_signature(source.signature, source.manifest, keys).statement
        manifest = read_manifest(source.manifest)
        version_id = hashlib.sha256(source.signature).hexdigest()
        current = current_version(root)
        before = None if current is None else id_of(current)
        repairs = before == version_id
        if current is not None and repairs and _is_whole(root, current):
            return Installed(status(root), None, before)
        if not repairs:
            check_expiry(statement)
            _check_permitted(statement, version_id, state)
        check_compatible(manifest, this_machine(), shutil.disk_usage(root).free)
        name, tested = _staged(source, manifest, root, version_id, test)
        if public_key is not None:
            _keep_key(root, public_key)
        if repairs:
            disk.replace_link(root / CURRENT, f"{VERSIONS}/{name}")
            write_state(root, _settled(root))  # which commits an update that was killed, where that could not be read
        else:
            _swap(root, state, version_id, statement)
        _prune(root, read_state(root))
        return Installed(status(root), tested, before)


def rollback(root: Path) -> Status:
    """Makes the previous version current again; the floor stays. Raises DeviceError where there is none, or BundleError
    where it is not whole."""
    _expect_device(root)
    with alone_on(root):
        state = _recovered(root)
        if state.previous is None:
            raise DeviceError(f"{root}: no earlier version is kept, so there is nothing to go back to")
        _check_whole(root, state.previous)
        disk.replace_link(root / CURRENT, f"{VERSIONS}/{state.previous}")
        settled = replace(state, previous=None, pending=None, replaced=None)
        write_state(root, settled)
        _prune(root, settled)
        return status(root)


def status(root: Path) -> Status:
    """What a device has, without changing anything. Raises BundleError or StorageError where that is damaged."""
    _expect_device(root)
    current, state = current_version(root), _settled(root)
    if current is None:
        return Status(None, state.product, None, None, state.floor, None)
    previous = None if state.previous is None else id_of(state.previous)
    with folder_source(root / VERSIONS / current) as source:
        said, sha256 = read_signature(source.signature).statement, hashlib.sha256(source.manifest).hexdigest()
    return Status(id_of(current), said.product, said.version, sha256, state.floor, previous)


def check_current(root: Path) -> None:
    """The current version is whole: its id, its hashes. Raises BundleError; nothing where none is installed."""
    if (current := current_version(root)) is not None:
        _check_whole(root, current)


def _expect_device(root: Path) -> None:
    if not (root / VERSIONS).is_dir() or (current_version(root) is None and not (root / STATE).exists()):
        raise DeviceError(f"{root}: nothing was ever installed there; `compressor device install` does")


def _check_whole(root: Path, name: str) -> None:
    folder = root / VERSIONS / name
    with folder_source(folder) as source:
        if hashlib.sha256(source.signature).hexdigest() != id_of(name):
            raise BundleError(f"{folder}: its {SIGNATURE} is not what was installed; roll back, or install another")
        verify_signature(source.signature, source.manifest, _trusted(root, None))
        check_folder(folder, read_manifest(source.manifest, str(folder / MANIFEST)).files)


def _is_whole(root: Path, name: str) -> bool:
    try:
        _check_whole(root, name)
    except (BundleError, SignatureError):
        return False
    return True


# What is trusted.


def _trusted(root: Path, offered: Path | None) -> dict[str, Ed25519PublicKey]:
    """The keys of the device; where it has none the offered one, which it refuses where it has others."""
    keys = {key_id(key): key for key in (read_public_key(path) for path in sorted((root / KEYS).glob("*.pub")))}
    if offered is None:
        return keys
    key = read_public_key(offered)
    if keys and key_id(key) not in keys:
        raise SignatureError(
            f"{offered}: the device trusts other keys; put it into {root / KEYS} by hand if it shall count"
        )
    return keys or {key_id(key): key}


def _keep_key(root: Path, public_key: Path) -> None:
    kept = root / KEYS / f"{key_id(read_public_key(public_key))}.pub"
    if not kept.exists():
        disk.replace_file(kept, public_pem(public_key))


def _check_permitted(statement: Statement, version_id: str, state: State) -> None:
    if state.product not in (None, statement.product):
        raise SignatureError(f"expected a bundle of the product {state.product}, got one of {statement.product}")
    if version_id != state.floor_id and statement.version <= state.floor:
        raise SignatureError(
            f"expected a version above {state.floor}, which was installed before, got {statement.version};"
            " sign the bundle with a higher one"
        )


# What changes the disk.


def _staged(source: Source, manifest: DeviceManifest, root: Path, version_id: str, test: Test) -> tuple[str, SelfTest]:
    """Leaves the bundle in `versions`, whole, tested and durable, under a free name: what is damaged serves on."""
    name = f"{version_id}{AGAIN}" if os.path.lexists(root / VERSIONS / version_id) else version_id
    folder = disk.unfinished(root / VERSIONS)
    try:
        write_files(source, manifest.files, folder)
        tested = test(folder, manifest)
        disk.move(folder, root / VERSIONS / name)
    except BaseException:
        with suppress(OSError):  # what is left over, the next install sweeps
            disk.remove(folder)
        raise
    return name, tested


def _swap(root: Path, state: State, version_id: str, statement: Statement) -> None:
    """From the old version to the new one, and the floor with it; back again where the last of it fails."""
    old = current_version(root)
    pending = replace(state, pending=version_id, replaced=old)
    try:
        write_state(root, pending)
        disk.replace_link(root / CURRENT, f"{VERSIONS}/{version_id}")
        write_state(root, _committed(pending, statement))
    except OSError:
        with suppress(OSError):  # where even that fails the new version serves, which is whole and tested
            _go_back(root, version_id, old)
        raise


def _go_back(root: Path, version_id: str, old: str | None) -> None:
    if current_version(root) == version_id:
        if old is None:
            disk.remove(root / CURRENT)
        else:
            disk.replace_link(root / CURRENT, f"{VERSIONS}/{old}")
    disk.remove(root / VERSIONS / version_id)


def _committed(state: State, statement: Statement) -> State:
    """The state after a swap; a version that had been gone back from leaves the floor where it is."""
    raised = replace(state, product=statement.product, previous=state.replaced, pending=None, replaced=None)
    if statement.version > state.floor:
        return replace(raised, floor=statement.version, floor_id=state.pending)
    return raised


def _settled(root: Path) -> State:
    """The state, with what a killed update or rollback had left to do to it. Where the new version is damaged by now,
    and does not say which it is, the commit waits until it is there anew; a rollback goes to what it replaced."""
    state, current = read_state(root), current_version(root)
    if state.pending is not None and current is not None and state.pending == id_of(current):
        statement = _statement(root, current)
        if statement is None:
            return replace(state, previous=state.replaced)
        state = _committed(state, statement)
    state = replace(state, pending=None, replaced=None)
    return replace(state, previous=None) if state.previous == current else state


def _statement(root: Path, name: str) -> Statement | None:
    """What a version's signature says; None where it is not the one that was installed."""
    try:
        with folder_source(root / VERSIONS / name) as source:
            if hashlib.sha256(source.signature).hexdigest() == id_of(name):
                return read_signature(source.signature).statement
    except (BundleError, SignatureError):
        pass
    return None


def _recovered(root: Path) -> State:
    """The state of a device after whatever was left of a killed update is cleared away."""
    for folder in (root, root / VERSIONS, root / KEYS):
        disk.sweep(folder)
    state = _settled(root)
    if state != read_state(root):
        write_state(root, state)
    _prune(root, state)
    return state


def _prune(root: Path, state: State) -> None:
    """Removes versions that are neither current nor previous."""
    kept = {current_version(root), state.previous}
    for folder in (root / VERSIONS).iterdir():
        if folder.name not in kept:
            disk.remove(folder)
