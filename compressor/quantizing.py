"""`compressor quantize`: a float32 ONNX file in fewer bits, as far as that is faster here and answers alike."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compressor.artifacts import Interval, OnnxModel, RefusedModel
from compressor.attributing import asked_for, attribution, attributions
from compressor.benchmark import BenchmarkSettings, Candidate, explained, time_models
from compressor.certificate import certificate_beside
from compressor.error_attribution import ErrorAttribution
from compressor.errors import BundleError, GateError, QuantizationError, UsageError
from compressor.held_out import held_out_of
from compressor.intake.onnx_model import check_onnx
from compressor.intake.trial import admit_onnx
from compressor.locks import alone_in
from compressor.model_inputs import check_comparable, check_same_interface, check_timed, read_examples
from compressor.onnx_file import MOST_BYTES, describe_onnx, in_one_file, read_onnx
from compressor.progress import Progress
from compressor.quantize import Mixer, load_float_model, quantize
from compressor.quantize.layer_errors import untold
from compressor.quantize.sites import assign, find_sites
from compressor.recipe_quantize import Quantization, Search
from compressor.report.rows import remedy_line
from compressor.searching import search_precisions
from compressor.store import check_writable, write_atomic
from compressor.timings import Latencies, OperatorTime, Timing

MODEL, EVIDENCE = "model.onnx", "quantization.json"
FLOAT32 = "float32"
# Of the examples, those that a model's answers are compared on; the others calibrate.
_HELD_OUT, _FEWEST_HELD_OUT, _MOST_HELD_OUT = 0.25, 8, 256


@dataclass(frozen=True)
class Judged:
    """A candidate: `agreement` is that of its worst output with float32's, its interval a bootstrap over the held-out
    examples; `faster` its speed beside it; `operators` and `why` are as in `Latency`.
    """

    name: str
    precision: str
    bytes: int
    agreement: Interval
    p50_ms: float
    faster: Interval
    operators: tuple[OperatorTime, ...]
    why: str


@dataclass(frozen=True)
class Quantized:
    """What was chosen and why; every candidate, where its error comes from, and those that were refused before they
    were measured.
    """

    chosen: str
    reason: str
    candidates: tuple[Judged, ...]
    attributions: tuple[ErrorAttribution, ...]
    refused: tuple[RefusedModel, ...]
    timing: Timing


def quantize_file(
    model: Path,
    inputs: Path,
    settings: Quantization,
    out: Path,
    progress: Progress,
    *,
    min_agreement: float = 0.99,
    threads: int = 1,
    budget_s: float = 20.0,
) -> Quantized:
    """Writes into `out` what gains most of the candidates that agree with float32 and are faster beyond doubt, or
    float32 itself where none is; beside it the evidence, and of what has integer products their certificate.

    `inputs` is an .npz with an array for each input of the graph, [examples, ...]: the last quarter judges, 8 or more
    and 256 at most, and of the others as many calibrate as `settings` say. A candidate agrees where the lower bound of
    its agreement does. All outputs are judged, and the worst one counts. What
    is written is one file, also where the model keeps its weights in others.

    Raises UsageError for `settings.qat`, an agreement that none can have, or an `out` in which a file that is read
    would be written over, DataError for inputs that do not fit, StorageError where `out` cannot be a folder or another
    process is at work in it, QuantizationError for a model that cannot be quantized, that onnxruntime does not open or
    run, that fails its trial, or that gives NaN or infinity for more held-out examples than
    `settings.max_bad_batches`, GateError where nothing keeps to the limits of `settings.search`: then no model is in
    `out`.
    """
    if settings.qat is not None:
        raise UsageError("quantize.qat trains a student, which an ONNX file is not: set it in a recipe")
    if not 0 <= min_agreement <= 1:  # also when it is NaN
        raise UsageError(f"--min-agreement: expected a number from 0 to 1, got {min_agreement:g}")
    wanted = BenchmarkSettings(threads=threads, budget_s=budget_s)
    outside = _check_size(model)
    _check_apart(out, (model, inputs, *outside))
    admit_onnx(model, QuantizationError)
    assign(find_sites(load_float_model(model)), "float32", settings.overrides)
    described = describe_onnx(model, FLOAT32, FLOAT32)
    check_comparable(described)
    check_timed(described)
    examples = read_examples(inputs, described)
    count = len(next(iter(examples.arrays.values())))
    held_out = min(max(int(count * _HELD_OUT), _FEWEST_HELD_OUT), _MOST_HELD_OUT)
    calibration, judging = (examples.encode(range(*ends)) for ends in ((count - held_out,), (count - held_out, count)))
    with alone_in(out), tempfile.TemporaryDirectory() as folder:
        check_writable(out / MODEL)
        source = describe_onnx(
            in_one_file(model, Path(folder) / f"{FLOAT32}.onnx", QuantizationError), FLOAT32, FLOAT32
        )
        held = held_out_of(source.path, examples, judging, settings.max_bad_batches)
        judge = held.judging(threads)
        mixer = Mixer.of(source, calibration, examples, settings, every_output=True)
        made = quantize(source, mixer, Path(folder), progress)
        mixtures = asked_for(mixer, made.models)
        if settings.search is not None:
            mixtures += search_precisions(source, mixer, judge, settings.search, out, Path(folder), progress)
        models = (source, *(model for model, _ in mixtures))
        timeable = [Candidate(one.name, one.path, judge.feeds) for one in models]
        timed = time_models(timeable, wanted, FLOAT32, progress)
        timed = explained(timed, timeable, wanted, FLOAT32, progress)
        errors = attributions(mixer, mixtures, judge)
        candidates = tuple(_judged(one, timed, held.agreement(one.path)) for one in models[1:])
        certificate_beside(out / MODEL).unlink(missing_ok=True)  # of a model that was here before
        try:
            float32 = _judged(source, timed, Interval(1.0, 1.0, 1.0))
            chosen, reason = _choose(float32, candidates, min_agreement, timed.timing, settings.search)
        except GateError:
            for earlier in (MODEL, EVIDENCE):
                (out / earlier).unlink(missing_ok=True)
            raise
        found = Quantized(chosen, reason, candidates, errors, made.refused, timed.timing)
        best = next(one.path for one in models if one.name == chosen)
        write_atomic(out / MODEL, best.read_bytes())
        if certificate_beside(best).is_file():
            write_atomic(certificate_beside(out / MODEL), certificate_beside(best).read_bytes())
        write_atomic(out / EVIDENCE, (json.dumps(asdict(found), indent=1) + "\n").encode())
    return found


def errors_of(model: Path, float32: Path, inputs: Path) -> tuple[ErrorAttribution, tuple[str, ...]]:
    """Where the error of a model comes from that was made of `float32`, on the examples in `inputs` (256 at most); the
    nodes of which nothing can be told, since scales were moved between layers (`layer_errors.untold`).

    Raises UsageError where their inputs or outputs are not the same, DataError for inputs that do not fit,
    QuantizationError where `float32` is no float32 model, BundleError for what onnxruntime does not run, or what fails
    its trial.
    """
    _check_size(float32)
    admit_onnx(float32, QuantizationError)
    admit_onnx(model, BundleError)
    source, described = load_float_model(float32), describe_onnx(float32, FLOAT32, FLOAT32)
    quantized = describe_onnx(model, model.name, "unknown")
    check_same_interface(quantized, described)
    check_comparable(described)
    examples = read_examples(inputs, described)
    judging = examples.encode(range(len(next(iter(examples.arrays.values())))))[:_MOST_HELD_OUT]
    judge = held_out_of(float32, examples, judging, None).judging(threads=1)
    sites = find_sites(source)
    return attribution(source, sites, quantized, judge), untold(source, read_onnx(model, BundleError), sites)


def quantized_lines(found: Quantized) -> list[str]:
    """For a reader."""
    lines = [f"{'model':24}  {'MB':>8}  {'p50 ms':>8}  {'faster than float32 [95%]':>26}  {'agreement [95%]':>24}"]
    for one in found.candidates:
        faster = f"{one.faster.value:.2f}x [{one.faster.low:.2f}, {one.faster.high:.2f}]"
        mark = "*" if one.name == found.chosen else " "
        lines.append(
            f"{mark} {one.name:22}  {one.bytes / 1e6:8.2f}  {one.p50_ms:8.3g}  {faster:>26}  {_told(one.agreement):>24}"
        )
        lines += [f"    {part.share:6.1%} of its time in {part.nodes} {part.operator}" for part in one.operators]
        lines += [f"    {one.why}"] if one.why else []
    lines += [f"  {remedy_line(one)}" for one in found.attributions if one.remedy]
    lines += [f"  {one.name}: {one.reason}" for one in found.refused]
    lines += [f"INVALID: {reason}" for reason in found.timing.reasons]
    return [*lines, "", f"{found.chosen}: {found.reason}"]


def _told(agreement: Interval) -> str:
    return f"{agreement.value:.4f} [{agreement.low:.4f}, {agreement.high:.4f}]"


def _check_size(model: Path) -> tuple[Path, ...]:
    """The files beside the model that hold tensors of it. Raises QuantizationError where all do not fit into one."""
    facts = check_onnx(model, QuantizationError)
    size = model.stat().st_size + sum(tensor.bytes for tensor in facts.outside)
    if size > MOST_BYTES:
        raise QuantizationError(f"{model}: {size:,} bytes; at most {MOST_BYTES:,} fit into one ONNX file")
    return tuple({model.parent / tensor.external.get("location", "") for tensor in facts.outside})


def _check_apart(out: Path, read: Sequence[Path]) -> None:
    """Raises UsageError where one of the files that are written or deleted in `out` is one of these."""
    for written in (out / MODEL, out / EVIDENCE, certificate_beside(out / MODEL)):
        for path in read:
            if written.is_file() and path.is_file() and written.samefile(path):
                raise UsageError(
                    f"{written}: expected a folder to write {written.name} into, got that of {path}, which is read and"
                    " would be lost; choose another with --out"
                )


def _judged(model: OnnxModel, timed: Latencies, agreement: Interval) -> Judged:
    latency = next(one for one in timed.models if one.name == model.name)
    return Judged(
        model.name,
        model.precision,
        model.bytes,
        agreement,
        latency.p50_ms,
        latency.speedup,
        latency.operators,
        latency.why,
    )


def _choose(
    float32: Judged, candidates: Sequence[Judged], min_agreement: float, timing: Timing, limits: Search | None
) -> tuple[str, str]:
    """The name of what ships, and why. Raises GateError where nothing is within the limits."""
    beyond = {
        one.name: objection
        for one in (float32, *candidates)
        if limits is not None and (objection := limits.objection(one.bytes, one.p50_ms))
    }
    doubt = "" if timing.valid else f"; the timing is INVALID: {'; '.join(timing.reasons)}"
    faster = [one for one in candidates if one.faster.low > 1 and one.agreement.low >= min_agreement]
    if passing := [one for one in faster if one.name not in beyond]:
        best = max(passing, key=_gain)
        return best.name, (
            f"{float32.bytes / best.bytes:.1f} times smaller and {best.faster.value:.2f} times faster than float32,"
            f" agreement {_told(best.agreement)}{doubt}"
        )
    if faster:
        best = max(faster, key=_gain)
        why = f"{best.name} {beyond[best.name]}"
    else:
        why = _why_none(candidates, min_agreement)
    if FLOAT32 in beyond:
        raise GateError(
            f"nothing ships: float32 {beyond[FLOAT32]}; {why}; raise the limit, search longer, or try other precisions",
            tuple(beyond.items()),
        )
    return FLOAT32, why + doubt


def _gain(candidate: Judged) -> float:
    """As large for the one as for the other: times smaller, times faster."""
    return candidate.faster.value / candidate.bytes


def _why_none(candidates: Sequence[Judged], min_agreement: float) -> str:
    """Why none of the candidates may ship, whatever the limits."""
    if not candidates:
        return "nothing in this graph can be quantized as asked"
    alike = [one for one in candidates if one.agreement.low >= min_agreement]
    if not alike:
        closest = max(candidates, key=lambda one: one.agreement.low)
        return (
            f"none agrees with it by {min_agreement:g} beyond doubt; the closest, {closest.name}, by"
            f" {_told(closest.agreement)}"
        )
    fastest = max(alike, key=lambda one: one.faster.low)
    return (
        f"no candidate is shown to be faster here; the fastest that agrees, {fastest.name}, takes"
        f" {1 / fastest.faster.value:.2f} times as long (speed {fastest.faster.low:.2f} to {fastest.faster.high:.2f})"
    )
