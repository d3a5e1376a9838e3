"""int8 candidates by onnxruntime's quantizer: dynamic, and static QDQ calibrated on training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from compressor.artifacts import OnnxModel, QuantizedModels, RefusedModel
from compressor.errors import BundleError, QuantizationError
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session
from compressor.preprocess import Feed, Preprocessor
from compressor.progress import Progress, without_chatter
from compressor.quantize.bad_batches import check
from compressor.quantize.calibration import calibrate
from compressor.quantize.calibration_file import kept
from compressor.quantize.statistics import Calibration
from compressor.quantize.thresholds import Range, ranges
from compressor.recipe import Precision, Quantization

# Embedding tables are read by Gather; everything else here is a product with constant weights.
_DYNAMIC_OPERATORS = ["MatMul", "Gemm", "Gather"]
_STATIC_OPERATORS = ["MatMul", "Gemm", "Gather", "Conv"]


def quantize(
    student: OnnxModel,
    calibration: Sequence[NDArray[Any]],
    preprocessor: Preprocessor,
    settings: Quantization,
    folder: Path,
    progress: Progress,
    *,
    keep: Path | None = None,
) -> QuantizedModels:
    """Every candidate of the settings, written into `folder`; one that is not smaller than float32 is refused here.

    `calibration` holds encoded training examples; what they gave is kept in the folder `keep`, and taken from there.
    Raises QuantizationError when nothing in the graph was quantized, onnxruntime does not open the result, or more
    examples than permitted cannot be calibrated on.
    """
    models: list[OnnxModel] = []
    refused: list[RefusedModel] = []
    for precision in settings.precisions:
        name = f"{student.name}-{_short(precision, settings)}"
        path = folder / f"{name}.onnx"
        if precision == "dynamic-int8" and not _has_operator(student.path, _DYNAMIC_OPERATORS):
            refused.append(
                RefusedModel(name, "dynamic int8 applies to matrix products and embeddings; the graph has none")
            )
            continue
        progress.log(f"  {name}: {precision}")
        # It advises a pre-processing that fails on dynamic graphs; a user can act on none of it.
        with without_chatter():
            if precision == "dynamic-int8":
                _write_dynamic(student.path, path)
            else:
                examples = calibration[: settings.calibration_samples]
                found = _calibrated(student.path, examples, preprocessor, keep, progress)
                check(found, settings.max_bad_batches)
                _write_static(student.path, path, ranges(found, settings.calibration))
        _check_quantized(path, name)
        model = describe_onnx(path, name, precision, student.parameters)
        if model.bytes >= student.bytes:
            refused.append(RefusedModel(name, f"larger than float32: {model.bytes:,} bytes against {student.bytes:,}"))
        else:
            models.append(model)
    return QuantizedModels(tuple(models), tuple(refused))


def _short(precision: Precision, settings: Quantization) -> str:
    return "int8" if precision == settings.precisions[0] else precision


def _write_dynamic(source: Path, destination: Path) -> None:
    quantize_dynamic(
        source,
        destination,
        op_types_to_quantize=_DYNAMIC_OPERATORS,
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _calibrated(
    source: Path, examples: Sequence[NDArray[Any]], preprocessor: Preprocessor, keep: Path | None, progress: Progress
) -> Calibration:
    def batches() -> Iterator[Feed]:
        return (preprocessor.collate([example]) for example in examples)

    if keep is None:
        return calibrate(source, batches(), _STATIC_OPERATORS)
    return kept(source, batches, _STATIC_OPERATORS, keep, progress)


def _write_static(source: Path, destination: Path, found: Mapping[str, Range]) -> None:
    """What onnxruntime's quantize_static does once it has calibrated, with ranges that are given."""
    extremes = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
    quantizer = QDQQuantizer(
        load_model_with_shape_infer(source),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, extremes),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=_STATIC_OPERATORS,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(destination, False)


def _has_operator(path: Path, operators: list[str]) -> bool:
    return any(node.op_type in operators for node in onnx.load(path, load_external_data=False).graph.node)


def _check_quantized(path: Path, name: str) -> None:
    model = onnx.load(path, load_external_data=False)
    if not any("Quantize" in node.op_type or "Integer" in node.op_type for node in model.graph.node):
        raise QuantizationError(
            f"{name}: onnxruntime's quantizer left every operator in float32; drop it from quantize.precisions"
        )
    try:
        open_session(path)
    except BundleError as error:
        raise QuantizationError(str(error)) from None
