"""MLflow's client, which is no dependency of this project."""

from __future__ import annotations

import sys

import fetched
import pytest

VERSION = "3.17.2"


def make_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of the test, behind what is installed. Ends the test where it cannot be had."""
    folder = fetched.by_pip(f"mlflow-{VERSION}", f"mlflow-skinny=={VERSION}")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow has put its store in plain files aside
