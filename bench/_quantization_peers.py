"""The quantizers that `bench quantization` compares with, each in a virtual environment of its own, made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
_UNREPORTED = {"OLIVE_DISABLE_TELEMETRY": "1", "NNCF_CI": "1"}  # onnxruntime's is off already


@dataclass(frozen=True)
class Result:
    """What a tool gave: a file, or the reason why there is none."""

    tool: str
    name: str
    path: Path | None
    why_not: str = ""


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


def quantized(python: Path, peer: str, way: str, model: Path, calibration: Path, folder: Path) -> Result:
    """One way of a peer, in a process of its own. `folder` is new, and its scratch."""
    folder.mkdir()
    out = folder / "quantized.onnx"
    command = [str(python), _peer_quantizers.__file__, peer, way, str(model), str(calibration), str(out)]
    environment = {**os.environ, **_UNREPORTED}
    name = f"{peer}: {way}"
    try:
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_LONGEST_S
        )
    except subprocess.TimeoutExpired:
        return Result(peer, name, None, f"had not ended after {_LONGEST_S} s")
    if ended.returncode or not out.is_file():
        return Result(peer, name, None, _last(ended.stderr, ended.returncode))
    return Result(peer, name, out)


def _last(output: str, code: int) -> str:
    """The last line of a process's complaint."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"ended with {code}"
