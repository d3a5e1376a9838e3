"""Shipping: one target after the other, the first the canary. A failure stops it and takes back what was done."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.delivery.difference import difference
from compressor.delivery.oci import write_layout
from compressor.delivery.over_ssh import RemoteDevice
from compressor.delivery.registry import REFERENCE, push
from compressor.device import versions
from compressor.device.manifest import read_manifest
from compressor.device.signature import SIGNATURE, verify_by
from compressor.device.source import archive_of, folder_source
from compressor.errors import BundleError, CompressorError, DeviceError, SignatureError, UsageError, storage_error
from compressor.progress import Progress
from compressor.ssh import device_and_path


@dataclass(frozen=True)
class OciLayout:
    """An OCI image layout in a folder, and the tag of the bundle in it."""

    folder: Path
    tag: str


@dataclass(frozen=True)
class Registry:
    """A place in an OCI registry."""

    host: str
    repository: str
    tag: str


_SCP = re.compile(r"[^/:]+:")

Target = RemoteDevice | OciLayout | Registry | Path


@dataclass(frozen=True)
class Shipped:
    """What became of one target. `how`: `whole`, `delta`, or `there` where it had the bundle already.

    `sent_bytes` of the bundle; `found` is what the device, or the layout, says now.
    """

    target: str
    how: str
    sent_bytes: int
    found: dict[str, Any]


def target_of(text: str, python: str = "python3") -> Target:
    """What a target's name means: `ssh://[user@]host[:port]/folder`, `oci:folder[:tag]`, `oci://host/name[:tag]`, or a
    folder here.

    Raises UsageError for another scheme, for `host:folder` as scp has it, or a folder that is missing.
    """
    if text.startswith("oci://"):
        reference = REFERENCE.fullmatch(text.removeprefix("oci://"))
        if reference is None:
            raise UsageError(f"{text}: expected oci://HOST[:PORT]/NAME[:TAG], the name in lower case")
        return Registry(reference["host"], reference["name"], reference["tag"] or "latest")
    if text.startswith("oci:"):
        folder, colon, tag = text.removeprefix("oci:").partition(":")
        if not folder or (colon and not tag):
            raise UsageError(f"{text}: expected oci:FOLDER or oci:FOLDER:TAG")
        return OciLayout(Path(folder), tag or "latest")
    if text.startswith("ssh:"):
        found = device_and_path(text)
        if found is None or found[1] in ("", "/", "/~/"):
            raise UsageError(
                f"{text}: expected ssh://[user@]host[:port]/folder, such as ssh://pi@board/srv/model;"
                " /~/ begins in the home folder"
            )
        return RemoteDevice(*found, python)
    if not text or "://" in text:
        raise UsageError(
            f"{text}: expected a folder, ssh://[user@]host[:port]/folder, oci:folder[:tag] or oci://host/name"
        )
    if _SCP.match(text):
        host, _, path = text.partition(":")
        raise UsageError(f"{text}: expected a folder; a device is ssh://{host}/{path.lstrip('/')}, a folder ./{text}")
    return Path(text)


def ship(
    bundle: Path,
    targets: Sequence[Target],
    progress: Progress,
    public_key: Path | None = None,
    base: Path | None = None,
) -> list[Shipped]:
    """Installs a signed bundle, a folder, on every target, in their order; where a public key is given, it must be the
    signer's.

    A target that fails keeps what it had; no further one is begun, and those that this call updated go back; not those
    that had nothing before, nor what was put there anew. Devices whose current version is `base` get the difference
    where that is small. Raises what the target raised.
    """
    with folder_source(bundle) as source:
        if not source.signature:
            raise SignatureError(
                f"{bundle}: expected a signed bundle, got one without {SIGNATURE}; `compressor sign` signs it"
            )
        if public_key is not None:
            verify_by(public_key, source.signature, source.manifest)
    update = _Update(bundle, public_key, base)
    done: list[tuple[Target, Shipped]] = []
    for target in targets:
        try:
            shipped = _ship_one(update, target)
        except BaseException as error:
            raise _with_what_became(error, target, done) from None
        progress.log(f"{shipped.target}: {shipped.how}, {shipped.sent_bytes:,} bytes")
        done.append((target, shipped))
    return [shipped for _, shipped in done]


class _Update:
    """A bundle on its way, and its difference from another, which is computed once."""

    def __init__(self, bundle: Path, public_key: Path | None, base: Path | None) -> None:
        self.bundle = bundle
        self.public_key = public_key
        self.base_sha256 = None if base is None else _manifest_sha256(base)
        self.delta = None if base is None else difference(base, bundle)

    def whole(self) -> Iterator[bytes]:
        """The archive. Raises BundleError where the bundle is not whole."""
        with folder_source(self.bundle) as source:
            yield from archive_of(source, read_manifest(source.manifest).files)


def _manifest_sha256(bundle: Path) -> str:
    with folder_source(bundle) as source:
        return hashlib.sha256(source.manifest).hexdigest()


def _ship_one(update: _Update, target: Target) -> Shipped:
    if isinstance(target, OciLayout):
        digest = write_layout(update.bundle, target.folder, target.tag)
        return Shipped(name_of(target), "whole", 0, {"digest": digest})
    if isinstance(target, Registry):
        digest = push(update.bundle, target.host, target.repository, target.tag)
        return Shipped(name_of(target), "whole", 0, {"digest": digest})
    if isinstance(target, Path):
        return _installed_here(update, target)
    if update.delta is not None and _has_base(target, update):
        try:
            return _sent(update, target, ["-", "--delta"], [update.delta], "delta")
        except BundleError:  # what came out of it is not the bundle
            pass
    return _sent(update, target, ["-"], update.whole(), "whole")


def _installed_here(update: _Update, root: Path) -> Shipped:
    with folder_source(update.bundle) as source:
        installed = versions.install(source, root, update.public_key)
    found = versions.described(installed)
    return Shipped(name_of(root), "whole" if installed.self_test else "there", 0, found)


def _sent(update: _Update, target: RemoteDevice, flags: list[str], pieces: Iterable[bytes], how: str) -> Shipped:
    sent = 0

    def counted() -> Iterator[bytes]:
        nonlocal sent
        for piece in pieces:
            yield piece
            sent += len(piece)

    found = target.run("install", flags, counted(), update.public_key)
    return Shipped(name_of(target), how if found["self_test"] else "there", sent, found)


def _has_base(target: RemoteDevice, update: _Update) -> bool:
    try:
        return bool(target.run("status")["manifest_sha256"] == update.base_sha256)
    except BundleError:  # damaged, so that nothing can be built on it
        return False
    except DeviceError:  # nothing was ever installed; or it cannot be reached, which the next will say
        return False


def _with_what_became(error: BaseException, target: Target, done: Sequence[tuple[Target, Shipped]]) -> BaseException:
    """Takes back what was updated, whatever stopped the roll-out, and says so where the error says more to a user."""
    back = f"; {_taken_back(done)}" if done else ""
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(f"{name_of(target)} was under way, and may have been updated{back}")
    known = storage_error(error) if isinstance(error, OSError) else error
    return type(known)(f"{known}{back}") if isinstance(known, CompressorError) else error


def name_of(target: Target) -> str:
    """As messages have it."""
    if isinstance(target, OciLayout):
        return f"oci:{target.folder}:{target.tag}"
    if isinstance(target, Registry):
        return f"oci://{target.host}/{target.repository}:{target.tag}"
    return str(target) if isinstance(target, Path) else target.name


def _taken_back(done: Sequence[tuple[Target, Shipped]]) -> str:
    """Rolls back what was updated, the last one first, and says how that went."""
    back, not_back, stays = [], [], []
    for target, shipped in reversed(done):
        if isinstance(target, OciLayout | Registry) or shipped.found["before"] == shipped.found["current"]:
            continue  # had it before, if only damaged
        if shipped.found["before"] is None:
            stays.append(shipped.target)
            continue
        try:
            if isinstance(target, Path):
                versions.rollback(target)
            else:
                target.run("rollback")
            back.append(shipped.target)
        except (CompressorError, OSError) as error:
            not_back.append(str(error))
    said = f"stopped, and rolled back: {', '.join(back) or 'none'}"
    said += f"; installed where nothing was before, and stays: {', '.join(stays)}" if stays else ""
    return f"{said}; could not be rolled back: {', '.join(not_back)}" if not_back else said


def shipped_line(shipped: Shipped) -> str:
    """What became of a target, for a user."""
    if "digest" in shipped.found:
        return f"{shipped.target}: {shipped.found['digest']}"
    there = f"{shipped.found['product']} version {shipped.found['version']}"
    if shipped.how == "there":
        return f"{shipped.target}: has {there} already"
    tested = shipped.found["self_test"]
    return (
        f"{shipped.target}: {there}, sent {shipped.how}; self-test: {tested['cases']} golden cases in"
        f" {tested['seconds']:.2f} s, lowest cosine {tested['min_cosine']:.6f}"
    )
