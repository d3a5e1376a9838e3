"""Hostile bundles and archives are refused, in one line, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from chosen import chosen
from made_bundle_files import ARCHIVES, BUNDLES, honest, listing_3_gb
from made_bundles import make_signer
from measured import assert_refused, run_measured

from compressor.bundle.archive import as_folder, pack, unpack
from compressor.bundle.predictor import load
from compressor.bundle.verify import verify_bundle
from compressor.errors import BundleError, CompressorError, SignatureError


@pytest.mark.parametrize("case", BUNDLES)
def test_a_hostile_bundle_is_refused(case: str, folder: Path) -> None:
    bundle = BUNDLES[case](folder)
    with pytest.raises(BundleError) as raised:
        verify_bundle(bundle)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", ["model.onnx: crash", "model.onnx: external data", "golden.npz: link"])
def test_a_hostile_bundle_is_not_loaded(case: str, folder: Path) -> None:
    bundle = BUNDLES[case](folder)
    with pytest.raises(BundleError):
        load(bundle)


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
