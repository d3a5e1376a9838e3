"""A float32 model in any mixture of precisions: what each is made from, its file, its certificate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from compressor.artifacts import OnnxModel
from compressor.certificate import Certificate, certificate_beside, dump_certificate
from compressor.errors import BundleError, QuantizationError
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed, Preprocessor
from compressor.quantize.bad_batches import check
from compressor.quantize.bias import bias_errors, correct
from compressor.quantize.calibration_file import kept
from compressor.quantize.float_model import load_float_model
from compressor.quantize.int8 import StaticPrecision, observed, to_dynamic_int8, to_static
from compressor.quantize.prepared import Prepared, Trying, prepare
from compressor.quantize.saturation import same_everywhere
from compressor.quantize.sites import Site, assign, find_sites
from compressor.quantize.thresholds import Range, ranges
from compressor.quantize.weight_only import quantize_weights
from compressor.recipe_quantize import NodePrecision, Precision, Quantization
from compressor.store import write_atomic

_STATIC: tuple[StaticPrecision, ...] = ("static-int8", "static-int16")
# Of the examples, those that are held out to judge on, and at most.
_HELD_OUT, _MOST_HELD_OUT = 0.2, 32
# Channels are looked at on so many of the others: what they settle is judged, ranges are not.
_MOST_SWEPT = 64


def examples_wanted(settings: Quantization) -> int:
    """How many examples a Mixer takes: those that calibrate, and a quarter as many to judge on, at most 32."""
    return settings.calibration_samples + min(settings.calibration_samples // 4, _MOST_HELD_OUT)


@dataclass(frozen=True)
class Mixer:
    """A float32 model that can be written in any mixture of precisions; `calibration` are encoded training examples,
    `held_out` others, on which is judged what is written from: by `every_output` of the graph, or by the first alone,
    which is a task's. What they give is kept in the folder `keep`, if there is one.
    """

    source: onnx.ModelProto
    sites: tuple[Site, ...]
    calibration: Sequence[NDArray[Any]]
    held_out: Sequence[NDArray[Any]]
    preprocessor: Preprocessor
    settings: Quantization
    keep: Path | None
    every_output: bool = False

    @staticmethod
    def of(
        student: OnnxModel,
        examples: Sequence[NDArray[Any]],
        preprocessor: Preprocessor,
        settings: Quantization,
        keep: Path | None = None,
        *,
        every_output: bool = False,
    ) -> Mixer:
        """Takes of the examples as many as are wanted (`examples_wanted`), or fewer. Raises QuantizationError for a
        model that cannot be quantized.
        """
        source = load_float_model(student.open_path or student.path)
        taken = examples[: examples_wanted(settings)]
        judged = "auto" in (settings.migrate, settings.correct_bias)
        count = min(settings.calibration_samples, len(taken) - int(len(taken) * _HELD_OUT * judged))
        held_out = taken[count:][:_MOST_HELD_OUT]
        return Mixer(source, find_sites(source), taken[:count], held_out, preprocessor, settings, keep, every_output)

    def start(self, chosen: Mapping[str, NodePrecision]) -> Prepared:
        """What a mixture is made from. It is looked for once for static and once for dynamic int8, as if all that can
        be had it. Raises QuantizationError where more examples than permitted cannot be calibrated on.
        """
        if "static-int8" in chosen.values():
            return self._static
        if "static-int16" in chosen.values():
            return Prepared(self.source, self._ranges, {})
        return self._dynamic if "dynamic-int8" in chosen.values() else Prepared(self.source, {}, {})

    @cached_property
    def _static(self) -> Prepared:
        nodes = self._nodes("static-int8")
        plain = Prepared(self.source, self._ranges, {})
        trying = self._trying(
            lambda model: self._found(model, self.keep),
            lambda prepared: to_static(_corrected(prepared, nodes), nodes, "static-int8", prepared.ranges),
        )
        migrate, correct_bias = self.settings.migrate == "auto", self.settings.correct_bias == "auto"
        return prepare(plain, nodes, trying, migrate=migrate, correct_bias=correct_bias)

    @cached_property
    def _dynamic(self) -> Prepared:
        nodes = self._nodes("dynamic-int8")
        trying = self._trying(lambda model: {}, lambda prepared: to_dynamic_int8(prepared.model, nodes))  # noqa: ARG005
        migrate = self.settings.migrate == "auto"
        return prepare(Prepared(self.source, {}, {}), nodes, trying, migrate=migrate, correct_bias=False)

    @cached_property
    def _ranges(self) -> Mapping[str, Range]:
        return self._found(self.source, self.keep)

    def _nodes(self, precision: Precision) -> list[str]:
        chosen = assign(self.sites, precision, self.settings.overrides)
        return [node for node, one in chosen.items() if one == precision]

    def _trying(
        self, found: Callable[[onnx.ModelProto], Mapping[str, Range]], write: Callable[[Prepared], onnx.ModelProto]
    ) -> Trying:
        held_out = [self.preprocessor.collate([example]) for example in self.held_out]
        return Trying(list(self.batches())[:_MOST_SWEPT], held_out, found, write, self.every_output)

    def _found(self, model: onnx.ModelProto, keep: Path | None = None) -> Mapping[str, Range]:
        operators = observed(model, {site.node for site in self.sites})
        found = kept(model, self.batches, operators, keep)
        check(found, self.settings.max_bad_batches)
        return ranges(found, self.settings.calibration)

    def batches(self) -> Iterator[Feed]:
        """The calibration examples, one by one."""
        return (self.preprocessor.collate([example]) for example in self.calibration)

    def write(self, chosen: Mapping[str, NodePrecision], path: Path) -> None:
        """The model with every site in the precision that is `chosen` for its node, at `path`, whole or not at all.

        Raises QuantizationError, also for a mixture that no overrides could give, and where onnxruntime does not open
        it, or run it on the first calibration example.
        """
        chosen = assign(self.sites, "float32", chosen)
        self._write_from(self.start(chosen), chosen, path)

    def _write_from(self, start: Prepared, chosen: Mapping[str, NodePrecision], path: Path) -> None:
        model = _corrected(start, [node for node, one in chosen.items() if one == "static-int8"])
        static = [precision for precision in _STATIC if precision in chosen.values()]
        for number, precision in enumerate(static):
            # The second of two reads what the first has rounded.
            found = start.ranges if number == 0 else self._found(model)
            model = to_static(model, [node for node, one in chosen.items() if one == precision], precision, found)
        quantize_weights(model, self.sites, chosen, self.settings.block)
        if nodes := [node for node, one in chosen.items() if one == "dynamic-int8"]:  # last: it renames every Gemm
            model = to_dynamic_int8(model, nodes)
        write_opened(model, path, next(self.batches(), None))

    def ship(self, chosen: Mapping[str, NodePrecision], path: Path) -> Certificate:
        """`write`, and beside it the certificate, the products tried on the calibration examples. Where
        `same_everywhere` is set, what saturates on them is narrowed first, and biases are corrected for the narrower
        weights. Raises QuantizationError.
        """
        self.write(chosen, path)
        found = self._certified(path)
        narrowed = {layer.weights for layer in found.layers if layer.narrowed}
        if narrowed and (start := self.start(chosen)).errors:
            errors = bias_errors(start.model, onnx.load(path), list(self.batches())[:_MOST_SWEPT])
            self._write_from(replace(start, errors=errors), chosen, path)
            found = self._certified(path, narrowed)
        return found

    def _certified(self, path: Path, narrowed: Collection[str] = ()) -> Certificate:
        return certify(path, list(self.batches()), narrow=self.settings.same_everywhere, before=narrowed)


def write_opened(model: onnx.ModelProto, path: Path, feed: Feed | None = None) -> None:
    """The model at `path`, whole or not at all. Raises QuantizationError where onnxruntime does not open it, or run it
    on the feed.
    """
    write_atomic(path, model.SerializeToString())
    try:
        session = open_session(path)
        if feed is not None:
            run_one(session, feed)
    except BundleError as error:
        path.unlink()
        raise QuantizationError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def certify(path: Path, feeds: Sequence[Feed], *, narrow: bool, before: Collection[str] = ()) -> Certificate:
    """`same_everywhere`, the certificate written beside the model. Raises QuantizationError."""
    try:
        found = same_everywhere(path, feeds, narrow=narrow, before=before)
    except BundleError as error:
        raise QuantizationError(f"{path}: {error}") from None
    write_atomic(certificate_beside(path), dump_certificate(found))
    return found


def _corrected(prepared: Prepared, nodes: Sequence[str]) -> onnx.ModelProto:
    """A copy, with the biases of these nodes corrected."""
    return correct(prepared.model, {node: prepared.errors[node] for node in nodes if node in prepared.errors})
