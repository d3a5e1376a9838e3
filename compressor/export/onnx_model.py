"""A torch module to an ONNX file that is proven to load and to take every dynamic shape it declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.errors import BundleError, ExportError
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed
from compressor.progress import without_chatter
from compressor.store import write_atomic


def export_onnx(
    module: nn.Module,
    name: str,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    feeds: list[Feed],
    opset: int,
    path: Path,
) -> OnnxModel:
    """Writes the deployable `module` to `path` as float32 ONNX with the given input and output names.

    `feeds` are of several shapes: the graph is traced on the largest batch among them and then run on every one, so a
    dimension that the exporter fixed by mistake is found here. Raises ExportError.
    """
    traced_on = max(feeds, key=lambda feed: min(array.size for array in feed.values()))
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    # It warns and prints about its own inner life; a user can act on none of it, and errors still raise.
    with without_chatter():
        try:
            program = torch.onnx.export(
                _InOrder(module.eval(), [spec.name for spec in inputs]),
                args=tuple(torch.from_numpy(traced_on[spec.name]) for spec in inputs),
                dynamo=True,
                dynamic_shapes=(dynamic,),
                opset_version=opset,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                optimize=True,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            raise ExportError(f"{name}: torch cannot export this model: {_cause(error)}") from error
    assert program is not None
    model = program.model_proto
    _name_dimensions(model, inputs + outputs)
    _strip(model)
    _check(model, name, inputs, outputs)
    write_atomic(path, model.SerializeToString())
    described = describe_onnx(path, name, "float32")
    _run_shapes(described, feeds)
    return described


class _InOrder(nn.Module):
    """The module, its keyword arguments by place: names such as `past_key_values.0.key` cannot stand in a signature."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *tensors: Tensor) -> Any:
        return self.module(**dict(zip(self.names, tensors, strict=True)))


def _name_dimensions(model: onnx.ModelProto, specs: list[TensorSpec]) -> None:
    """The exporter invents names such as s43; the reader of a bundle gets "batch" and "sequence"."""
    renamed: dict[str, str] = {}
    by_name = {spec.name: spec for spec in specs}
    for value in [*model.graph.input, *model.graph.output]:
        spec = by_name.get(value.name)
        dimensions = value.type.tensor_type.shape.dim
        if spec is None or len(dimensions) != len(spec.shape):
            continue  # _check refuses a graph whose interface is not the declared one
        for dimension, size in zip(dimensions, spec.shape, strict=True):
            if isinstance(size, str):
                renamed[dimension.dim_param] = size
                dimension.dim_param = size
            else:
                dimension.dim_value = size
    for value in model.graph.value_info:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in renamed:
                dimension.dim_param = renamed[dimension.dim_param]


def _strip(model: onnx.ModelProto) -> None:
    """Removes what the exporter notes for its own debugging: source paths of this machine, a fifth of a small file."""
    model.doc_string = ""
    del model.metadata_props[:]
    for part in [model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info]:
        part.doc_string = ""
        del part.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    drop_shapes_of_weights(model)


def drop_shapes_of_weights(model: onnx.ModelProto) -> None:
    """A weight says its own shape; said twice, the quantizer, which transposes weights, leaves the second behind."""
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)


def _check(model: onnx.ModelProto, name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
    # An output name that the graph already uses makes a cyclic model without any error from the exporter.
    produced = [output for node in model.graph.node for output in node.output if output]
    if len(produced) != len(set(produced)):
        raise ExportError(f"{name}: the exported graph produces a value twice; an output name collides with one inside")
    got = ([value.name for value in model.graph.input], [value.name for value in model.graph.output])
    expected = ([spec.name for spec in inputs], [spec.name for spec in outputs])
    if got != expected:
        raise ExportError(f"{name}: expected inputs and outputs {expected}, the exported graph has {got}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{name}: the exported graph is not valid: {str(error).splitlines()[0]}") from None


def _run_shapes(model: OnnxModel, feeds: list[Feed]) -> None:
    session = open_session(model.path)
    for feed in feeds:
        shapes = {name: array.shape for name, array in feed.items()}
        try:
            outputs = run_one(session, feed)
        except BundleError as error:
            raise ExportError(f"{model.name}: the exported graph does not take {shapes}: {error}") from None
        batch = next(iter(feed.values())).shape[0]
        if any(output.shape[0] != batch for output in outputs):
            raise ExportError(
                f"{model.name}: the exported graph gives {outputs[0].shape} for {shapes}: the batch is fixed in it"
            )


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
