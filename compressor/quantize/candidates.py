"""The candidates beside float32: each a precision for every site of the graph, written and held against its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from compressor.artifacts import OnnxModel, QuantizedModels, RefusedModel
from compressor.certificate import Certificate, certificate_beside, dump_certificate, summary
from compressor.errors import BundleError, QuantizationError
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session
from compressor.preprocess import Feed, Preprocessor
from compressor.progress import Progress
from compressor.quantize.bad_batches import check
from compressor.quantize.calibration_file import kept
from compressor.quantize.int8 import OPERATORS, StaticPrecision, to_dynamic_int8, to_static
from compressor.quantize.saturation import same_everywhere
from compressor.quantize.sites import Site, applicable_operators, assign, find_sites, load_float_model
from compressor.quantize.thresholds import Range, ranges
from compressor.quantize.weight_only import quantize_weights
from compressor.recipe_quantize import NodePrecision, Precision, Quantization
from compressor.store import write_atomic


@dataclass(frozen=True)
class Mixer:
    """A float32 model that can be written in any mixture of precisions; `calibration` are encoded training examples.

    What they give is kept in the folder `keep`, if there is one.
    """

    source: onnx.ModelProto
    sites: tuple[Site, ...]
    calibration: Sequence[NDArray[Any]]
    preprocessor: Preprocessor
    settings: Quantization
    keep: Path | None

    @staticmethod
    def of(
        student: OnnxModel,
        calibration: Sequence[NDArray[Any]],
        preprocessor: Preprocessor,
        settings: Quantization,
        keep: Path | None = None,
    ) -> Mixer:
        """Raises QuantizationError for a model that cannot be quantized."""
        source = load_float_model(student.open_path or student.path)
        examples = calibration[: settings.calibration_samples]
        return Mixer(source, find_sites(source), examples, preprocessor, settings, keep)

    @cached_property
    def ranges(self) -> Mapping[str, Range]:
        """Those of the float32 model's tensors, by one sweep for all mixtures. Raises QuantizationError where more
        examples than permitted cannot be calibrated on.
        """
        return self._found(self.source, self.keep)

    def _found(self, model: onnx.ModelProto, keep: Path | None) -> Mapping[str, Range]:
        found = kept(model, self._batches, OPERATORS, keep)
        check(found, self.settings.max_bad_batches)
        return ranges(found, self.settings.calibration)

    def _batches(self) -> Iterator[Feed]:
        return (self.preprocessor.collate([example]) for example in self.calibration)

    def write(self, chosen: Mapping[str, NodePrecision], path: Path) -> None:
        """The model with every site in the precision that is `chosen` for its node, at `path`, whole or not at all.

        Raises QuantizationError, also where onnxruntime does not open it.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        static: tuple[StaticPrecision, ...] = ("static-int8", "static-int16")
        for number, precision in enumerate(one for one in static if one in chosen.values()):
            # The second of two reads what the first has rounded.
            found = self.ranges if number == 0 else self._found(model, None)
            model = to_static(model, [node for node, one in chosen.items() if one == precision], precision, found)
        if nodes := [node for node, one in chosen.items() if one == "dynamic-int8"]:
            model = to_dynamic_int8(model, nodes)
        quantize_weights(model, self.sites, chosen, self.settings.block)
        write_atomic(path, model.SerializeToString())
        try:
            open_session(path)
        except BundleError as error:
            path.unlink()
            raise QuantizationError(str(error)) from None

    def certify(self, path: Path) -> Certificate:
        """Writes the certificate of a mixture beside it, its products tried on the calibration examples; where
        `same_everywhere` is set, narrows first what saturates on them. Raises QuantizationError.
        """
        try:
            found = same_everywhere(path, list(self._batches()), narrow=self.settings.same_everywhere)
        except BundleError as error:
            raise QuantizationError(f"{path}: {error}") from None
        write_atomic(certificate_beside(path), dump_certificate(found))
        return found


def quantize(student: OnnxModel, mixer: Mixer, folder: Path, progress: Progress) -> QuantizedModels:
    """Every candidate of the mixer's settings, written into `folder` with its certificate beside it; one that is not
    smaller than float32 is refused here.

    Raises QuantizationError for an override that names nothing in the graph.
    """
    models: list[OnnxModel] = []
    refused: list[RefusedModel] = []
    settings = mixer.settings
    for precision in settings.precisions:
        name = f"{student.name}-{_short(precision, settings)}"
        chosen = assign(mixer.sites, precision, settings.overrides)
        if all(one == "float32" for one in chosen.values()):
            operators = ", ".join(applicable_operators(precision))
            refused.append(
                RefusedModel(name, f"{precision} applies to {operators} with constant weights; there are none")
            )
            continue
        progress.log(f"  {name}: {precision}")
        path = folder / f"{name}.onnx"
        mixer.write(chosen, path)
        for processor, holds in summary(mixer.certify(path)).items():
            progress.log(f"    integer products on {processor}: {holds}")
        model = describe_onnx(path, name, precision, student.parameters)
        if model.bytes >= student.bytes:
            refused.append(RefusedModel(name, f"larger than float32: {model.bytes:,} bytes against {student.bytes:,}"))
        else:
            models.append(model)
    return QuantizedModels(tuple(models), tuple(refused))


def _short(precision: Precision, settings: Quantization) -> str:
    return "int8" if precision in ("dynamic-int8", "static-int8") and precision == settings.precisions[0] else precision
