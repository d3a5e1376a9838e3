"""Integer products by onnxruntime's quantizer: dynamic int8, and static QDQ calibrated on training data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

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

from compressor.preprocess import Feed, Preprocessor
from compressor.progress import without_chatter

StaticPrecision = Literal["static-int8", "static-int16"]

_OPERATORS = ["MatMul", "Gemm", "Gather", "Conv"]
_ACTIVATIONS = {"static-int8": QuantType.QUInt8, "static-int16": QuantType.QUInt16}
_OPTIONS = {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT}


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def to_dynamic_int8(model: onnx.ModelProto, nodes: Sequence[str]) -> onnx.ModelProto:
    """`model` with these nodes in dynamic int8: activations are scaled per inference. int8 weights per channel."""
    with tempfile.TemporaryDirectory() as folder, without_chatter():
        written = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            written,
            op_types_to_quantize=_OPERATORS,
            nodes_to_quantize=list(nodes),
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options=dict(_OPTIONS),
        )
        return onnx.load(written)


def to_static(
    model: onnx.ModelProto,
    nodes: Sequence[str],
    precision: StaticPrecision,
    calibration: Sequence[NDArray[Any]],
    preprocessor: Preprocessor,
) -> onnx.ModelProto:
    """`model` with these nodes in QDQ form: activations uint8 or uint16 in ranges found on `calibration`, one encoded
    example after the other; int8 weights per channel.
    """
    # It advises a pre-processing that fails on dynamic graphs; a user can act on none of it.
    with tempfile.TemporaryDirectory() as folder, without_chatter():
        written = Path(folder) / "model.onnx"
        quantize_static(
            model,
            written,
            _Feeds(preprocessor.collate([example]) for example in calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            nodes_to_quantize=list(nodes),
            per_channel=True,
            activation_type=_ACTIVATIONS[precision],
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=dict(_OPTIONS),
        )
        return onnx.load(written)
