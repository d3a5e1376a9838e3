"""The result in a terminal."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from compressor.report.formatting import shorten
from compressor.report.rows import (
    CONTROL_NAME,
    OUT_OF_REACH,
    Row,
    baseline,
    metric_label,
    reference_line,
    remedy_line,
    rows,
    summary_line,
    time_words,
)
from compressor.result import Result

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["print_table", "summary_line"]

_GAP = 2
_MINIMUM_NAME = 20
_PLAIN_WIDTH = 120
# The first to go when the terminal is narrow.
_LEAST_IMPORTANT_FIRST = ("inf/s", "params", "agree", "p99 ms", "p50 ms", "MB", "kept", "faster", "smaller")


def print_table(result: Result, stream: TextIO, width: int | None = None) -> None:
    """Print the table, what its marks mean, and the headline sentence.

    `width` is the terminal's; without a terminal it is COLUMNS, or 120. A narrow one loses columns, never their digits.
    """
    from rich.console import Console
    from rich.text import Text

    limit = width or _width_of(stream)
    console = Console(file=stream, width=limit, highlight=False, emoji=False)
    shown, encoding = rows(result), getattr(stream, "encoding", None)
    columns = _fit(_columns(shown, metric_label(result), encoding), limit)
    console.print(_table(columns, [row.ships for row in shown]))
    for line in (*_notes(result), "", summary_line(result)):
        for piece in textwrap.wrap(_encodable(line, encoding), limit, break_on_hyphens=False) or [""]:
            console.print(Text(piece))


def _width_of(stream: TextIO) -> int:
    if stream.isatty():
        return shutil.get_terminal_size().columns
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else _PLAIN_WIDTH


def _columns(shown: Sequence[Row], metric: str, encoding: str | None) -> dict[str, list[str]]:
    """Header to cells, in the order of the table; the first is the name."""
    named = {
        "model": [f"{'*' if row.ships else ' '} {_encodable(row.name, encoding)}" for row in shown],
        "params": [row.parameters for row in shown],
        "MB": [row.megabytes for row in shown],
        "smaller": [row.smaller for row in shown],
        "p50 ms": [row.p50 for row in shown],
        "p99 ms": [row.p99 for row in shown],
        "faster": [row.faster for row in shown],
        "inf/s": [row.throughput for row in shown],
        f"{metric} [95%]": [f"{row.quality} [{row.quality_bounds.replace(' to ', ', ')}]" for row in shown],
        "kept": [row.kept for row in shown],
        "agree": [row.agreement for row in shown],
    }
    return {header: [cell or "-" for cell in cells] for header, cells in named.items()}


def _fit(columns: dict[str, list[str]], limit: int) -> dict[str, list[str]]:
    """Drop columns, the least important first, then shorten names, until the table fits."""
    kept = dict(columns)
    for header in _LEAST_IMPORTANT_FIRST:
        if _width(kept) - _column_width(kept, "model") + min(_column_width(kept, "model"), _MINIMUM_NAME) <= limit:
            break
        del kept[header]
    room = max(limit - (_width(kept) - _column_width(kept, "model")), 4)
    kept["model"] = [shorten(cell, room) for cell in kept["model"]]
    return kept


def _column_width(columns: dict[str, list[str]], header: str) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, (header, *columns[header])))


def _width(columns: dict[str, list[str]]) -> int:
    return sum(_column_width(columns, header) for header in columns) + _GAP * (len(columns) - 1)


def _table(columns: dict[str, list[str]], ships: Sequence[bool]) -> Table:
    from rich.table import Table
    from rich.text import Text

    # Cells are Text: a name that holds rich's own markup stays a name.
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for header in columns:
        table.add_column(Text(header), no_wrap=True, justify="left" if header == "model" else "right")
    for index, marked in enumerate(ships):
        cells = [Text(cells[index]) for cells in columns.values()]
        table.add_row(*cells, style="bold" if marked else None)
    return table


def _notes(result: Result) -> list[str]:
    timed = [model.latency for model in result.models if model.latency]
    marks = ["* ships"] if result.shipped else []
    if timed:
        threads = timed[0].threads
        marks.append(f"times at batch {timed[0].batch}, {threads} thread{'s' if threads != 1 else ''}")
    if timed and baseline(result).latency is None:
        marks.append(f"{OUT_OF_REACH}: faster is in relation to the float32 student")
    if result.control:
        marks.append(f"{CONTROL_NAME}: the same student without a teacher")
    rows = {model.name for model in result.models}
    refused = [f"{one.name} refused: {one.reason}" for one in result.refused if one.name not in rows]
    disturbed = [f"times INVALID: {reason}" for reason in result.timing.reasons if timed]
    warned = [f"times: {warning}" for warning in result.timing.warnings if timed]
    slow = [f"{one.name}: {words}" for one in result.refused if (words := time_words(result, one.name))]
    lost = [f"{step.change:+.4f} by {step.step}, {step.after}" for step in result.quality_steps]
    went = [f"{metric_label(result)} {'; '.join(lost)}"] if lost else []
    mended = [remedy_line(found) for found in result.attributions if found.remedy]
    judged = [line] if (line := reference_line(result)) else []
    return [*(["; ".join(marks)] if marks else []), *disturbed, *warned, *refused, *slow, *went, *mended, *judged]


def _encodable(text: str, encoding: str | None) -> str:
    """`text` with '?' for what the stream cannot write."""
    return text.encode(encoding or "utf-8", errors="replace").decode(encoding or "utf-8")
