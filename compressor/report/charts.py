"""The drawings of the report. Each takes numbers and a width, and gives one SVG."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.report import svg
from compressor.report.formatting import megabytes, milliseconds, shorten
from compressor.report.svg import Box
from compressor.result import ModelResult, SizeShare
from compressor.timings import Latency, TimesShown

WIDE, NARROW = 540, 343
PART_COLOURS = 6
_ROW = 15.0
_HISTOGRAM, _BINS = 34.0, 72
# Wide drawings have the names on the left, narrow ones above.
_GUTTER, _GUTTER_CHARACTERS = 160.0, 20


@dataclass(frozen=True)
class Curve:
    """Points over training steps, with what to call them."""

    points: tuple[tuple[float, float], ...]
    title: str
    y_title: str
    best_step: int
    dots: bool = False


def latency_bars(models: Sequence[ModelResult], shipped: str | None, width: int) -> str:
    """p50, p90 and p99 of every model that was timed, from zero."""
    timed = [(model, model.latency) for model in models if model.latency]
    gutter = _GUTTER if width >= WIDE else 0.0
    left, right = gutter + 30, width - 72.0
    longest = max(value for _, latency in timed for _, value in _percentiles(latency)) or 1.0
    parts, top = [], 0.0
    for model, latency in timed:
        css = "ships" if model.name == shipped else ""
        parts.append(svg.label(0, top + 11, shorten(model.name, _GUTTER_CHARACTERS if gutter else 44), f"name {css}"))
        top += 0 if gutter else 18
        for name, value in _percentiles(latency):
            end = left + (right - left) * value / longest
            parts.append(svg.label(left - 6, top + 11, name, "tick", "end"))
            parts.append(svg.rect(Box(left, top + 2, end, top + 12), f"bar {name} {css}"))
            parts.append(svg.label(end + 6, top + 11, f"{milliseconds(value)} ms", "value"))
            top += _ROW
        top += 12
    told = "; ".join(
        f"{model.name} {', '.join(f'{name} {milliseconds(value)}' for name, value in _percentiles(latency))}"
        for model, latency in timed
    )
    return svg.picture(width, top - 8, f"Latency in ms: {told}", "".join(parts))


def _percentiles(latency: Latency) -> list[tuple[str, float]]:
    """Those that there are samples for."""
    named = (("p50", latency.p50_ms), ("p90", latency.p90_ms), ("p99", latency.p99_ms))
    return [(name, value) for name, value in named if value is not None]


def latency_distribution(models: Sequence[ModelResult], shipped: str | None, width: int) -> str:
    """How the times of each model spread: a histogram in a row of its own, over a common logarithmic axis."""
    drawn = [(m.name, m.latency.distribution) for m in models if m.latency and m.latency.distribution]
    gutter = _GUTTER if width >= WIDE else 0.0
    step = _HISTOGRAM + (10 if gutter else 26)
    frame = Box(gutter, 0, width - 12, step * len(drawn))
    x = svg.log_scale([t for _, times in drawn for t in (times.ms[0], times.ms[-1])], frame.left, frame.right, 1.15)
    parts, told = [], []
    for row, (name, times) in enumerate(drawn):
        base = step * row + step - 4
        css = "ships" if name == shipped else ""
        label_y = base - 4 if gutter else base - _HISTOGRAM - 4
        parts.append(svg.label(0, label_y, shorten(name, _GUTTER_CHARACTERS if gutter else 44), f"name {css}"))
        parts += [svg.rect(box, f"bar p50 {css}") for box in _histogram(times, x, base)]
        low, middle, high = (_quantile(times, share) for share in (0.05, 0.5, 0.95))
        parts.append(svg.line(x(middle), base - _HISTOGRAM, x(middle), base + 3, "best"))
        parts.append(svg.line(frame.left, base, frame.right, base, "axis"))
        told.append(f"{name} 5% {milliseconds(low)}, 50% {milliseconds(middle)}, 95% {milliseconds(high)}")
    for value, shown in zip(svg.ticks(x), svg.tick_labels(svg.ticks(x), like=False), strict=True):
        parts.append(svg.line(x(value), frame.bottom - 4, x(value), frame.bottom, "axis"))
        parts.append(svg.label(x(value), frame.bottom + 14, shown, "tick", "middle"))
    parts.append(svg.label(frame.right, frame.bottom + 32, "ms", "axis-title", "end"))
    return svg.picture(width, frame.bottom + 36, f"Spread of the times in ms: {'; '.join(told)}", "".join(parts))


def _histogram(times: TimesShown, x: svg.Scale, base: float) -> list[Box]:
    """Bars of equal width in pixels; the highest fills the row. Shares between quantiles are spread evenly."""
    edges = [x.start + (x.end - x.start) * i / _BINS for i in range(_BINS + 1)]
    at = [x(ms) for ms in times.ms]
    shares = [_share_below(edge, at, times.shares) for edge in edges]
    masses = [right - left for left, right in itertools.pairwise(shares)]
    highest = max(masses) or 1.0
    return [
        Box(left, base - _HISTOGRAM * mass / highest, right, base)
        for left, right, mass in zip(edges, edges[1:], masses, strict=False)
        if mass > 0
    ]


def _quantile(times: TimesShown, share: float) -> float:
    index = min(bisect.bisect_right(times.shares, share), len(times.shares) - 1)
    part = (share - times.shares[index - 1]) / (times.shares[index] - times.shares[index - 1])
    return times.ms[index - 1] + part * (times.ms[index] - times.ms[index - 1])


def _share_below(edge: float, at: Sequence[float], shares: Sequence[float]) -> float:
    index = bisect.bisect_right(at, edge)
    if index == 0:
        return 0.0
    if index == len(at):
        return 1.0
    part = (edge - at[index - 1]) / (at[index] - at[index - 1])
    return shares[index - 1] + part * (shares[index] - shares[index - 1])


def curve(drawn: Curve, width: int) -> str:
    """A line over training steps, with the best step marked."""
    height = 250.0
    frame = Box(52, 34, width - 12, height - 46)
    x = svg.linear_scale([step for step, _ in drawn.points] + [drawn.best_step], frame.left, frame.right, 0.02)
    y = svg.linear_scale([value for _, value in drawn.points], frame.bottom, frame.top)
    placed = [(x(step), y(value)) for step, value in drawn.points]
    best = x(drawn.best_step)
    parts = [
        svg.axes(frame, x, y, "training step", drawn.y_title),
        svg.line(best, frame.top, best, frame.bottom, "best"),
        _best_label(drawn.best_step, best, frame, placed),
        svg.polyline(placed, "curve"),
        *(svg.circle(cx, cy, 3, "dot ships mark") for cx, cy in placed if drawn.dots or len(placed) == 1),
    ]
    first, last = drawn.points[0][1], drawn.points[-1][1]
    told = (
        f"{drawn.title}: from {first:.4g} to {last:.4g} over {len(drawn.points)} points, best at step {drawn.best_step}"
    )
    return svg.picture(width, height, told, "".join(parts))


def _best_label(step: int, at: float, frame: Box, placed: Sequence[tuple[float, float]]) -> str:
    """Beside the mark of the best step, at the end of it that the curve is farther from."""
    _, curve_y = min(placed, key=lambda point: abs(point[0] - at))
    y = frame.bottom - 8 if curve_y < (frame.top + frame.bottom) / 2 else frame.top + 11
    text = f"best: step {step:,}"
    if at < (frame.left + frame.right) / 2:
        return svg.label(at + 6, y, text, "value")
    return svg.label(at - 6, y, text, "value", "end")


def thinned(points: Sequence[tuple[float, float]], limit: int = 400) -> tuple[tuple[float, float], ...]:
    """At most `limit` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / limit) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups)


