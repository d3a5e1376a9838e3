"""The command in a process of its own, with what it took: processor time and memory, its children's too."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from compressor import errors
from compressor.errors import CompressorError

EXIT_CODES = {
    kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CompressorError)
} - {errors.INTERNAL_ERROR_EXIT_CODE}
MOST_S, MOST_BYTES = 10.0, 2 << 30
_HANGS_S = 120.0  # on the clock, which others slow down


@dataclass(frozen=True)
class Measured:
    """A command that has ended. `cpu_s` and `peak_bytes` are of it and of the children that it waited for."""

    code: int
    stdout: str
    stderr: str
    cpu_s: float
    peak_bytes: int


def run_measured(*arguments: str | Path, cwd: Path) -> Measured:
    """`python -m compressor ARGUMENTS`, to its end, one thread."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "compressor", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
        hanging = threading.Timer(_HANGS_S, process.kill)
        hanging.start()
        _, status, used = os.wait4(process.pid, 0)
        hanging.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        return Measured(
            process.returncode,
            stdout.read().decode(errors="replace"),
            stderr.read().decode(errors="replace"),
            used.ru_utime + used.ru_stime,
            used.ru_maxrss * 1024,
        )


def assert_refused(ended: Measured) -> None:
    """One line, an exit code of errors.py, within 10 s and 2 GiB. Time is the processor's: others may use it too."""
    assert ended.code in EXIT_CODES, (ended.code, ended.stderr)
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("compressor: ")]
    assert len(lines) == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == lines[0], ended.stderr
    assert ended.cpu_s <= MOST_S
    assert ended.peak_bytes <= MOST_BYTES
