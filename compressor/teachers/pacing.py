"""How fast an endpoint is asked: requests per minute, a budget, waits after failures; all of it ends at a stop."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from compressor.errors import TeacherError

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
# A server that asks for more is out of service, or its quota is spent: better said than waited for.
LONGEST_ASKED_WAIT_S = 600.0


class Stopped(Exception):  # noqa: N818 (it ends a wait, it is no error)
    """The run was stopped while a request waited."""


@dataclass
class Pace:
    """Shared by all requests of a run. `slow_down` holds every one of them back, `stop` ends every wait."""

    requests_per_minute: float | None
    budget: int | None
    sent: int = 0
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def take_turn(self) -> None:
        """Waits until a request may be sent, and counts it. Raises TeacherError when the budget is spent."""
        with self._lock:
            if self.budget is not None and self.sent >= self.budget:
                raise TeacherError(
                    f"the budget of {self.budget} requests is spent (teacher.max_requests); what was answered is kept,"
                    " and the same command continues"
                )
            self.sent += 1
            turn = max(time.monotonic(), self._next)
            self._next = turn + (60 / self.requests_per_minute if self.requests_per_minute else 0)
        self.wait(turn - time.monotonic())

    def slow_down(self, seconds: float) -> None:
        """No request before so many seconds from now."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def wait(self, seconds: float) -> None:
        """Raises Stopped as soon as the run is stopped."""
        if self._stopped.wait(max(0.0, seconds)):
            raise Stopped

    def stop(self) -> None:
        """Ends all waiting, for good."""
        self._stopped.set()


def backoff_s(tries: int) -> float:
    """Wait after failure number `tries`, from 1: uniform up to a bound that doubles.

    "Full jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
    """
    return random.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (tries - 1)))


def asked_wait_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, in seconds or by a date (RFC 9110, 10.2.3); None without one."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        until = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
