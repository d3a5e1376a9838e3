"""What the user sees while work goes on: bars with rate and time left, and one-line logs, all on stderr."""

from __future__ import annotations

import io
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Bar(Protocol):
    def advance(self, amount: int = 1, note: str = "") -> None: ...


class _SilentBar:
    def advance(self, amount: int = 1, note: str = "") -> None:
        pass


class _LineBar:
    """For logs and pipes: one line every ten seconds at most."""

    interval_s = 10.0

    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = self._before = done
        self._started = self._printed = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._printed < self.interval_s:
            return
        self._printed = now
        rate = (self._done - self._before) / (now - self._started)
        left_s = (self._total - self._done) / rate if rate > 0 else 0.0
        share = self._done / self._total if self._total else 1.0
        print(
            f"  {self._title}: {share:.0%}, {rate:.3g} {self._unit}/s, {left_s:.0f} s left {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


class _RichBar:
    def __init__(self, shown: RichProgress, title: str, total: int, done: int) -> None:
        self._shown, self._done = shown, 0
        self._task = shown.add_task(title, total=total, completed=done, rate="", note="")
        self._started = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        self._shown.update(self._task, advance=amount, note=note, rate=f"{rate:.3g}")


class Progress:
    """Logs and progress bars. `quiet` silences both; without a terminal the bars become lines."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def log(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:
        """A bar over `total` units of work, of which an earlier run has `done` some; `advance` it as the rest is."""
        if self.quiet:
            yield _SilentBar()
        elif not sys.stderr.isatty():
            yield _LineBar(title, total, unit, done)
        else:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn(f"{{task.fields[rate]}} {unit}/s"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with RichProgress(*columns, console=Console(stderr=True), transient=True) as shown:
                yield _RichBar(shown, title, total, done)


SILENT = Progress(quiet=True)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Silences what a library logs, warns and prints on stdout below the level of an error. Exceptions pass."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
