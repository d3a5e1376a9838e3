"""onnxruntime from 1.31 on writes and sends telemetry unless told not to; nothing that this program starts does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import compressor
import onnxruntime
from compressor import native
native.load().Library(str(native.onnxruntime_library()))
"""


@pytest.mark.parametrize("told", [None, "1"])
def test_no_file_of_telemetry_is_written(told: str | None, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    environment |= {} if told is None else {"ORT_DISABLE_TELEMETRY": told}
    environment.pop("XDG_CACHE_HOME", None)
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_the_user_says_counts() -> None:
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    program = "import os, compressor; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    found = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "0"
