"""Small pure functions from numbers to SVG markup. Every text and attribute is escaped; colour is the page's affair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from compressor.report.formatting import printable

TEXT_SIZE = 12.0
# The mean advance of a sans-serif glyph, in ems, taken wide: labels are laid out without measuring fonts.
_GLYPH = 0.6


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area shared with `other`."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)

    def outside(self, frame: Box) -> float:
        """The area that lies beyond `frame`."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(frame)


@dataclass(frozen=True)
class Scale:
    """A map from [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log10(self.low), math.log10(self.high), math.log10(value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def linear_scale(values: Iterable[float], start: float, end: float, margin: float = 0.08) -> Scale:
    """A linear scale around `values` with a margin on both sides; equal values get room too."""
    held = list(values)
    low, high = min(held), max(held)
    # Equal values, and values apart by no more than rounding, still need an axis with a length.
    smallest = max(0.02 * max(abs(low), abs(high)), 1e-9) if low or high else 1.0
    room = max((high - low) * margin, (smallest - (high - low)) / 2)
    return Scale(low - room, high + room, start, end)


def log_scale(values: Iterable[float], start: float, end: float, factor: float = 1.8) -> Scale:
    """A logarithmic scale around positive `values`, wider by `factor` on both sides."""
    held = list(values)
    return Scale(min(held) / factor, max(held) * factor, start, end, log=True)


def ticks(scale: Scale, target: int = 5) -> tuple[float, ...]:
    """Round values inside the scale: about `target` of them, or 1-2-5 per decade on a logarithmic one."""
    return _log_ticks(scale) if scale.log else _linear_ticks(scale, target)


def _linear_ticks(scale: Scale, target: int) -> tuple[float, ...]:
    rough = (scale.high - scale.low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def _log_ticks(scale: Scale) -> tuple[float, ...]:
    first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    factors = (1, 2, 5) if last - first <= 4 else (1,)
    candidates = (factor * 10.0**power for power in range(first, last + 1) for factor in factors)
    return tuple(value for value in candidates if scale.low <= value <= scale.high)


def tick_labels(values: Sequence[float], like: bool = True) -> tuple[str, ...]:
    """Numbers without needless zeros: 2000 -> '2,000'; `like` gives all the decimals of the longest: '0.90', '0.95'."""
    plain = [f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.3g}" for value in values]
    if not like or any("e" in each for each in plain):
        return tuple(plain)
    decimals = max((len(each.partition(".")[2]) for each in plain), default=0)
    return tuple(f"{value:,.{decimals}f}" for value in values)


def _labelled(values: Sequence[float], like: bool = True) -> Iterable[tuple[float, str]]:
    return zip(values, tick_labels(values, like), strict=True)


def text_width(content: str, size: float = TEXT_SIZE) -> float:
    """A safe guess at the width of `content` in pixels."""
    return len(content) * size * _GLYPH


def number(value: float) -> str:
    """A coordinate with one decimal at most."""
    rounded = f"{value:.1f}".removesuffix(".0")
    return "0" if rounded == "-0" else rounded


def element(tag: str, content: str | None = None, **attributes: str | float) -> str:
    """One element. `content` is markup; attribute names end or separate with '_' where Python needs it."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"' for name, value in attributes.items()
    )
    return f"<{tag}{given}/>" if content is None else f"<{tag}{given}>{content}</{tag}>"


def _attribute(value: str | float) -> str:
    return escape(printable(value), quote=True) if isinstance(value, str) else number(value)


def label(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """Text whose baseline starts, centres or ends at (x, y)."""
    return element("text", escape(printable(content)), x=x, y=y, text_anchor=anchor, class_=css)


def tooltip(content: str) -> str:
    """A <title>, which browsers show on hover."""
    return element("title", escape(printable(content)))


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=css)


def rect(box: Box, css: str, content: str | None = None) -> str:
    """A rectangle, empty where the box is turned inside out."""
    width, height = max(box.right - box.left, 0.0), max(box.bottom - box.top, 0.0)
    return element("rect", content, x=box.left, y=box.top, width=width, height=height, class_=css)


def circle(x: float, y: float, radius: float, css: str, content: str | None = None) -> str:
    """A circle around (x, y)."""
    return element("circle", content, cx=x, cy=y, r=radius, class_=css)


def polyline(points: Sequence[tuple[float, float]], css: str) -> str:
    """Straight lines from point to point."""
    joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return element("polyline", points=joined, class_=css)


def axes(frame: Box, x: Scale, y: Scale, x_title: str, y_title: str) -> str:
    """Horizontal grid lines, tick labels on both axes, and their titles."""
    target = 5 if frame.right - frame.left > 360 else 4
    parts = []
    for value, shown in _labelled(ticks(y)):
        parts.append(line(frame.left, y(value), frame.right, y(value), "grid"))
        parts.append(label(frame.left - 8, y(value) + 4, shown, "tick", "end"))
    parts.append(line(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    for value, shown in _labelled(ticks(x, target), like=not x.log):
        parts.append(line(x(value), frame.bottom, x(value), frame.bottom + 4, "axis"))
        parts.append(label(x(value), frame.bottom + 18, shown, "tick", "middle"))
    parts.append(label(frame.right, frame.bottom + 36, x_title, "axis-title", "end"))
    parts.append(label(0, frame.top - 14, y_title, "axis-title"))
    return "".join(parts)


def picture(width: float, height: float, description: str, content: str) -> str:
    """The <svg> that holds a drawing, described for those who do not see it."""
    return element(
        "svg",
        tooltip(description) + content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_label=description,
        class_="chart",
    )
