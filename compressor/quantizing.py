"""`compressor quantize`: a float32 ONNX file in fewer bits, as far as that is faster here and answers alike."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts import Interval, OnnxModel, RefusedModel
from compressor.attributing import asked_for, attribution, attributions
from compressor.benchmark import BenchmarkSettings, Candidate, explained, time_models
from compressor.certificate import certificate_beside
from compressor.error_attribution import ErrorAttribution
from compressor.errors import BundleError, DataError, GateError, QuantizationError, UsageError
from compressor.intake.npz import UNREADABLE, open_npz
from compressor.intake.trial import admit_onnx
from compressor.locks import alone_in
from compressor.metrics import mean_cosine
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import first_outputs
from compressor.preprocess import Feed
from compressor.progress import SILENT, Progress
from compressor.quantize import Mixer, load_float_model, quantize
from compressor.quantize.calibration_file import sha256_feeds
from compressor.quantize.sites import assign, find_sites
from compressor.recipe_quantize import Quantization, Search
from compressor.report.rows import remedy_line
from compressor.searching import Judging, closeness_of, search_precisions
from compressor.store import write_atomic
from compressor.timings import Latencies, OperatorTime, Timing

MODEL, EVIDENCE = "model.onnx", "quantization.json"
FLOAT32 = "float32"
# Of the examples, those that a model's answers are compared on and that it is timed on; the others calibrate.
_HELD_OUT, _MOST_HELD_OUT, _TIMED = 0.25, 256, 64
_FEWEST = 16


@dataclass(frozen=True)
class Judged:
    """A candidate: `agreement` is the mean cosine of its first output with float32's, `faster` its speed beside it;
    `operators` and `why` are as in `Latency`.
    """

    name: str
    precision: str
    bytes: int
    agreement: float
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


@dataclass(frozen=True)
class ArrayExamples:
    """Arrays by input name, each [examples, ...]; an encoded example is its number, int64 [1]."""

    arrays: Feed

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[Any]]:
        return [np.array([number]) for number in inputs]

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        rows = np.concatenate(examples)
        return {name: array[rows] for name, array in self.arrays.items()}


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

    `inputs` is an .npz with an array for each input of the graph, [examples, ...]: the first calibrate,
    the last quarter judges. Raises UsageError for `settings.qat` or an agreement that none can have, DataError for
    inputs that do not fit, QuantizationError for a model that cannot be quantized, that onnxruntime does not open, or
    that fails its trial, StorageError where another process is at work in `out`, GateError where nothing keeps to the
    limits of `settings.search`: then no model is in `out`.
    """
    if settings.qat is not None:
        raise UsageError("quantize.qat trains a student, which an ONNX file is not: set it in a recipe")
    if not 0 <= min_agreement <= 1:  # also when it is NaN
        raise UsageError(f"--min-agreement: expected a number from 0 to 1, got {min_agreement:g}")
    wanted = BenchmarkSettings(threads=threads, budget_s=budget_s)
    admit_onnx(model, QuantizationError)
    assign(find_sites(load_float_model(model)), "float32", settings.overrides)
    source = describe_onnx(model, FLOAT32, FLOAT32)
    examples = read_examples(inputs, source)
    count = len(next(iter(examples.arrays.values())))
    held_out = min(max(int(count * _HELD_OUT), 1), _MOST_HELD_OUT)
    calibration, judging = (examples.encode(range(*ends)) for ends in ((count - held_out,), (count - held_out, count)))
    with alone_in(out), tempfile.TemporaryDirectory() as folder:
        mixer = Mixer.of(source, calibration, examples, settings)
        made = quantize(source, mixer, Path(folder), progress)
        judge = _judging(source.path, examples, judging, threads)
        mixtures = asked_for(mixer, made.models)
        if settings.search is not None:
            mixtures += search_precisions(source, mixer, judge, settings.search, out, Path(folder), progress)
        models = (source, *(model for model, _ in mixtures))
        timeable = [Candidate(one.name, one.path, judge.feeds) for one in models]
        timed = time_models(timeable, wanted, FLOAT32, progress)
        timed = explained(timed, timeable, wanted, FLOAT32, progress)
        errors = attributions(mixer, mixtures, judge)
        candidates = tuple(
            _judged(one, timed, found.now.agreement) for one, found in zip(models[1:], errors, strict=True)
        )
        certificate_beside(out / MODEL).unlink(missing_ok=True)  # of a model that was here before
        try:
            float32 = _judged(source, timed, 1.0)
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


