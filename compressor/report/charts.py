"""The drawings of the report. Each takes numbers and a width, and gives one SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.artifacts import Interval, ModelResult, SizeShare
from compressor.report import svg
from compressor.report.formatting import megabytes, milliseconds, score, shorten
from compressor.report.svg import Box

WIDE, NARROW = 540, 343
PART_COLOURS = 6
_ROW = 15.0


@dataclass(frozen=True)
class Curve:
    """Points over training steps, with what to call them."""

    points: tuple[tuple[float, float], ...]
    title: str
    y_title: str
    best_step: int
    dots: bool = False


def trade_off(
    models: Sequence[ModelResult], shipped: str | None, control: float | None, metric: str, width: int
) -> str:
    """Size against quality; the area of a bubble is the time. Draws the models whose size is known."""
    drawn = [model for model in models if model.bytes]
    height = 320.0
    frame = Box(46, 34, width - 8, height - 46)
    intervals = [model.quality.quality for model in drawn]
    reach = [edge for each in intervals for edge in (each.low, each.high)] + ([] if control is None else [control])
    x = svg.log_scale([(model.bytes or 0) / 1e6 for model in drawn], frame.left, frame.right)
    y = svg.linear_scale(reach, frame.bottom, frame.top)
    bubbles = _bubbles(drawn, x, y)
    parts = [svg.axes(frame, x, y, "size (MB, logarithmic)", f"{metric}, with 95% interval")]
    obstacles = [_error_bar_box(model.quality.quality, at[0], y) for model, at in zip(drawn, bubbles, strict=True)]
    if control is not None:
        text = f"hard labels only {score(control)}"
        parts.append(svg.line(frame.left, y(control), frame.right, y(control), "reference"))
        parts.append(svg.label(frame.left + 4, y(control) - 5, text, "value"))
        obstacles.append(Box(frame.left, y(control) - 16, frame.left + svg.text_width(text), y(control)))
    # The largest first, so that no bubble hides a smaller one.
    for at in sorted(range(len(drawn)), key=lambda index: -bubbles[index][2]):
        parts.append(_bubble(drawn[at], bubbles[at], y, drawn[at].name == shipped))
    parts += _bubble_labels(drawn, bubbles, obstacles, frame, shipped)
    told = "; ".join(f"{m.name} {megabytes(m.bytes or 0)} MB, {score(m.quality.quality.value)}" for m in drawn)
    return svg.picture(width, height, f"{metric} against size: {told}", "".join(parts))


def _bubbles(
    models: Sequence[ModelResult], x: svg.Scale, y: svg.Scale, largest: float = 24.0
) -> list[tuple[float, float, float]]:
    """Centre and radius of each; a model without a time is a point."""
    times = [model.latency.p50_ms if model.latency else 0.0 for model in models]
    slowest = max(times) or 1.0
    return [
        (x((model.bytes or 0) / 1e6), y(model.quality.quality.value), max(largest * math.sqrt(time / slowest), 4.0))
        for model, time in zip(models, times, strict=True)
    ]


def _bubble(model: ModelResult, at: tuple[float, float, float], y: svg.Scale, ships: bool) -> str:
    cx, cy, radius = at
    interval: Interval = model.quality.quality
    css = "mark ships" if ships else "mark"
    told = f"{model.name}: {score(interval.value)} [{score(interval.low)}, {score(interval.high)}]"
    bubble = svg.circle(cx, cy, radius, f"{css} bubble" if model.latency else f"{css} hollow", svg.tooltip(told))
    low, high = y(interval.low), y(interval.high)
    caps = svg.line(cx - 4, low, cx + 4, low, css) + svg.line(cx - 4, high, cx + 4, high, css)
    return bubble + svg.line(cx, low, cx, high, css) + caps + svg.circle(cx, cy, 2.5, f"{css} dot")


def _bubble_labels(
    models: Sequence[ModelResult],
    bubbles: Sequence[tuple[float, float, float]],
    obstacles: Sequence[Box],
    frame: Box,
    shipped: str | None,
) -> list[str]:
    """A name and a time beside each bubble, where they cover least of what else is there."""
    taken = [*obstacles, *(Box(cx - r, cy - r, cx + r, cy + r) for cx, cy, r in bubbles)]
    parts = []
    for model, (cx, cy, radius) in zip(models, bubbles, strict=True):
        name = shorten(model.name, 24)
        time = f"{milliseconds(model.latency.p50_ms)} ms" if model.latency else "not timed"
        box = _free_place(cx, cy, radius, max(svg.text_width(name), svg.text_width(time)), frame, taken)
        taken.append(box)
        css = "name ships" if model.name == shipped else "name"
        parts.append(svg.label(box.left, box.top + 11, name, css))
        parts.append(svg.label(box.left, box.top + 25, time, "value"))
    return parts


def _error_bar_box(interval: Interval, x: float, y: svg.Scale) -> Box:
    return Box(x - 4, y(interval.high), x + 4, y(interval.low))


def _free_place(cx: float, cy: float, radius: float, width: float, frame: Box, taken: Sequence[Box]) -> Box:
    gap, height = radius + 7, 29.0
    corners = [
        (cx + gap, cy - height / 2),
        (cx - gap - width, cy - height / 2),
        *((cx + dx, cy + dy) for dy in (gap, -gap - height) for dx in (8, -width - 8, -width / 2)),
        *((cx + gap, cy - height / 2 + sign * 32) for sign in (1, -1)),
        *((cx - gap - width, cy - height / 2 + sign * 32) for sign in (1, -1)),
    ]
    places = [Box(left, top, left + width, top + height) for left, top in corners]
    # Leaving the drawing is worse than covering something in it.
    return min(places, key=lambda box: sum(map(box.overlap, taken)) + 20 * box.outside(frame))


def latency_bars(models: Sequence[ModelResult], shipped: str | None, width: int) -> str:
    """p50, p90 and p99 of every model that was timed, from zero."""
    timed = [(model, model.latency) for model in models if model.latency]
    gutter = 150.0 if width >= WIDE else 0.0
    left, right = gutter + 30, width - 72.0
    longest = max(latency.p99_ms for _, latency in timed) or 1.0
    parts, top = [], 0.0
    for model, latency in timed:
        css = "ships" if model.name == shipped else ""
        parts.append(svg.label(0, top + 11, shorten(model.name, 21 if gutter else 46), f"name {css}"))
        top += 0 if gutter else 18
        for name, value in (("p50", latency.p50_ms), ("p90", latency.p90_ms), ("p99", latency.p99_ms)):
            end = left + (right - left) * value / longest
            parts.append(svg.label(left - 6, top + 11, name, "tick", "end"))
            parts.append(svg.rect(Box(left, top + 2, end, top + 12), f"bar {name} {css}"))
            parts.append(svg.label(end + 6, top + 11, f"{milliseconds(value)} ms", "value"))
            top += _ROW
        top += 12
    told = "; ".join(f"{m.name} p50 {milliseconds(t.p50_ms)}, p99 {milliseconds(t.p99_ms)}" for m, t in timed)
    return svg.picture(width, top - 8, f"Latency in ms: {told}", "".join(parts))


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
    gutter = 150.0 if width >= WIDE else 0.0
    largest = max(sum(share.bytes for share in shares) for _, shares in models) or 1
    per_byte = (width - 76 - gutter) / largest
    parts, top = [], 0.0
    for name, shares in models:
        css = "name ships" if name == shipped else "name"
        parts.append(svg.label(0, top + 14, shorten(name, 21 if gutter else 46), css))
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
