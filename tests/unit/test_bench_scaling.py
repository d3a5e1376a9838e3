"""What `bench distill_scaling` rests on: its ways agree with float64, and their memory grows as it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench._scaling_paths import WAYS, check
from bench.distill_scaling import exponent

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, HIDDEN = 16384, 64
MATRIX_ROW_MIB = VOCABULARY * 4 / 2**20


@pytest.mark.parametrize("name", WAYS)
def test_every_way_agrees_with_float64(name: str) -> None:
    loss_error, gradient_error = check(WAYS[name], 1000, 48)
    assert 0 <= loss_error < 1e-6
    assert 0 < gradient_error < 1e-5


def test_the_exponent_of_a_power_is_found() -> None:
    assert exponent([1.0, 2.0, 8.0], [5.0, 5 * 2**1.5, 5 * 8**1.5]) == pytest.approx(1.5)


def peak_mib(name: str, rows: int) -> float:
    """Of a first step, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "bench._scaling_paths", name, f"{VOCABULARY}x{rows}x{HIDDEN}"],
        cwd=ROOT,
        input="\n",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return float(json.loads(ended.stdout)["peak_mib"])


@pytest.mark.parametrize(("name", "matrices"), [("dense", 3), ("linear", 0), ("linear top-k", 0)])
def test_how_many_logits_a_row_takes(name: str, matrices: int) -> None:
    """Student's, teacher's and their gradient; from hidden states none, beyond the chunk's."""
    few, many = 256, 2048
    grown = (peak_mib(name, many) - peak_mib(name, few)) / (many - few) / MATRIX_ROW_MIB
    assert grown == pytest.approx(matrices, abs=0.15)