def errors_of(model: Path, float32: Path, inputs: Path) -> ErrorAttribution:
    """Where the error of a model comes from that was made of `float32`, on the examples in `inputs` (256 at most).

    Raises DataError for inputs that do not fit, QuantizationError where `float32` is no float32 model, BundleError for
    what onnxruntime does not run, or what fails its trial.
    """
    admit_onnx(float32, QuantizationError)
    admit_onnx(model, BundleError)
    source = load_float_model(float32)
    examples = read_examples(inputs, describe_onnx(float32, FLOAT32, FLOAT32))
    judging = examples.encode(range(len(next(iter(examples.arrays.values())))))[:_MOST_HELD_OUT]
    judge = _judging(float32, examples, judging, threads=1)
    return attribution(source, find_sites(source), describe_onnx(model, model.name, "unknown"), judge)


def read_examples(path: Path, model: OnnxModel) -> ArrayExamples:
    """The arrays of an .npz, held against the graph's inputs. Raises DataError."""
    try:
        with open_npz(path, DataError) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise DataError(f"{path}: expected an .npz with an array for each input of the model: {error}") from None
    needed = {spec.name: spec for spec in model.inputs}
    if missing := [name for name in needed if name not in arrays]:
        raise DataError(
            f"{path}: the model's input {missing[0]!r} is missing; the file has {', '.join(arrays) or 'none'}"
        )
    arrays = {name: arrays[name] for name in needed}
    for name, array in arrays.items():
        spec = needed[name]
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            shape = f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
            raise DataError(f"{path}: {name}: expected {shape}, got {array.dtype.name} {list(array.shape)}")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: expected as many examples of each input, got {counts}")
    if min(counts.values()) < _FEWEST:
        raise DataError(f"{path}: expected {_FEWEST} examples or more, got {min(counts.values())}")
    return ArrayExamples(arrays)


def quantized_lines(found: Quantized) -> list[str]:
    """For a reader."""
    lines = [f"{'model':24}  {'MB':>8}  {'p50 ms':>8}  {'faster than float32 [95%]':>26}  {'agreement':>9}"]
    for one in found.candidates:
        faster = f"{one.faster.value:.2f}x [{one.faster.low:.2f}, {one.faster.high:.2f}]"
        mark = "*" if one.name == found.chosen else " "
        lines.append(
            f"{mark} {one.name:22}  {one.bytes / 1e6:8.2f}  {one.p50_ms:8.3g}  {faster:>26}  {one.agreement:9.4f}"
        )
        lines += [f"    {part.share:6.1%} of its time in {part.nodes} {part.operator}" for part in one.operators]
        lines += [f"    {one.why}"] if one.why else []
    lines += [f"  {remedy_line(one)}" for one in found.attributions if one.remedy]
    lines += [f"  {one.name}: {one.reason}" for one in found.refused]
    lines += [f"INVALID: {reason}" for reason in found.timing.reasons]
    return [*lines, "", f"{found.chosen}: {found.reason}"]


def _outputs(path: Path, examples: ArrayExamples, judging: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    return first_outputs(path, examples, judging, batch_size=1, progress=SILENT, title="")


def _judging(float32: Path, examples: ArrayExamples, judged_on: Sequence[NDArray[Any]], threads: int) -> Judging:
    """Models are held against `float32` on these examples, and timed on the first of them."""
    expected = _outputs(float32, examples, judged_on)
    return Judging(
        lambda path: closeness_of(path, _outputs(path, examples, judged_on), expected, mean_cosine),
        sha256_feeds(examples.collate([one]) for one in judged_on),
        tuple(examples.collate([one]) for one in judged_on[:_TIMED]),
        threads,
    )


def _judged(model: OnnxModel, timed: Latencies, agreement: float) -> Judged:
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
    faster = [one for one in candidates if one.faster.low > 1 and one.agreement >= min_agreement]
    if passing := [one for one in faster if one.name not in beyond]:
        best = max(passing, key=_gain)
        return best.name, (
            f"{float32.bytes / best.bytes:.1f} times smaller and {best.faster.value:.2f} times faster than float32,"
            f" agreement {best.agreement:.4f}{doubt}"
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
    alike = [one for one in candidates if one.agreement >= min_agreement]
    if not alike:
        closest = max(candidates, key=lambda one: one.agreement)
        return f"none agrees with it by {min_agreement:g}; the closest, {closest.name}, by {closest.agreement:.4f}"
    fastest = max(alike, key=lambda one: one.faster.low)
    return (
        f"no candidate is shown to be faster here; the fastest that agrees, {fastest.name}, takes"
        f" {1 / fastest.faster.value:.2f} times as long (speed {fastest.faster.low:.2f} to {fastest.faster.high:.2f})"
    )
