"""Runs of the command: in a fresh interpreter, or forked from one that has imported everything already.

Importing torch and transformers costs seconds of processor time. The forked runs have a process, a session, a working
directory and streams of their own, and are signalled, limited and killed like any other; they only skip the imports.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 240.0
_PRELOAD = [
    "compressor.commands",
    "compressor.pipeline",
    "compressor.plan",
    "compressor.report.html",
    "compressor.report.schema",
    "compressor.report.table",
    "onnxruntime.quantization",
    "onnxscript",
    "torch.onnx._internal.exporter._core",
    "torch.onnx._internal.exporter._registration",
]


@dataclass(frozen=True)
class Ended:
    """A command that has ended; the exit code of one ended by a signal is minus its number."""

    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()

    def stages(self, how: str) -> list[str]:
        """The stages that were "kept", or "done" in this run."""
        endings = {"kept": ": kept from an earlier run", "done": ": done in "}
        return [line.split(":")[0] for line in self.lines if endings[how] in line]


def run_fresh(*arguments: str | Path, cwd: Path) -> Ended:
    """`python -m compressor ARGUMENTS`, to its end."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=LIMIT_S
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "compressor", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread: on a machine that is shared with others more of them wait for each other, and sums change order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Running:
    """A command at work, its streams in files of `scratch`."""

    def __init__(self, arguments: tuple[str | Path, ...], scratch: Path, largest_file: int | None = None) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self._process = context.Process(
            target=_in_child, args=([str(argument) for argument in arguments], str(scratch), largest_file)
        )
        self._process.start()

    @property
    def stderr(self) -> str:
        return _read(self._scratch / "stderr")

    def wait_for(self, seen: Callable[[str], bool]) -> None:
        """Returns as soon as stderr satisfies `seen`; the command must not have ended before."""
        deadline = time.monotonic() + LIMIT_S
        while not seen(self.stderr):
            assert self._process.is_alive(), f"the command ended early: {self.stderr}"
            assert time.monotonic() < deadline, f"not seen: {self.stderr}"
            time.sleep(0.002)

    def wait_for_stage(self, name: str) -> None:
        self.wait_for(lambda text: f"{name}:" in text.splitlines())

    def send(self, number: signal.Signals) -> None:
        """To the whole session, as a terminal's Ctrl-C reaches children too."""
        pid = self._process.pid
        assert pid is not None
        os.killpg(pid, number)

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def end(self) -> Ended:
        self._process.join(LIMIT_S)
        code = self._process.exitcode
        assert code is not None, f"the command did not end: {self.stderr}"
        return Ended(code, _read(self._scratch / "stdout"), self.stderr)


def _in_child(arguments: list[str], scratch: str, largest_file: int | None) -> None:
    from compressor.__main__ import main

    os.setsid()
    os.chdir(scratch)
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
    # A shell starts background jobs with Ctrl-C ignored; these runs are to be interrupted wherever the tests run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
