"""Hostile bundles and archives are refused, in one line, and leave nothing behind."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chosen import chosen
from made_bundle_files import ARCHIVES, BUNDLES, honest, listing_3_gb
from made_bundles import make_signer
from measured import assert_refused, run_measured

from compressor.bundle.archive import as_folder, pack, unpack
from compressor.bundle.manifest import open_bundle
from compressor.bundle.predictor import load
from compressor.bundle.verify import verify_bundle
from compressor.device.manifest import read_manifest
from compressor.errors import BundleError, CompressorError, SignatureError
from compressor.inspection import inspect_path


@pytest.mark.parametrize("case", BUNDLES)
def test_a_hostile_bundle_is_refused(case: str, folder: Path) -> None:
    bundle = BUNDLES[case](folder)
    with pytest.raises(BundleError) as raised:
        verify_bundle(bundle)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "case",
    [
        "model.onnx: crash",
        "model.onnx: external data",
        "model.onnx: external data in the bundle",
        "golden.npz: link",
    ],
)
def test_a_hostile_bundle_is_not_loaded(case: str, folder: Path) -> None:
    bundle = BUNDLES[case](folder)
    for read in (load, inspect_path):
        with pytest.raises(BundleError):
            read(bundle)


# What may stand anywhere in a JSON text; 1e999 is written by hand.
_ANYTHING = (None, True, 0, -1, 10**400, 1 << 70, 1.5, 1e308, "", "x", "9" * 500, [], {}, [[]], [{}], {"a": 1}, "1e999")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*path, key))


def test_manifests_with_anything_anywhere_are_read_or_refused(folder: Path) -> None:
    """By the device's reader and by the host's: no other error than theirs."""
    manifest = honest(folder) / "manifest.json"
    whole = {"": json.loads(manifest.read_bytes())}
    for path in [place for place in _places(whole) if place]:
        for value in _ANYTHING:
            changed = copy.deepcopy(whole)
            inner: Any = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            content = json.dumps(changed[""]).replace('"1e999"', "1e999").encode()
            manifest.write_bytes(content)
            for read in (lambda content=content: read_manifest(content), lambda: open_bundle(manifest.parent)):
                with contextlib.suppress(BundleError):
                    read()
                    assert b"1e999" not in content


@pytest.mark.parametrize("case", ARCHIVES)
def test_a_hostile_archive_is_refused(case: str, folder: Path) -> None:
    archive = ARCHIVES[case](folder)
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(CompressorError) as raised:
        unpack(archive, folder / "unpacked")
    assert "\n" not in str(raised.value)
    assert sorted(folder.parent.rglob("*")) == before


def test_nothing_of_an_archive_is_unpacked_before_its_signature(folder: Path) -> None:
    archive, public = listing_3_gb(folder), make_signer(folder).public
    for key, error, words in ((None, BundleError, "that unpack to 3,2"), (public, SignatureError, "expected a signed")):
        with pytest.raises(error, match=words), as_folder(archive, key):
            pass


def test_an_honest_bundle_passes(folder: Path) -> None:
    bundle = honest(folder)
    assert verify_bundle(bundle).cases == 3
    assert load(bundle).manifest.task == "own"
    pack(bundle, folder / "bundle.tar.zst")
    unpack(folder / "bundle.tar.zst", folder / "unpacked")
    assert verify_bundle(folder / "unpacked").cases == 3


@pytest.mark.parametrize("case", chosen(BUNDLES, ("golden.npz: 3 GB in 3 MB", "manifest: nested")))
def test_verify_refuses_in_one_line(case: str, folder: Path) -> None:
    assert_refused(run_measured("verify", BUNDLES[case](folder), cwd=folder))


@pytest.mark.parametrize("case", chosen(ARCHIVES, ("16 GB of zeros",)))
def test_unpack_refuses_in_one_line(case: str, folder: Path) -> None:
    assert_refused(run_measured("unpack", ARCHIVES[case](folder), "--out", folder / "unpacked", cwd=folder))
    assert not (folder / "unpacked").exists()


@pytest.mark.parametrize("case", chosen(ARCHIVES, ("16 GB of zeros",)))
def test_install_refuses_in_one_line(case: str, folder: Path) -> None:
    key = folder / "release.pub"
    assert run_measured("keys", folder / "release", cwd=folder).code == 0
    archive = ARCHIVES[case](folder)
    arguments = ("device", "install", archive, "--root", folder / "root", "--public-key", key)
    assert_refused(run_measured(*arguments, cwd=folder))
    assert not (folder / "root" / "current").exists()
