"""The numbers of a result as the rows that the terminal and the page both show, and the headline sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compressor.artifacts import Interval, Quality
from compressor.error_attribution import ErrorAttribution
from compressor.errors import DataError
from compressor.report.formatting import (
    bounds,
    count,
    megabytes,
    metric_name,
    milliseconds,
    percent,
    printable,
    rate,
    ratio,
    score,
    shown,
)
from compressor.result import ModelResult, Result

# Of a teacher behind an endpoint. Speeds are then relative to the first model that was timed, the float32 student.
OUT_OF_REACH = "the teacher's size and speed unknown"
CONTROL_NAME = "hard labels only"


@dataclass(frozen=True)
class Row:
    """One model, formatted. What was not measured is the empty string."""

    name: str
    precision: str = ""
    ships: bool = False
    parameters: str = ""
    megabytes: str = ""
    smaller: str = ""
    p50: str = ""
    p99: str = ""
    faster: str = ""
    faster_bounds: str = ""
    throughput: str = ""
    memory: str = ""
    quality: str = ""
    quality_bounds: str = ""
    kept: str = ""
    kept_bounds: str = ""
    agreement: str = ""


def baseline(result: Result) -> ModelResult:
    """The teacher: the first model, which every ratio refers to."""
    if not result.models:
        raise DataError("expected at least the teacher in the result's models, got none; run the recipe again")
    return result.models[0]


def shipped_model(result: Result) -> ModelResult | None:
    """The model that ships, or None when the gate let nothing through."""
    if result.shipped is None:
        return None
    found = next((model for model in result.models if model.name == result.shipped), None)
    if found is None:
        names = ", ".join(model.name for model in result.models)
        raise DataError(
            f"expected the shipped model to be one of {names}, got {result.shipped!r}; run the recipe again"
        )
    return found


def size_ratio(model: ModelResult, teacher: ModelResult) -> float | None:
    """How many times smaller than the teacher, in bytes; None when either size is unknown."""
    return teacher.bytes / model.bytes if teacher.bytes and model.bytes else None


def rows(result: Result) -> tuple[Row, ...]:
    """Every model in the result's order, then the control when there is one."""
    teacher = baseline(result)
    models = tuple(_model_row(model, teacher, ships=model is shipped_model(result)) for model in result.models)
    if result.control is None:
        return models
    return (*models, _quality_row(CONTROL_NAME, "control", result.control))


def metric_label(result: Result) -> str:
    """The task metric's name, as in 'AUROC'."""
    return metric_name(baseline(result).quality.metric)


def summary_line(result: Result) -> str:
    """The result in one sentence: what ships and what that buys, or why nothing does."""
    shipped = shipped_model(result)
    if shipped is None:
        return f"Nothing ships: {printable(result.reason)}"
    teacher = baseline(result)
    if shipped is teacher:
        return f"{printable(shipped.name)} ships as it is: {printable(result.reason)}"
    kept = shipped.quality.kept
    interval = f"95% interval {100 * kept.low:.1f} to {percent(kept.high)}"
    claims = [
        _size_claim(size_ratio(shipped, teacher)),
        _speed_claim(shipped.latency.speedup, teacher) if shipped.latency else "",
        f"{percent(kept.value)} of the teacher's {metric_label(result)} ({interval})",
    ]
    return f"{printable(shipped.name)} ships: {', '.join(claim for claim in claims if claim)}"


def reference_line(result: Result) -> str:
    """How far the independent model agrees with each of the others; empty where there is none."""
    found = result.reference
    if found is None:
        return ""
    agreements = ", ".join(f"{printable(name)} {score(value)}" for name, value in found.agreement.items())
    quality = f"{metric_label(result)} {score(found.quality.quality.value)}"
    return f"reference {printable(found.source)}: {quality}; agreement with {agreements}"


def time_words(result: Result, name: str) -> str:
    """Which operators take a model's time, and why it is not faster; empty where that was not asked."""
    timed = next((model.latency for model in result.models if model.name == name), None)
    shares = (
        [f"{percent(one.share)} in {one.nodes} {printable(one.operator)}" for one in timed.operators] if timed else []
    )
    if timed is None or not shares:
        return ""
    why = f"; {printable(timed.why)}" if timed.why else ""
    return f"its time goes, by operator, {', '.join(shares)}{why}"


def remedy_line(found: ErrorAttribution) -> str:
    """What would mend most of a quantized model's error in one sentence, or why nothing is told."""
    if found.now.snr_db is None:
        return f"{printable(found.model)} answers as float32 does"
    if found.remedy is None:
        return f"{printable(found.model)}: no layer alone makes much of the error"
    then = found.remedy.then
    more = then.bytes - found.now.bytes
    price = f"{megabytes(abs(more))} MB {'more' if more > 0 else 'less'}"
    return (
        f"{printable(found.model)}: {printable(found.remedy.node)} in {found.remedy.precision} for {price} takes"
        f" {percent(1 - then.error / found.now.error)} of the error away, agreement with float32"
        f" {score(found.now.agreement)} to {score(then.agreement)}"
    )


def _model_row(model: ModelResult, teacher: ModelResult, ships: bool) -> Row:
    timed = model.latency
    row = _quality_row(printable(model.name), printable(model.precision), model.quality)
    return replace(
        row,
        ships=ships,
        # A teacher behind an endpoint does not say how large it is.
        parameters=count(model.parameters) if model.parameters else "",
        megabytes=shown(model.bytes, megabytes),
        smaller=shown(size_ratio(model, teacher), ratio),
        p50=milliseconds(timed.p50_ms) if timed else "",
        p99=shown(timed.p99_ms, milliseconds) if timed else "",
        faster=ratio(timed.speedup.value) if timed else "",
        faster_bounds=bounds(timed.speedup, ratio) if timed and timed.verdict != "baseline" else "",
        throughput=rate(timed.throughput_per_s) if timed else "",
        memory=f"{timed.peak_memory_mib:,.0f}" if timed else "",
        agreement=score(model.agreement),
        # The teacher keeps all of itself by definition: that has no interval.
        kept_bounds="" if model is teacher else row.kept_bounds,
    )


def _quality_row(name: str, precision: str, quality: Quality) -> Row:
    return Row(
        name=name,
        precision=precision,
        quality=score(quality.quality.value),
        quality_bounds=bounds(quality.quality, score),
        kept=percent(quality.kept.value),
        kept_bounds=bounds(quality.kept, percent),
        agreement=score(quality.agreement),
    )


def _size_claim(smaller: float | None) -> str:
    if smaller is None:
        return ""
    if ratio(smaller) == ratio(1.0):
        return "the same size"
    return f"{ratio(smaller)} smaller" if smaller > 1 else f"{ratio(1 / smaller)} larger"


def _speed_claim(speedup: Interval, teacher: ModelResult) -> str:
    if teacher.latency is None:
        return OUT_OF_REACH
    # An interval that holds 1 supports neither claim, whatever its middle says.
    if speedup.low <= 1 <= speedup.high:
        return "no measurable difference in speed"
    return f"{ratio(speedup.value)} faster" if speedup.value > 1 else f"{ratio(1 / speedup.value)} slower"
