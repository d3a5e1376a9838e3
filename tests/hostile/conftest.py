"""Bundles for these tests are made as those of tests/delivery are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "delivery"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a file from outside lies, alone."""
    (tmp_path / "given").mkdir()
    return tmp_path / "given"
