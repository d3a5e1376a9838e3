"""What may ship: within the permitted drop, smaller than its teacher, in fewer bits only where that is faster here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.artifacts import GateDecision, OnnxModel, Parity, Quality, RefusedModel
from compressor.errors import DataError, GateError
from compressor.recipe import Gate
from compressor.recipe_quantize import Search
from compressor.timings import Latency, Timing
from compressor.verify.parity import first_at

# Below, a bootstrap cannot show what it has not drawn: three right answers of three would be certainty.
MIN_EXAMPLES = 30


@dataclass(frozen=True)
class Measured:
    """What is known of every model, by its name; whether the machine let the times be."""

    qualities: Mapping[str, Quality]
    latencies: Mapping[str, Latency]
    parities: Mapping[str, Parity]
    timing: Timing


def check_examples(count: int, gate: Gate) -> None:
    """Raises DataError where so few held-out examples can let nothing ship."""
    if gate.judge == "lower-bound" and count < MIN_EXAMPLES:
        raise DataError(
            f"data.eval: expected {MIN_EXAMPLES} examples or more, which the interval of a metric needs, got {count};"
            " add some, or set gate.judge to value"
        )


def choose(
    teacher: OnnxModel | None,
    candidates: Sequence[OnnxModel],
    found: Measured,
    gate: Gate,
    limits: Search | None = None,
) -> GateDecision:
    """The candidate with the largest (times smaller) x (times faster) among those that pass.

    `teacher` is None where its size and speed are unknown: what the float32 student was made into is then compared
    with it. `candidates` are the float32 student, then the quantized ones. `limits` bind whatever ships, whether a
    search found it or not. Raises GateError naming the closest candidate when none passes.
    """
    student = candidates[0]
    whole = teacher or student
    passed_over: list[RefusedModel] = []
    passing: list[OnnxModel] = []
    for model in candidates:
        reason = _objection(model, teacher, student, found, gate, limits)
        if reason:
            passed_over.append(RefusedModel(model.name, reason))
        else:
            passing.append(model)
    if not passing:
        objections = tuple((model.name, model.reason) for model in passed_over)
        raise GateError(_nothing_passes(found.qualities, candidates, objections, gate), objections)

    def gain(model: OnnxModel) -> float:
        return whole.bytes / model.bytes * found.latencies[model.name].speedup.value

    best = max(passing, key=gain)
    passed_over += [
        RefusedModel(model.name, f"passes, but gains less: {_gain_words(teacher, student, model, found.latencies)}")
        for model in passing
        if model is not best
    ]
    doubt = "" if found.timing.valid else f"; the timing is INVALID: {'; '.join(found.timing.reasons)}"
    return GateDecision(best.name, _gain_words(teacher, student, best, found.latencies) + doubt, tuple(passed_over))


def _objection(
    model: OnnxModel,
    teacher: OnnxModel | None,
    student: OnnxModel,
    found: Measured,
    gate: Gate,
    limits: Search | None,
) -> str | None:
    quality, parity, latency = found.qualities[model.name], found.parities[model.name], found.latencies[model.name]
    if gate.judge == "lower-bound" and quality.examples < MIN_EXAMPLES:
        return f"judged on {quality.examples} examples; an interval needs at least {MIN_EXAMPLES}, or gate.judge value"
    kept = quality.kept.low if gate.judge == "lower-bound" else quality.kept.value
    if not kept >= 1 - gate.max_drop:  # also when it is NaN
        least = f"at least {1 - gate.max_drop:.1%} must be kept"
        return f"keeps {_kept_words(quality)} of the teacher's {quality.metric}; {least}"
    if teacher is not None and model.bytes >= teacher.bytes:
        return f"not smaller than its teacher: {model.bytes:,} bytes against {teacher.bytes:,}"
    if not parity.holds:
        return (
            f"departs from {parity.reference}: mean cosine {parity.mean_cosine:.4f}, expected {parity.bound}"
            f"{first_at(parity)}"
        )
    if limits is not None and (beyond := limits.objection(model.bytes, latency.p50_ms)):
        return beyond
    faster = latency.over_float32
    if model is not student and (faster is None or not faster.low > 1):
        own_ms, float_ms = latency.p50_ms, found.latencies[student.name].p50_ms
        times = (
            "" if faster is None else f"{faster.value:.2f} times its speed ({faster.low:.2f} to {faster.high:.2f}), "
        )
        return f"not shown to be faster than float32 here: {times}{own_ms:.3g} ms against {float_ms:.3g} ms"
    return None


def _nothing_passes(
    qualities: Mapping[str, Quality],
    candidates: Sequence[OnnxModel],
    objections: Sequence[tuple[str, str]],
    gate: Gate,
) -> str:
    best = max((qualities[model.name] for model in candidates), key=lambda quality: quality.kept.value)
    needed = 1 - gate.max_drop
    if (best.kept.low if gate.judge == "lower-bound" else best.kept.value) >= needed:
        why = dict(objections)[best.name]  # its quality is not what stands in the way
        remedy = "choose a smaller student, other precisions or wider limits"
        return f"nothing ships: the best candidate, {best.name}: {why}; {remedy}"
    if gate.judge == "lower-bound" and best.kept.value >= needed:
        remedy = "evaluate on more data to narrow the interval, train longer, or set gate.judge to value"
    else:
        remedy = "train longer, keep more layers or tokens, or allow a larger gate.max_drop"
    return (
        f"nothing ships: the best candidate, {best.name}, keeps {_kept_words(best)} of the teacher's {best.metric},"
        f" and {needed:.1%} must be kept ({gate.judge}); {remedy}"
    )


def _kept_words(quality: Quality) -> str:
    return f"{quality.kept.value:.1%} (95% interval {quality.kept.low:.1%} to {quality.kept.high:.1%})"


def _gain_words(
    teacher: OnnxModel | None, student: OnnxModel, model: OnnxModel, latencies: Mapping[str, Latency]
) -> str:
    speed = latencies[model.name].speedup.value
    if teacher is not None:
        return f"{teacher.bytes / model.bytes:.1f} times smaller and {speed:.1f} times faster than its teacher"
    unknown = "the teacher's size and speed are unknown"
    if model is student:
        return f"the float32 student; {unknown}"
    return f"{student.bytes / model.bytes:.1f} times smaller and {speed:.1f} times faster than in float32; {unknown}"
