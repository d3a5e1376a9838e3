"""Device time and memory of calls, and a result that is kept as it grows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

INPUT_SETS = 3  # so that what a call reads was not read by the one before
BUSY_CYCLES = 10_000_000  # about 5 ms on an H200, in which Python issues the calls of one sample
BUDGET_S = 450.0  # of ten minutes; a part that would begin later is left out

Run = Callable[[int], object]  # given the number of the input set
Keep = Callable[[dict[str, Any]], None]


class Result:
    """Rows and bars as they come; a part that fails becomes a row that says so."""

    def __init__(self, keep: Keep, conditions: dict[str, Any]) -> None:
        self.found: dict[str, Any] = {"conditions": conditions, "rows": [], "bars": {}}
        self._keep = keep
        self._started = time.monotonic()

    def bar(self, name: str, value: float, limit: float, *, at_most: bool = False) -> None:
        holds = value <= limit if at_most else value >= limit
        self.found["bars"][name] = {"value": value, "bar": f"{'<=' if at_most else '>='} {limit:g}", "holds": holds}

    def row(self, **values: Any) -> None:
        self.found["rows"].append(values)

    @contextmanager
    def part(self, name: str) -> Iterator[bool]:
        """Whether there is time for it. Its failure ends it alone, and is a bar that does not hold."""
        in_time = time.monotonic() - self._started < BUDGET_S
        try:
            if not in_time:
                self.row(part=name, error="left out: no time")
            yield in_time
        except Exception as error:  # recorded, and the next part may still work
            message = f"{type(error).__name__}: {str(error)[:300]}"
            self.row(part=name, error=message)
            self.found["bars"][name] = {"value": message, "bar": "no error", "holds": False}
        torch.cuda.empty_cache()
        self._keep(self.found)


def milliseconds(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """The median device time of each, taken in turns."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for number in range(INPUT_SETS):
            run(number)
    for number in range(rounds):
        for name, run in runs.items():
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
            begin.record()
            run(number % INPUT_SETS)
            end.record()
            torch.cuda.synchronize()
            samples[name].append(begin.elapsed_time(end))
    return {name: statistics.median(taken) for name, taken in samples.items()}


def peak_gib(run: Run) -> float:
    """What a call takes beyond its inputs, once it is warm."""
    run(0)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(0)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30
