"""The report: one HTML file that needs nothing else. report.html.j2 has the layout, this the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from compressor.artifacts import Parity, TrainingHistory
from compressor.error_attribution import ErrorAttribution
from compressor.errors import StorageError, missing_extra
from compressor.report import charts
from compressor.report.formatting import cosine, duration, megabytes, percent, printable, score
from compressor.report.rows import (
    OUT_OF_REACH,
    metric_label,
    reference_line,
    remedy_line,
    rows,
    summary_line,
    time_words,
)
from compressor.report.trade_off import trade_off
from compressor.result import Result
from compressor.store import write_atomic


@dataclass(frozen=True)
class Figure:
    """A drawing for wide and for narrow pages, and what to know when reading it."""

    title: str
    caption: str
    wide: str
    narrow: str


def write_report(result: Result, destination: Path) -> None:
    """Write the report as `destination`: whole, or not at all."""
    page = render_report(result)
    try:
        write_atomic(destination, page.encode())
    except OSError as error:
        raise StorageError(
            f"expected to write the report {destination}, got {error.strerror!r}; "
            "free space or choose a folder that exists and can be written"
        ) from error


def render_report(result: Result) -> str:
    """The report as text."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise missing_extra("jinja2") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("compressor.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(_view(result))


def _view(result: Result) -> dict[str, object]:
    """Everything that the template names."""
    return {
        "headline": summary_line(result),
        "reason": printable(result.reason) if result.shipped else "",
        "task": printable(result.task),
        "metric": metric_label(result),
        "examples": f"{result.models[0].quality.examples:,}",
        "rows": rows(result),
        "has_control": result.control is not None,
        "timing": _timing(result),
        "figures": _figures(result),
        "parts": _parts(result),
        "shares": _shares(result),
        "refused": [(one.name, one.reason, time_words(result, one.name)) for one in result.refused],
        "quality_steps": [
            (step.step, printable(step.before), printable(step.after), f"{step.change:+.4f}")
            for step in result.quality_steps
        ],
        "reference": reference_line(result),
        "attributions": [(remedy_line(found), _layer_cells(found)) for found in result.attributions],
        "parity": [_parity_cells(parity) for parity in result.parities],
        "stages": [(stage.stage, duration(stage.seconds), stage.reused) for stage in result.stages],
        "total": duration(sum(stage.seconds for stage in result.stages)),
        "facts": _facts(result),
        "packages": sorted(result.environment.packages.items()),
        "recipe": json.dumps(result.recipe, indent=2, ensure_ascii=False, default=str),
        "schema_version": result.schema_version,
    }


def _figures(result: Result) -> dict[str, Figure | None]:
    """The drawings by name; None where the result has nothing to draw."""
    sized = [model for model in result.models if model.bytes]
    timed = [model for model in result.models if model.latency]
    control = result.control.quality.value if result.control else None
    against = partial(trade_off, sized, result.shipped, control, metric_label(result))
    return {
        "trade_off": _figure("Size, quality, latency", _trade_off_caption(result), against) if sized else None,
        "latency": _figure("Latency", "Batch 1, from zero.", partial(charts.latency_bars, timed, result.shipped))
        if timed
        else None,
        "distribution": _distribution_figure(result),
        "loss": _loss_figure(result.history),
        "score": _score_figure(result.history),
        "sizes": _figure(
            "Where the bytes are", "MB by kind of content.", partial(charts.size_bars, result.sizes, result.shipped)
        )
        if result.sizes
        else None,
    }


def _figure(title: str, caption: str, draw: Callable[[int], str]) -> Figure:
    from markupsafe import Markup

    # svg.py has escaped every text in these.
    return Figure(title, caption, Markup(draw(charts.WIDE)), Markup(draw(charts.NARROW)))


def _trade_off_caption(result: Result) -> str:
    unsized = [model.name for model in result.models if not model.bytes]
    absent = f" Not drawn, as the size is unknown: {', '.join(unsized)}." if unsized else ""
    return f"Up and to the left is better. The area of a bubble is the p50 latency.{absent}"


def _distribution_figure(result: Result) -> Figure | None:
    drawn = [model.latency.distribution for model in result.models if model.latency and model.latency.distribution]
    if not drawn:
        return None
    what = "less what threads waited for a processor" if drawn[0].corrected else "as the clock saw them"
    caption = f"Single inferences, {what}; the line is the median. Each histogram fills its row."
    return _figure("How the times spread", caption, partial(charts.latency_distribution, result.models, result.shipped))


