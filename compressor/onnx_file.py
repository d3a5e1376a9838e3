"""What an ONNX file says of itself: its interface, its size. Needs the package `onnx`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.errors import CompressorError, first_line


def read_onnx(path: Path, error: type[CompressorError]) -> onnx.ModelProto:
    """The model with its external data. Raises `error` for what is none."""
    try:
        return onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError) as found:
        raise error(f"{path}: expected an ONNX model: {first_line(found)}") from None


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 0 where the model uses none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def ir_version_of(path: Path) -> int:
    """The version of ONNX's file format that a model is written in."""
    return int(onnx.load(path, load_external_data=False).ir_version)


def with_outputs(model: onnx.ModelProto, outputs: Iterable[str | onnx.ValueInfoProto]) -> onnx.ModelProto:
    """A copy of the model with other outputs; of those that are names alone, onnxruntime finds the type, also where
    onnx does not know the operator.
    """
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.output[:]
    other.graph.output.extend(onnx.ValueInfoProto(name=one) if isinstance(one, str) else one for one in outputs)
    return other


def describe_onnx(path: Path, name: str, precision: str, parameters: int | None = None) -> OnnxModel:
    """What an ONNX file says of itself; `parameters` counts its initialisers unless given."""
    model = onnx.load(path, load_external_data=False)
    return OnnxModel(
        name=name,
        precision=precision,
        path=path,
        bytes=path.stat().st_size,
        parameters=parameters if parameters is not None else sum(_size(i) for i in model.graph.initializer),
        opset=opset_of(model),
        inputs=tuple(_spec(value) for value in model.graph.input),
        outputs=tuple(_spec(value) for value in model.graph.output),
    )


def _size(tensor: onnx.TensorProto) -> int:
    count = 1
    for dimension in tensor.dims:
        count *= dimension
    return count


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))
