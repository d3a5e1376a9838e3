"""MLflow's client, which is no dependency of this project."""

from __future__ import annotations

import sys
from pathlib import Path

import fetched
import pytest

VERSION = "3.17.2"


def make_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of the test, behind what is installed. Ends the test where it cannot be had."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder())])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow has put its store in plain files aside


def folder() -> Path:
    """Where it can be imported from. Ends the test where it cannot be had."""
    return fetched.by_pip(f"mlflow-{VERSION}", f"mlflow-skinny=={VERSION}")
