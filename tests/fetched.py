"""Other programs that tests compare with and this project does not depend on: fetched once, kept in .cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import needed

CACHE = Path(__file__).resolve().parent.parent / ".cache"


def by_pip(name: str, *packages: str, dependencies: bool = True) -> Path:
    """A folder for sys.path with these packages. Ends the test where they cannot be had."""

    def command(folder: Path) -> list[str]:
        options = ["--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=30", "--only-binary=:all:"]
        options += [] if dependencies else ["--no-deps"]
        return [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), *packages]

    return _once(name, command)


def by_npm(name: str, *packages: str) -> Path:
    """A folder `node_modules` with these packages; none of their scripts has run. Ends the test where they cannot be
    had.
    """
    npm = needed.require("npm", "npm")
    options = ["--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    return _once(name, lambda folder: [npm, "install", *options, "--prefix", str(folder), *packages]) / "node_modules"


def _once(name: str, command: Callable[[Path], list[str]]) -> Path:
    kept = CACHE / name
    if kept.is_dir():
        return kept
    new = kept.with_name(f"{name}.{os.getpid()}")
    new.mkdir(parents=True)
    ended = subprocess.run(command(new), capture_output=True, text=True, check=False)
    if ended.returncode:
        shutil.rmtree(new)
        said = (ended.stderr.strip() or ended.stdout.strip() or "no reason").splitlines()[-1]
        needed.lacking(f"{name} cannot be had: {said}")
    try:
        new.rename(kept)  # several test processes may do this at once
    except OSError:
        shutil.rmtree(new)
    return kept
