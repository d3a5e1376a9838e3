"""Runs the measuring process: a fresh interpreter, so that a model that crashes ONNX Runtime takes only that down."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compressor.benchmark.request import Request, write_request
from compressor.errors import BenchmarkError

Event = dict[str, Any]


def run_worker(
    request: Request, folder: Path, *, limit_s: float, on_event: Callable[[Event], None] | None = None
) -> Event:
    """Carries `request` out in a child, with `folder` for its files; returns the final event.

    Raises BenchmarkError when the child reports a failure, dies, or is silent for `limit_s`. The child never outlives
    this call, whatever ends it.
    """
    write_request(request, folder)
    read_end, write_end = os.pipe()
    command = [sys.executable, "-P", "-m", "compressor.benchmark.worker", str(folder), str(write_end)]
    errors = folder / "stderr.txt"
    with errors.open("wb") as stderr:
        child = subprocess.Popen(
            command, pass_fds=(write_end,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
    os.close(write_end)
    model, last = "", Event()
    try:
        for last in _events(read_end, limit_s):
            model = last.get("model", model)
            if on_event is not None:
                on_event(last)
        code = child.wait()
    except TimeoutError:
        raise BenchmarkError(
            f"{_named(model)}no answer for {limit_s:.0f} s; the model may hang, or be too slow"
        ) from None
    finally:
        os.close(read_end)
        if child.poll() is None:
            child.kill()
            child.wait()
    if code == 0 and last.get("event") == "done":
        return last
    raise BenchmarkError(_what_went_wrong(code, model, last, errors))


def _events(pipe: int, limit_s: float) -> Iterator[Event]:
    pending = b""
    deadline = time.monotonic() + limit_s
    while True:
        if not select.select([pipe], [], [], max(deadline - time.monotonic(), 0.0))[0]:
            raise TimeoutError
        received = os.read(pipe, 65536)
        if not received:
            return
        deadline = time.monotonic() + limit_s
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _named(model: str) -> str:
    return f"{model}: " if model else ""


def _what_went_wrong(code: int, model: str, last: Event, errors: Path) -> str:
    if last.get("event") == "failed":
        return str(last["message"])
    if code < 0:
        cause = "perhaps for want of memory" if -code == signal.SIGKILL else "ONNX Runtime cannot run this model here"
        return f"{_named(model)}the measuring process was ended by {signal.Signals(-code).name}; {cause}"
    lines = errors.read_text(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
    return f"{_named(model)}the measuring process failed with exit code {code}: {said}"