def _loss_figure(history: TrainingHistory) -> Figure | None:
    if not history.losses:
        return None
    points = charts.thinned([(float(point.step), point.loss) for point in history.losses])
    drawn = charts.Curve(points, "Training loss", "mean loss since the previous point", history.best_step)
    caption = f"{history.steps:,} steps in {duration(history.seconds)}, loss kernel {printable(history.loss_kernel)}."
    return _figure("Training loss", caption, partial(charts.curve, drawn))


def _score_figure(history: TrainingHistory) -> Figure | None:
    if not history.scores:
        return None
    points = tuple((float(point.step), point.score) for point in history.scores)
    drawn = charts.Curve(points, "Held-out score", "agreement with the teacher", history.best_step, dots=True)
    caption = "Higher is better; the weights of the best step are kept."
    return _figure("Held-out score", caption, partial(charts.curve, drawn))


def _timing(result: Result) -> str:
    latency = next((model.latency for model in result.models if model.latency), None)
    if latency is None:
        return "Nothing was timed."
    trust = "" if result.timing.valid else f" INVALID: {printable('; '.join(result.timing.reasons))}."
    trust += "".join(f" {printable(warning)}." for warning in result.timing.warnings)
    if result.models[0].latency is None:
        trust += f" {OUT_OF_REACH[0].upper()}{OUT_OF_REACH[1:]}: speeds are in relation to the float32 student."
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return (
        f"Times at batch {latency.batch}, {threads}, {latency.samples:,} samples, {printable(latency.runtime)}, "
        f"on {printable(result.environment.processor)}. Memory is the peak of a process that holds one model.{trust}"
    )


def _parts(result: Result) -> list[tuple[str, str]]:
    order = charts.part_order(result.sizes)
    return [(charts.part_css(order, part), printable(part)) for part in order]


def _shares(result: Result) -> list[tuple[str, str, str, str]]:
    totals: dict[str, int] = {}
    for share in result.sizes:
        totals[share.model] = totals.get(share.model, 0) + share.bytes
    return [
        (share.model, share.part, megabytes(share.bytes), percent(share.bytes / (totals[share.model] or 1)))
        for share in result.sizes
    ]


def _layer_cells(found: ErrorAttribution) -> list[dict[str, str]]:
    return [
        {
            "node": printable(layer.node),
            "operator": printable(layer.operator),
            "snr": f"{layer.snr_db:.1f}",
            "whole": "" if then is None else "no error" if then.snr_db is None else f"{then.snr_db:.1f}",
            "agreement": "" if then is None else score(then.agreement),
            "more": "" if then is None else megabytes(max(then.bytes - found.now.bytes, 0)),
        }
        for layer in found.layers
        for then in [layer.in_float32]
    ]


def _parity_cells(parity: Parity) -> dict[str, object]:
    return {
        "name": parity.name,
        "reference": parity.reference,
        "inputs": f"{parity.inputs:,}",
        "shapes": f"{parity.shapes:,}",
        "error": f"{parity.max_abs_error:.2g}",
        "cosine": cosine(parity.mean_cosine),
        "top1": "" if parity.top1_agreement is None else percent(parity.top1_agreement),
        "bound": parity.bound,
        "holds": parity.holds,
        "departs_at": printable(parity.departs_at or ""),
    }


def _facts(result: Result) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings with their terms and values: the teacher, the data, the machine."""
    lineage, machine = result.lineage, result.environment
    teacher = [
        ("Source", lineage.source),
        ("License", lineage.license or "none stated"),
        ("Permission", lineage.permission),
        ("Reference", lineage.reference or "none given"),
        ("Terms of service", lineage.terms or "none stated"),
        ("Code of its own", "allowed to run" if lineage.remote_code else "not run"),
        ("SHA-256", lineage.sha256 or "unknown"),
    ]
    environment = [
        ("Machine", machine.machine),
        ("Processor", f"{machine.processor}, {machine.cores} cores"),
        ("Memory", f"{machine.memory_gib:.1f} GiB"),
        ("System", machine.system),
        ("Python", machine.python),
        ("Loss kernel", machine.loss_kernel),
    ]
    groups = [("The teacher", teacher), ("Data", list(result.data.items())), ("Environment", environment)]
    return [(title, [(term, printable(value)) for term, value in facts]) for title, facts in groups]
