"""MLflow's client, which is no dependency of this project: fetched once, kept in .cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import needed
import pytest

VERSION = "3.17.2"
_CACHE = Path(__file__).resolve().parent.parent / ".cache"


def make_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of the test, behind what is installed. Ends the test where it cannot be had."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(fetched())])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow has put its store in plain files aside


def fetched() -> Path:
    """The folder to import it from. Ends the test where it cannot be had."""
    kept = _CACHE / f"mlflow-{VERSION}"
    if kept.is_dir():
        return kept
    new = kept.with_name(f"{kept.name}.{os.getpid()}")
    package = f"mlflow-skinny=={VERSION}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries=1"]
    command += ["--timeout=30", "--only-binary=:all:", "--target", str(new), package]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        shutil.rmtree(new, ignore_errors=True)
        needed.lacking(f"{package} cannot be had: {(ended.stderr.strip() or 'no reason').splitlines()[-1]}")
    try:
        new.rename(kept)  # several test processes may do this at once
    except OSError:
        shutil.rmtree(new)
    return kept
