"""The measuring program on this machine: started, listened to, and ended."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from compressor.errors import BenchmarkError

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


def run_here(command: Sequence[str], folder: Path, on_event: OnEvent) -> Event:
    """Runs the measuring program in `folder`; every event goes to `on_event`, and the last is returned.

    Ctrl-C asks it to end with what it has; a second one ends it at once. It never outlives this call. Raises
    BenchmarkError when it fails or dies, KeyboardInterrupt after a Ctrl-C without a result.
    """
    stderr_path = folder / "stderr.txt"
    with stderr_path.open("wb") as stderr:
        child = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is passed on, not shared
        )
    assert child.stdout is not None
    last: Event = {}
    try:
        with interrupts_passed_on(
            lambda again: child.kill() if again else child.send_signal(signal.SIGINT)
        ) as interruption:
            for last in events_of(child.stdout):
                on_event(last)
            code = child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdout.close()
    return checked(last, code, stderr_path.read_text(errors="replace"), interruption.seen)


def events_of(stream: IO[bytes]) -> Iterator[Event]:
    """The events on a stream, one JSON object a line; other lines are left out."""
    for line in stream:
        try:
            event = json.loads(line.decode(errors="replace"))
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def checked(last: Event, code: int, stderr: str, interrupted: bool) -> Event:
    """The last event, where it is a result. Raises BenchmarkError with the reason where it is not, KeyboardInterrupt
    where that is a Ctrl-C.
    """
    if last.get("event") == "result":
        return last
    if interrupted:
        raise KeyboardInterrupt("this measurement has no result, and the same command begins it again")
    if last.get("event") == "failed":
        raise BenchmarkError(str(last["message"]))
    if code < 0:
        raise BenchmarkError(f"the measuring program was ended by {signal.Signals(-code).name}; try again")
    said = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "nothing was printed")
    said = said.removeprefix("compressor-runner: ")
    raise BenchmarkError(f"the measuring program failed with exit code {code}: {said}")


@dataclass
class Interruption:
    """Whether there was a Ctrl-C."""

    seen: bool = False


@contextmanager
def interrupts_passed_on(tell: Callable[[bool], None]) -> Iterator[Interruption]:
    """While this holds, Ctrl-C and a polite kill call `tell(again)` instead of raising KeyboardInterrupt."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # signals are the main thread's
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        again, interruption.seen = interruption.seen, True
        tell(again)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
