"""A child process that may use so much memory and time: what crashes or hangs there ends there.

`run_limited` starts `python -P -m MODULE CPU_SECONDS BYTES ARGUMENTS...`; that module's main is `limited_main`.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import Signals

from compressor.errors import CompressorError, DeviceError, first_line

# Of address space, beside what the work needs: the interpreter, numpy, ONNX Runtime and the stacks of threads.
RUNTIME_BYTES = 2 << 30


@dataclass(frozen=True)
class Limits:
    """Of a child: seconds on the wall and of processor time, bytes of address space."""

    wall_s: float
    cpu_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Ended:
    """What a child printed; `failure` says how it went wrong, to follow its name: "was ended by SIGSEGV"."""

    stdout: str
    failure: str | None


def run_limited(module: str, arguments: Sequence[str], limits: Limits, stdin: bytes = b"") -> Ended:
    """Runs a module to its end, or to its limits."""
    command = [sys.executable, "-P", "-m", module, str(limits.cpu_s), str(limits.memory_bytes), *arguments]
    # One thread each, or their stacks would count. The address space is what is limited.
    settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    try:
        child = subprocess.run(
            command,
            env={**os.environ, **settings},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=limits.wall_s,
        )
    except subprocess.TimeoutExpired:
        return Ended("", f"did not end within {limits.wall_s:.3g} s")
    if child.returncode == -Signals.SIGXCPU:
        return Ended("", f"did not end within {limits.cpu_s:.3g} s of processor time")
    if child.returncode < 0:
        return Ended("", f"was ended by {Signals(-child.returncode).name}")
    if child.returncode:
        lines = child.stderr.decode(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()] or ["it said nothing"]
        return Ended("", f"fails: {said[-1]}")
    return Ended(child.stdout.decode(), None)


def limited_main(work: Callable[[list[str]], str], arguments: list[str]) -> int:
    """The child: limits itself, prints what `work` gives, or one line on stderr. Returns its exit code."""
    seconds, memory, *rest = arguments
    limit_this_process(float(seconds), int(memory))
    try:
        print(work(rest))
    except CompressorError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print(f"{int(memory) / 1e6:.4g} MB of address space are not enough", file=sys.stderr)
        return DeviceError.exit_code
    except Exception as error:  # of ONNX Runtime, which has a class of its own for everything that can be wrong
        print(f"{type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return DeviceError.exit_code
    return 0


def limit_this_process(cpu_s: float, memory_bytes: int) -> None:
    """To so much processor time and address space, and no file written."""
    _limit(resource.RLIMIT_CPU, cpu_s)  # also where the parent is killed, and nobody else stops it
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(kind: int, most: float) -> None:
    _, hard = resource.getrlimit(kind)
    limit = int(most) if hard == resource.RLIM_INFINITY else min(int(most), hard)
    # A second later the kernel kills. Were both the same, it would at once, and nobody could tell why.
    last = limit + (kind == resource.RLIMIT_CPU)
    resource.setrlimit(kind, (limit, last if hard == resource.RLIM_INFINITY else min(last, hard)))
