"""`python -m bench CASE`: what it prints, what it writes, how it ends; with a case made for this."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASE = """
def run(quick):
    bar = {"value": 0.5 if quick else 2.0, "bar": 1, "holds": not quick}
    return {"rows": [{"name": "small", "ms": 0.25}, {"name": "large", "ms": 4}], "bars": {"at_least": bar}}
"""


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "made", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bench").mkdir()
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(ROOT / "bench" / name, tmp_path / "bench")
    (tmp_path / "bench" / "made.py").write_text(CASE)
    return tmp_path


def test_without_a_file_it_prints(folder: Path) -> None:
    ended = bench(folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == ["name   ms", "small  0.25", "large  4", "at_least: 2 (bar 1): holds"]


def test_with_a_file_it_writes_too(folder: Path) -> None:
    ended = bench(folder, "--json", "deep/inside/made.json")
    assert ended.stdout == bench(folder).stdout
    written = json.loads((folder / "deep" / "inside" / "made.json").read_text())
    assert (written["case"], written["quick"], written["bars"]["at_least"]["holds"]) == ("made", False, True)
    assert [row["name"] for row in written["rows"]] == ["small", "large"]


def test_a_bar_that_does_not_hold_is_the_exit_code(folder: Path) -> None:
    ended = bench(folder, "--quick")
    assert ended.returncode == 1
    assert ended.stdout.endswith("at_least: 0.5 (bar 1): DOES NOT HOLD\n")
