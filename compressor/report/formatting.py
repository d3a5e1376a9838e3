"""Numbers as people read them. Pure, ASCII only; an absent number is the empty string."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from compressor.artifacts import Interval

_Number = TypeVar("_Number", int, float)

_METRIC_NAMES = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "mrr": "MRR",
    "ndcg": "nDCG",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
}
# Escape sequences in a name would drive the reader's terminal, and most of them are not allowed in XML at all.
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """`text` with control characters replaced, on one line."""
    return _NOT_PRINTABLE.sub("?", text)


def shown(value: _Number | None, form: Callable[[_Number], str]) -> str:
    """`form(value)`, or the empty string when the value is absent."""
    return "" if value is None else form(value)


def megabytes(count: int) -> str:
    """Bytes as MB of 10^6, without the unit: 90900000 -> '90.9'."""
    size = count / 1e6
    if size >= 100:
        return f"{size:,.0f}"
    return f"{size:.1f}" if size >= 1 else f"{size:.3f}"


def milliseconds(value: float) -> str:
    """Three significant digits, without the unit: 0.9172 -> '0.917', 5.6 -> '5.60', 134.2 -> '134'."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def ratio(value: float) -> str:
    """A factor: 13.4 -> '13.4x', 6.12 -> '6.1x', 1.043 -> '1.04x'."""
    if value >= 100:
        return f"{value:,.0f}x"
    return f"{value:.1f}x" if value >= 2 else f"{value:.2f}x"


def percent(share: float) -> str:
    """A share of one: 0.9872 -> '98.7%'."""
    return f"{100 * share:.1f}%"


def count(value: float) -> str:
    """A count with three significant digits: 22713216 -> '22.7M'; below a thousand, whole."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # Half a unit in the third digit early, so that 999600 becomes 1M and never 1000k.
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.3g}{unit}"
    return f"{value:.0f}"


def rate(value: float) -> str:
    """Inferences per second: 1090.3 -> '1,090', 12.34 -> '12.3'."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def score(value: float) -> str:
    """A task metric: three decimals on the scale of one, one decimal on larger scales."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def cosine(value: float) -> str:
    """Six decimals; what is below one never reads as one."""
    return "> 0.999999" if 0.9999995 <= value < 1 else f"{value:.6f}"


def bounds(interval: Interval, form: Callable[[float], str], joint: str = " to ") -> str:
    """Both ends of an interval: '0.880 to 0.904'."""
    return f"{form(interval.low)}{joint}{form(interval.high)}"


def duration(seconds: float) -> str:
    """Seconds up to two minutes, then minutes, then hours."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def metric_name(metric: str) -> str:
    """How a metric is written in a sentence."""
    return _METRIC_NAMES.get(metric.lower(), printable(metric).replace("_", " "))


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters; both ends stay, because names differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 2) // 2
    tail = max(limit - 2 - head, 1)
    return f"{text[:head]}..{text[-tail:]}"
