"""What an ONNX file says of itself: its interface, its size. Needs the package `onnx`."""

from __future__ import annotations

from pathlib import Path

import onnx

from compressor.artifacts import OnnxModel, TensorSpec


def describe_onnx(path: Path, name: str, precision: str, parameters: int | None = None) -> OnnxModel:
    """What an ONNX file says of itself; `parameters` counts its initialisers unless given."""
    model = onnx.load(path, load_external_data=False)
    return OnnxModel(
        name=name,
        precision=precision,
        path=path,
        bytes=path.stat().st_size,
        parameters=parameters if parameters is not None else sum(_size(i) for i in model.graph.initializer),
        opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
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
