"""Where CMake put what it built, and what is in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import needed

ROOT = Path(__file__).resolve().parents[2]
CORE = "CMakeFiles/compressor_core.dir/csrc"


def folder_of_this_machine() -> Path:
    """The build folder of the installed module; `make sanitize` names its own in COMPRESSOR_BUILD."""
    if named := os.environ.get("COMPRESSOR_BUILD"):
        return Path(named)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = [program.parent for program in (ROOT / "build").glob(f"{tag}-{tag}-*/distill_loss_check")]
    if not found:
        needed.lacking(f"build/{tag}-{tag}-*/distill_loss_check is not built; run: make test")
    return found[0]


def output_of(*command: str | Path) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def symbols_that_leave(file: Path, nm: str = "nm") -> list[str]:
    """Type and demangled name of what another file can link to: functions and variables, weak ones too."""
    lines = output_of(nm, "-C", "--defined-only", "--extern-only", file).splitlines()
    found = [line.split(maxsplit=2)[1:] for line in lines]
    # The address of the exceptions' handler, of the C++ runtime: no code.
    return [f"{kind} {name}" for kind, name in found if name != "DW.ref.__gxx_personality_v0"]


def only_entry(instruction_set: str) -> list[str]:
    arguments = "compressor::DistillProblem const&, long, long, float*"
    return [f"T compressor::{instruction_set}::distill_rows({arguments})"]
