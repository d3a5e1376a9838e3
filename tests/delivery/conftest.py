"""Two releases of one product, made once, and copies of them that a test may spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_bundles import Signer, make_bundle, make_signer


@pytest.fixture(scope="session")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> tuple[Path, Path]:
    """Versions 1 and 2. Not to be changed."""
    folder = tmp_path_factory.mktemp("releases")
    first, second = make_bundle(folder / "first", 1), make_bundle(folder / "second", 2)
    return signer.sign(first, 1), signer.sign(second, 2)


@pytest.fixture
def old(releases: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(releases[0], tmp_path / "old"))


@pytest.fixture
def new(releases: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(releases[1], tmp_path / "new"))
