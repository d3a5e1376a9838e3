"""A run's result as tables for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from compressor.benchmark.result import (
    BenchResult,
    Bounded,
    ComparisonFound,
    ModelFound,
    RunFound,
    Starts,
)

_WORTH_SAYING = 0.01  # the share of time that threads waited
_MOST_DIGITS = 9
_OF_THE_BASELINE = "it is the baseline"  # how the reason begins that a baseline's outputs are compared with nothing


def print_bench(result: BenchResult, out: TextIO = sys.stdout) -> None:
    """Every run's tables, and what to know about them."""
    for run in result.runs:
        print(_title(run), file=out)
        _print(_start_rows(run) if run.scenario == "cold" else _rows(run), out)
        for line in _remarks(run):
            print(line, file=out)
        for model in run.models:
            if model.profile:
                print(f"\n{model.name}: time by operator", file=out)
                _print(_profile_rows(model), out)
        print(file=out)


def _print(rows: Sequence[Sequence[str]], out: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, *body = rows
    table = Table(box=box.SIMPLE, pad_edge=False)
    for index, column in enumerate(head):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
    # A pipe has no width: the table takes what it needs.
    Console(file=out, width=None if out.isatty() else 240, highlight=False, markup=False).print(table)


def _title(run: RunFound) -> str:
    asked = run.conditions
    parts: list[str] = [run.scenario]
    if asked.period_ms is not None:
        parts.append(f"every {asked.period_ms:g} ms")
    if asked.sessions is not None:
        parts.append(f"{asked.sessions} session(s) with {asked.callers} caller(s) each")
    if asked.duration_s is not None:
        parts.append(f"{asked.duration_s:g} s each")
    parts.append(f"{asked.threads} thread(s)")
    if asked.optimization_level != 99:
        parts.append(f"optimization level {asked.optimization_level}")
    if asked.spin:
        parts.append("spinning")
    if asked.provider != "cpu":
        parts.append(asked.provider)
    parts += [f"{name} {size}" for name, size in asked.shapes.items()]
    return f"{', '.join(parts)}; onnxruntime {run.runtime.version} on {run.target.processor or run.target.architecture}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _bounded(value: Bounded | None, *apart: float) -> str:
    """The value with its bounds, in as many digits as tell them from each other and from the numbers `apart`."""
    if value is None:
        return "-"
    bounds = [bound for bound in (value.low, value.high) if bound is not None]
    numbers = {value.value, *bounds, *apart}
    told_apart = (n for n in range(3, _MOST_DIGITS) if len({f"{number:.{n}g}" for number in numbers}) == len(numbers))
    digits = next(told_apart, _MOST_DIGITS)
    low, high = ("" if bound is None else f"{bound:.{digits}g}" for bound in (value.low, value.high))
    return f"{value.value:.{max(digits, 4)}g} [{low}, {high}]"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _rows(run: RunFound) -> list[list[str]]:
    head = ["model", "MB", "p50 ms [95%]", "p90 ms", "p99 ms [95%]", "p99.9", "CPU ms", "inf/s", "load ms", "peak MiB"]
    if run.scenario == "paced":
        head += ["missed", "dropped", "late p50 ms"]
    if run.scenario == "sustained":
        head += ["drift %/min [95%]", "last/first"]
    return [head, *(_row(run, model) for model in run.models)]


def _row(run: RunFound, model: ModelFound) -> list[str]:
    times = model.latency.best if model.latency else None
    row = [model.name, f"{model.bytes / 1e6:.3g}"]
    row.append(_bounded(times.p50_ms if times else None))
    row.append(_number(times.p90_ms.value if times and times.p90_ms else None))
    row.append(_bounded(times.p99_ms if times else None))
    row.append(_number(times.p999_ms.value if times and times.p999_ms else None))
    row += [_number(model.cpu_ms), _number(model.throughput_per_s), _number(model.load.session_ms)]
    row.append(_number(model.load.memory_mib.peak - model.load.memory_mib.start, 3))
    if run.scenario == "paced":
        pacing = model.pacing
        row += [str(pacing.missed), str(pacing.dropped), _number(pacing.late_p50_ms)] if pacing else ["-"] * 3
    if run.scenario == "sustained":
        drift = model.drift
        slope = drift.slope_per_minute if drift else None
        percent = slope and Bounded(
            slope.value * 100, *(None if bound is None else bound * 100 for bound in (slope.low, slope.high))
        )
        row += [_bounded(percent), _number(drift.last_over_first if drift else None)]
    return row


def _comparison_line(found: ComparisonFound, run: RunFound) -> str:
    of = "throughput" if run.scenario == "throughput" else "speed"
    how = (
        f"{found.rounds} rounds, opened {found.sittings} times; a verdict needs {_percent(run.conditions.least_effect)}"
    )
    return f"{found.model}: {_bounded(found.speedup, 1.0)} times the {of} of {found.baseline}: {found.verdict} ({how})"


def _start_rows(run: RunFound) -> list[list[str]]:
    head = ["model", "MB", "disk cache", "library ms", "session ms", "first inference ms", "peak MiB", "processes"]
    rows = [head]
    for model in run.models:
        for state, starts in (("cold", model.disk_cold), ("warm", model.disk_warm)):
            if starts is not None:
                rows.append([model.name, f"{model.bytes / 1e6:.3g}", state, *_start_cells(starts)])
    return rows


def _start_cells(starts: Starts) -> list[str]:
    spreads = (starts.library_ms, starts.session_ms, starts.first_inference_ms, starts.peak_mib)
    cells = [f"{spread.median:.4g} ({spread.least:.3g} to {spread.most:.3g})" for spread in spreads]
    return [*cells, str(starts.processes)]


def _profile_rows(model: ModelFound) -> list[list[str]]:
    rows = [["operator", "nodes", "calls", "total ms", "share"]]
    for operator in model.profile or ():
        rows.append(
            [
                operator.operator,
                str(operator.nodes),
                str(operator.calls),
                _number(operator.total_ms),
                f"{operator.share:.1%}",
            ]
        )
    return rows


def _remarks(run: RunFound) -> list[str]:
    lines = []
    if run.target.emulator:
        lines.append(f"no times: {run.target.emulator} emulates this processor")
    counted = [model.latency.samples for model in run.models if model.latency]
    if counted:
        times = "less what the threads waited for a processor" if _corrected(run) else "as the clock saw them"
        lines.append(f"{min(counted)} samples or more of each model; times {times}; a dash: too few samples")
        waited = [m.latency.delayed_share for m in run.models if m.latency and m.latency.delayed_share is not None]
        if waited and max(waited) > _WORTH_SAYING:
            raw = ", ".join(f"{m.name} {_bounded(m.latency.raw.p50_ms)}" for m in run.models if m.latency)
            lines.append(f"up to {max(waited):.1%} of the time was waiting; with it, p50 ms: {raw}")
    lines += [_comparison_line(comparison, run) for comparison in run.comparisons]
    for model in run.models:
        answers = model.answers
        if answers is not None:
            against = "the expected outputs" if answers.against == "expected" else answers.against
            how = "equal to" if answers.equal else f"cosine {_number(answers.min_cosine, 6)} or more with"
            lines.append(f"{model.name}: outputs {how} {against} in {answers.cases} case(s)")
        elif model.answers_unknown is not None and not model.answers_unknown.startswith(_OF_THE_BASELINE):
            lines.append(f"{model.name}: outputs not compared: {model.answers_unknown}")
        if model.still_cached is not None and model.disk_cold is None:
            lines.append(f"{model.name}: {model.still_cached:.0%} of its files stayed in the disk cache: no cold start")
    if not run.complete:
        lines.append("interrupted: this is what was measured until then")
    if run.validity is None:
        return lines
    lines += [f"INVALID: {reason}" for reason in run.validity.reasons]
    lines += [f"warning: {warning}" for warning in run.validity.warnings]
    if run.validity.unavailable:
        lines.append(f"not readable here: {', '.join(run.validity.unavailable)}")
    return lines


def _corrected(run: RunFound) -> bool:
    return any(model.latency is not None and model.latency.corrected is not None for model in run.models)
