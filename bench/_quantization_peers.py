"""The quantizers that `bench quantization` compares with, each in a virtual environment of its own, made once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import _peer_quantizers
from bench._quantization_models import MODELS, Subject
from compressor.errors import BenchmarkError
from compressor.store import key_of

_RUNTIME = ("onnxruntime==1.31.1", "onnx==1.23.2")
_TORCH = "torch==2.13.0"
REQUIREMENTS = {
    "onnxruntime": _RUNTIME,
    "optimum-onnx": ("optimum-onnx==0.1.0", *_RUNTIME, _TORCH),
    "olive": ("olive-ai==0.13.0", "requests==2.34.2", *_RUNTIME, _TORCH),  # requests: needed, and not declared
    "nncf": ("nncf==3.4.0", *_RUNTIME),
}
# Where one way of each is to do: the closest to what `static-int8` is here.
QUICK_WAYS = {
    "onnxruntime": "static per-channel",
    "optimum-onnx": "avx512_vnni static",
    "olive": "static per-channel",
    "nncf": "mixed",
}
_LONGEST_S = 900


@dataclass(frozen=True)
class Made:
    """What one way of a peer gave: a file, or the reason why there is none."""

    peer: str
    way: str
    path: Path | None
    seconds: float
    why_not: str


def python_of(peer: str, *, install: bool) -> Path:
    """The Python of its environment, which is made if it is not there and `install` is set. Raises BenchmarkError."""
    folder = MODELS / f"venv-{peer}-{key_of(REQUIREMENTS[peer])[:16]}"
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.is_file():
        return python
    if not install:
        raise BenchmarkError("is not installed yet; a run without --quick installs it")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[peer]]
    for command in ([sys.executable, "-m", "venv", str(folder)], pip):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise BenchmarkError(f"cannot be installed: {_last(ended.stderr, ended.returncode)}")
    done.touch()
    return python


def ways_of(peer: str, subject: Subject, *, quick: bool) -> tuple[str, ...]:
    """What of it is compared. Convolutions are to be static, by onnxruntime's guide."""
    if quick:
        return (QUICK_WAYS[peer],)
    return tuple(way for way in _peer_quantizers.WAYS[peer] if subject.has_text or "dynamic" not in way)


def write_calibration(subject: Subject, path: Path) -> None:
    """The calibration examples, as `_peer_quantizers` reads them."""
    feeds = enumerate(subject.calibration_feeds)
    arrays = {f"{number}/{name}": array for number, feed in feeds for name, array in feed.items()}
    np.savez(path, allow_pickle=False, **arrays)


def quantized(python: Path, peer: str, way: str, model: Path, calibration: Path, folder: Path) -> Made:
    """One way of a peer, in a process of its own. `folder` is new, and its scratch."""
    folder.mkdir()
    out = folder / "quantized.onnx"
    command = [str(python), _peer_quantizers.__file__, peer, way, str(model), str(calibration), str(out)]
    started = time.monotonic()
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_LONGEST_S)
        why_not = "" if out.is_file() and not ended.returncode else _last(ended.stderr, ended.returncode)
    except subprocess.TimeoutExpired:
        why_not = f"had not ended after {_LONGEST_S} s"
    return Made(peer, way, None if why_not else out, time.monotonic() - started, why_not)


def _last(output: str, code: int) -> str:
    """The last line of a process's complaint."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"ended with {code}"
