"""int8 candidates by onnxruntime's quantizer: dynamic, and static QDQ calibrated on training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from compressor.artifacts import OnnxModel, QuantizedModels, RefusedModel
from compressor.errors import BundleError, QuantizationError
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session
from compressor.preprocess import Feed, Preprocessor
from compressor.progress import Progress, without_chatter
from compressor.recipe import Precision, Quantization

# Embedding tables are read by Gather; everything else here is a product with constant weights.
_DYNAMIC_OPERATORS = ["MatMul", "Gemm", "Gather", "Attention", "EmbedLayerNormalization"]
_STATIC_OPERATORS = ["MatMul", "Gemm", "Gather", "Conv"]


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def quantize(
    student: OnnxModel,
    calibration: Sequence[NDArray[Any]],
    preprocessor: Preprocessor,
    settings: Quantization,
    folder: Path,
    progress: Progress,
) -> QuantizedModels:
    """Every candidate of the settings, written into `folder`; one that is not smaller than float32 is refused here.

    `calibration` holds encoded training examples. Raises QuantizationError when nothing in the graph was quantized
    or onnxruntime does not open the result.
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
                _write_static(
                    student.open_path or student.path, path, calibration[: settings.calibration_samples], preprocessor
                )
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


def _write_static(
    source: Path, destination: Path, calibration: Sequence[NDArray[Any]], preprocessor: Preprocessor
) -> None:
    quantize_static(
        source,
        destination,
        _Feeds(preprocessor.collate([example]) for example in calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_STATIC_OPERATORS,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )


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