def part_order(sizes: Sequence[SizeShare]) -> tuple[str, ...]:
    """Kinds of content, the one with the most bytes over all models first."""
    totals: dict[str, int] = {}
    for share in sizes:
        totals[share.part] = totals.get(share.part, 0) + share.bytes
    return tuple(sorted(totals, key=lambda part: -totals[part]))


def part_css(parts: Sequence[str], part: str) -> str:
    """The colour class of a kind of content; kinds beyond the palette share its last."""
    return f"part-{min(parts.index(part), PART_COLOURS - 1)}"


def size_bars(sizes: Sequence[SizeShare], shipped: str | None, width: int) -> str:
    """Where the bytes of each model are: one bar per model, one segment per kind of content."""
    parts_in_order = part_order(sizes)
    # A dict, for the order in which the models first appear.
    names = dict.fromkeys(share.model for share in sizes)
    models = [(name, [share for share in sizes if share.model == name]) for name in names]
    gutter = _GUTTER if width >= WIDE else 0.0
    largest = max(sum(share.bytes for share in shares) for _, shares in models) or 1
    per_byte = (width - 76 - gutter) / largest
    parts, top = [], 0.0
    for name, shares in models:
        css = "name ships" if name == shipped else "name"
        parts.append(svg.label(0, top + 14, shorten(name, _GUTTER_CHARACTERS if gutter else 44), css))
        top += 0 if gutter else 20
        left = gutter
        for share in sorted(shares, key=lambda each: parts_in_order.index(each.part)):
            box = Box(left, top, left + share.bytes * per_byte, top + 20)
            told = svg.tooltip(f"{name}, {share.part}: {megabytes(share.bytes)} MB")
            parts.append(svg.rect(box, f"part {part_css(parts_in_order, share.part)}", told))
            left = box.right
        parts.append(svg.label(left + 6, top + 14, f"{megabytes(sum(s.bytes for s in shares))} MB", "value"))
        top += 32
    return svg.picture(width, top - 10, _sizes_told(models), "".join(parts))


def _sizes_told(models: Sequence[tuple[str, list[SizeShare]]]) -> str:
    told = (f"{name} {', '.join(f'{s.part} {megabytes(s.bytes)} MB' for s in shares)}" for name, shares in models)
    return f"Where the bytes are: {'; '.join(told)}"
