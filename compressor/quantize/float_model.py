"""A float32 ONNX file as quantizers take it: whole, its weights in the open, its nodes with names of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.inliner import inline_local_functions

from compressor.errors import QuantizationError
from compressor.onnx_file import MOST_BYTES, nodes_in, opset_of, read_onnx, reads_of, without_constant_inputs
from compressor.quantize.sites import find_sites, turns
from compressor.quantized_operators import QUANTIZED

# Per-channel QuantizeLinear came with 13.
_OLDEST_OPSET = 13


def load_float_model(path: Path) -> onnx.ModelProto:
    """The model, whole, each node with a name of its own: functions inlined; Constant nodes, and matrices that are only
    read transposed, as initializers.

    Raises QuantizationError where it cannot be quantized: not ONNX, an opset before 13, quantized already, weights that
    are not finite, or beyond what fits into one file.
    """
    model = read_onnx(path, QuantizationError)
    without_constant_inputs(model)
    opset = opset_of(model)
    if opset < _OLDEST_OPSET:
        raise QuantizationError(
            f"{path}: opset {opset}; quantization per channel needs {_OLDEST_OPSET} or newer: export the model again,"
            " or raise it with onnx.version_converter"
        )
    nodes = [*nodes_in(model.graph.node), *(node for function in model.functions for node in nodes_in(function.node))]
    if found := sorted({node.op_type for node in nodes}.intersection(QUANTIZED)):
        raise QuantizationError(f"{path}: is quantized already ({', '.join(found)}); give the float32 model")
    if model.ByteSize() > MOST_BYTES:
        raise QuantizationError(f"{path}: {model.ByteSize():,} bytes; at most {MOST_BYTES:,} fit into one ONNX file")
    if model.functions:
        model = inline_local_functions(model)
    _hold_constants(model.graph)
    _turn_weights(model)
    _name_nodes(model)
    _check_finite(path, model)
    return model


def _hold_constants(graph: onnx.GraphProto) -> None:
    """Makes initializers of the tensors in Constant nodes."""
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        if node.op_type != "Constant" or value is None or node.output[0] in outputs:
            kept.append(node)
            continue
        graph.initializer.add().CopyFrom(value)
        graph.initializer[-1].name = node.output[0]
    _keep(graph, kept)


def _turn_weights(model: onnx.ModelProto) -> None:
    """Transposes matrices that a Transpose alone reads."""
    graph = model.graph
    read = reads_of(graph)
    matrices = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    shapes = {name: tuple(tensor.dims) for name, tensor in matrices.items() if read[name] == 1}
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        if not turns(node, shapes) or node.output[0] in outputs:
            kept.append(node)
            continue
        tensor = matrices[node.input[0]]
        turned = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
        tensor.CopyFrom(numpy_helper.from_array(turned, node.output[0]))
    _keep(graph, kept)


def _keep(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    if len(nodes) < len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Gives a name to each node that has none, or another's."""
    seen = {""}
    for number, node in enumerate(model.graph.node):
        if node.name in seen:
            node.name = f"{node.name or node.op_type}_{number}"
        while node.name in seen:
            node.name += "_"
        seen.add(node.name)


def _check_finite(path: Path, model: onnx.ModelProto) -> None:
    """A weight that is not finite has no scale, and what it multiplies is lost in float32 as well."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for site in find_sites(model):
        numbers = numpy_helper.to_array(tensors[site.weight])
        if lost := numbers.size - int(np.isfinite(numbers).sum()):
            raise QuantizationError(
                f"{path}: {site.weight}, the weight of {site.node}: {lost:,} of its {numbers.size:,} numbers are NaN"
                " or infinite; expected finite ones: train or export the model again"
            )
