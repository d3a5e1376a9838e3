"""The same inputs give the same bundle, byte for byte: in two processes, in two folders, on two dates."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command_runs import LIMIT_S, command, environment
from made_inputs import Inputs, image_inputs, sentence_inputs
from needed import require

_DAYS = 400
# What ships beside float32 depends on what is faster, which is measured anew: the bundle is that of float32.
_FLOAT32, _INT8 = "quantize.precisions=[]", 'quantize.precisions=["static-int8"]'


def _later() -> list[str]:
    """What runs a command after some hundred days."""
    clock = [require("faketime", "faketime"), "-f", f"+{_DAYS}d"]
    told = subprocess.run([*clock, sys.executable, "-c", "import time; print(time.time())"], capture_output=True)
    assert float(told.stdout) > time.time() + (_DAYS - 1) * 86_400
    return clock


def _compress(inputs: Inputs, out: Path, precisions: str, clock: Sequence[str] = ()) -> None:
    arguments = command("compress", inputs.write_recipe(out), "--set", precisions)
    ended = subprocess.run([*clock, *arguments], env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 0, ended.stderr


def _hashes(folder: Path, pattern: str) -> dict[str, str]:
    files = (path for path in folder.rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _models(out: Path) -> dict[str, str]:
    """Of all stages but the bundle's, whose name depends on what was measured."""
    found = _hashes(out / "stages", "*.onnx")
    return {name: sha256 for name, sha256 in found.items() if not name.startswith("bundle-")}


@pytest.mark.parametrize("make", [sentence_inputs, image_inputs])
def test_the_same_inputs_give_the_same_bundle(make: Callable[[Path], Inputs], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "deeper"
    clock = _later()
    here.mkdir()
    inputs = make(here)
    shutil.copytree(here, there)
    moved = Inputs(there, inputs.recipe)
    for precisions in (_FLOAT32, _INT8):
        _compress(inputs, here / "out", precisions)
        _compress(moved, there / "elsewhere", precisions, clock)
        if precisions == _FLOAT32:
            bundle = _hashes(here / "out" / "bundle", "*")
            assert "manifest.json" in bundle
            assert _hashes(there / "elsewhere" / "bundle", "*") == bundle
    quantized = _models(here / "out")
    assert any(name.startswith("quantize-") for name in quantized)
    assert _models(there / "elsewhere") == quantized
