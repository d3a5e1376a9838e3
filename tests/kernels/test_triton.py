"""The Triton kernels under Triton's interpreter: the cases of `triton_cases.py`, in a process of their own.

Triton reads TRITON_INTERPRET when it is first imported, and torch imports it before any of these tests could set it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")


@pytest.mark.slow
def test_the_kernels_agree_with_the_reference() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr
    assert " passed" in found.stdout
