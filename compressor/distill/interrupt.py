"""Ctrl-C between steps instead of within one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interruption:
    """`requested` turns true at the first Ctrl-C; the second one interrupts at once, as usual."""

    requested: bool = False


@contextmanager
def deferred_interrupt() -> Iterator[Interruption]:
    """Lets a loop finish its step and save before it raises KeyboardInterrupt itself. For the main thread."""
    interruption = Interruption()
    try:
        previous = signal.getsignal(signal.SIGINT)

        def note(number: int, frame: FrameType | None) -> None:
            if interruption.requested and callable(previous):
                previous(number, frame)
            interruption.requested = True

        signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: the embedding program owns the signals
        yield interruption
        return
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, previous)
