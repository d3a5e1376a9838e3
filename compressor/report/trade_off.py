"""The drawing that a choice is made from: size against quality, with the latency as the area of a bubble."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.artifacts import Interval
from compressor.report import svg
from compressor.report.formatting import megabytes, milliseconds, score, shorten
from compressor.report.svg import Box
from compressor.result import ModelResult

# A narrow drawing has to stack the labels that a wide one sets side by side.
_WIDE_HEIGHT, _NARROW_HEIGHT = 340.0, 420.0
_LARGEST_RADIUS = 24.0
_LABEL_HEIGHT = 29.0
_CLEARANCE = 4.0


@dataclass(frozen=True)
class _Bubble:
    """A model where it is drawn: centre, radius, and the pixels of its error bar."""

    model: ModelResult
    x: float
    y: float
    radius: float
    low: float
    high: float
    css: str

    @property
    def box(self) -> Box:
        reach = self.radius + _CLEARANCE
        return Box(self.x - reach, self.y - reach, self.x + reach, self.y + reach)

    @property
    def bar_box(self) -> Box:
        return Box(self.x - 4 - _CLEARANCE, self.high, self.x + 4 + _CLEARANCE, self.low)


def trade_off(
    models: Sequence[ModelResult], shipped: str | None, control: float | None, metric: str, width: int
) -> str:
    """Draw the models, all of known size; `control` is the quality of a student trained without a teacher."""
    height = _WIDE_HEIGHT if width > 400 else _NARROW_HEIGHT
    frame = Box(46, 34, width - 8, height - 46)
    intervals = [model.quality.quality for model in models]
    reach = [edge for each in intervals for edge in (each.low, each.value, each.high)]
    x = svg.log_scale([(model.bytes or 0) / 1e6 for model in models], frame.left, frame.right)
    y = svg.linear_scale([*reach, *([] if control is None else [control])], frame.bottom, frame.top)
    bubbles = _bubbles(models, shipped, x, y)
    taken = [box for bubble in bubbles for box in (bubble.box, bubble.bar_box)]
    parts = [svg.axes(frame, x, y, "size (MB, logarithmic)", f"{metric}, with 95% interval")]
    if control is not None:
        parts.append(_control_line(f"hard labels only {score(control)}", y(control), frame, taken))
    # The largest first, so that no bubble hides a smaller one.
    parts += [_drawn(bubble) for bubble in sorted(bubbles, key=lambda each: -each.radius)]
    parts += [_label(bubble, frame, taken, 24 if width > 400 else 20) for bubble in bubbles]
    told = "; ".join(f"{m.name} {megabytes(m.bytes or 0)} MB, {score(m.quality.quality.value)}" for m in models)
    return svg.picture(width, height, f"{metric} against size: {told}", "".join(parts))


def _bubbles(models: Sequence[ModelResult], shipped: str | None, x: svg.Scale, y: svg.Scale) -> list[_Bubble]:
    """A model without a time is a small circle of its own kind."""
    times = [model.latency.p50_ms if model.latency else 0.0 for model in models]
    slowest = max(times) or 1.0
    bubbles = []
    for model, time in zip(models, times, strict=True):
        quality: Interval = model.quality.quality
        radius = max(_LARGEST_RADIUS * math.sqrt(time / slowest), 4.0)
        css = "mark ships" if model.name == shipped else "mark"
        at = x((model.bytes or 0) / 1e6), y(quality.value)
        bubbles.append(_Bubble(model, *at, radius, y(quality.low), y(quality.high), css))
    return bubbles


def _drawn(bubble: _Bubble) -> str:
    interval = bubble.model.quality.quality
    told = f"{bubble.model.name}: {score(interval.value)} [{score(interval.low)}, {score(interval.high)}]"
    kind = "bubble" if bubble.model.latency else "hollow"
    caps = (svg.line(bubble.x - 4, end, bubble.x + 4, end, bubble.css) for end in (bubble.low, bubble.high))
    return "".join(
        (
            svg.circle(bubble.x, bubble.y, bubble.radius, f"{bubble.css} {kind}", svg.tooltip(told)),
            svg.line(bubble.x, bubble.low, bubble.x, bubble.high, bubble.css),
            *caps,
            svg.circle(bubble.x, bubble.y, 2.5, f"{bubble.css} dot"),
        )
    )


def _control_line(text: str, at: float, frame: Box, taken: list[Box]) -> str:
    """The dotted line, its label at the emptier end; the label's place is added to `taken`."""
    width = svg.text_width(text)
    lefts = (frame.left + 4, frame.right - width)
    places = [Box(left, top, left + width, top + 14) for left in lefts for top in (at - 17, at + 3)]
    box = min(places, key=lambda each: sum(map(each.overlap, taken)) + each.outside(frame))
    taken.append(box)
    return svg.line(frame.left, at, frame.right, at, "reference") + svg.label(box.left, box.top + 12, text, "value")


def _label(bubble: _Bubble, frame: Box, taken: list[Box], limit: int) -> str:
    """Name and time where they cover least, joined to the bubble when apart; the place is added to `taken`."""
    latency = bubble.model.latency
    name = shorten(bubble.model.name, limit)
    time = f"{milliseconds(latency.p50_ms)} ms" if latency else "not timed"
    box = _free_place(bubble, max(svg.text_width(name), svg.text_width(time)), frame, taken)
    taken.append(box)
    return "".join(
        (
            _leader(bubble, box),
            svg.label(box.left, box.top + 11, name, "name ships" if "ships" in bubble.css else "name"),
            svg.label(box.left, box.top + 25, time, "value"),
        )
    )


def _free_place(bubble: _Bubble, width: float, frame: Box, taken: Sequence[Box]) -> Box:
    gap = bubble.radius + 7
    lefts = (bubble.x + gap, bubble.x - gap - width, frame.left + 4, frame.right - width)
    tops = [bubble.y - _LABEL_HEIGHT / 2 + shift for shift in range(-200, 201, 8)]
    places = [Box(left, top, left + width, top + _LABEL_HEIGHT) for left in lefts for top in tops]

    def cost(box: Box) -> float:
        # Leaving the drawing is worst, then hiding something, then being far from the bubble.
        hidden = sum(map(box.overlap, taken))
        return 20 * box.outside(frame) + 5 * hidden + _distance(bubble, box) ** 2 / 20

    return min(places, key=cost)


def _distance(bubble: _Bubble, box: Box) -> float:
    x, y = _nearest(bubble, box)
    return math.hypot(x - bubble.x, y - bubble.y)


def _nearest(bubble: _Bubble, box: Box) -> tuple[float, float]:
    """The point of the label's middle line that is closest to the bubble."""
    return min(max(bubble.x, box.left), box.right), (box.top + box.bottom) / 2


def _leader(bubble: _Bubble, box: Box) -> str:
    x, y = _nearest(bubble, box)
    away = math.hypot(x - bubble.x, y - bubble.y)
    if away < bubble.radius + 24:
        return ""
    # Between the edge of the bubble and the edge of the text.
    edge = box.bottom + 1 if y < bubble.y else box.top - 1
    end_y = edge if box.left <= bubble.x <= box.right else y
    share = bubble.radius / away
    start = bubble.x + (x - bubble.x) * share, bubble.y + (y - bubble.y) * share
    return svg.line(*start, x, end_y, "leader")
