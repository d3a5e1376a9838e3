"""Integer products by onnxruntime's quantizer: dynamic int8, and static QDQ in given ranges."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.version_converter
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

from compressor.onnx_file import opset_of, sort_nodes
from compressor.progress import without_chatter
from compressor.quantize.carried import as_pool, carried
from compressor.quantize.merged import merge_products
from compressor.quantize.products import Graph
from compressor.quantize.thresholds import Range
from compressor.quantize.zero_points import drop_zero_points

StaticPrecision = Literal["static-int8", "static-int16"]

OPERATORS = ["MatMul", "Gemm", "Gather", "Conv"]
_ACTIVATIONS = {"static-int8": QuantType.QUInt8, "static-int16": QuantType.QUInt16}
_OPSET_OF_INT16 = 21  # where QuantizeLinear gives 16 bits
_OPTIONS = {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT}


def to_dynamic_int8(model: onnx.ModelProto, nodes: Sequence[str]) -> onnx.ModelProto:
    """`model` with these nodes in dynamic int8: activations are scaled per inference. int8 weights per channel.

    A product is one MatMulIntegerToFloat, or with a bias what onnxruntime's quantizer writes: see `merge_products`.
    """
    renamed = _unlike_gemms(model)
    with tempfile.TemporaryDirectory() as folder, without_chatter():
        written = Path(folder) / "model.onnx"
        quantize_dynamic(
            renamed,
            written,
            op_types_to_quantize=OPERATORS,
            # A Gemm becomes a MatMul of this name and an Add.
            nodes_to_quantize=[name for node in nodes for name in (_as_named(node, model), f"{node}_MatMul")],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options=dict(_OPTIONS),
        )
        quantized = onnx.load(written)
    merge_products(quantized)
    sort_nodes(quantized)  # onnxruntime's quantizer does not look at what bodies read
    return quantized


def _unlike_gemms(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, or a copy without nodes that have the name of what onnxruntime makes of a Gemm."""
    if all(_as_named(node.name, model) == node.name for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.name = _as_named(node.name, model)
    return copy


def _as_named(node: str, model: onnx.ModelProto) -> str:
    """A node's name, another one where onnxruntime would give the same to a part of a Gemm."""
    taken = {one.name for one in model.graph.node}
    made = {f"{one.name}{part}" for one in model.graph.node if one.op_type == "Gemm" for part in ("_MatMul", "_Add")}
    while node in made:
        node += "_"
        while node in taken:
            node += "_"
    return node


def observed(model: onnx.ModelProto, nodes: Collection[str]) -> list[str]:
    """The operators whose inputs and outputs need a range where these nodes are static."""
    return [*OPERATORS, *sorted({node.op_type for node in carried(model, nodes)})]


def to_static(
    model: onnx.ModelProto,
    nodes: Sequence[str],
    precision: StaticPrecision,
    found: Mapping[str, Range],
    *,
    trained: bool = False,
) -> onnx.ModelProto:
    """`model` with these nodes in QDQ form: activations uint8 or uint16 in the range of each tensor; int8 weights per
    channel.

    What onnxruntime's quantize_static does once it has calibrated, in other places: what lies between convolutions
    passes integers on (`carried`), and matrix products give float32, which onnxruntime fuses too. As a student is
    `trained`, what lies between has no sums and pools, and no product is rounded before its bias is added.
    """
    if precision == "static-int16" and opset_of(model) < _OPSET_OF_INT16:
        model = onnx.version_converter.convert_version(model, _OPSET_OF_INT16)
    extremes = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
    with tempfile.TemporaryDirectory() as folder, without_chatter():
        written = Path(folder) / "model.onnx"
        prepared = save_and_reload_model_with_shape_infer(model)
        between = carried(prepared, nodes, computed=not trained)
        rounded = [*nodes, *(node.name for node in between)]
        float_outputs = ["Gemm", "MatMul"] if trained else _float_outputs(prepared, nodes)
        for node in between:
            as_pool(node)
        quantizer = QDQQuantizer(
            prepared,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=_ACTIVATIONS[precision],
            tensors_range=TensorsData(CalibrationMethod.MinMax, extremes),
            nodes_to_quantize=rounded,
            nodes_to_exclude=[],
            op_types_to_quantize=[*OPERATORS, *{node.op_type for node in between}],
            extra_options={**_OPTIONS, "OpTypesToExcludeOutputQuantization": float_outputs},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(written, False)
        quantized = onnx.load(written)
    kernels = {node.name for node in prepared.graph.node if node.op_type not in float_outputs}.intersection(rounded)
    _read_unrounded(quantized, {node.name for node in model.graph.node}, rounded, kernels)
    drop_zero_points(quantized)
    sort_nodes(quantized)
    return quantized


def _read_unrounded(
    model: onnx.ModelProto, known: Collection[str], rounded: Collection[str], kernels: Collection[str]
) -> None:
    """Lets what is not among the `rounded` nodes, such as a residual connection, read values before rounding; but not
    those of `kernels` that give integers. `known`: the nodes that were there before."""
    graph = Graph(model)
    for node in graph.nodes:
        quantizer = graph.producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantizer is None or node.name in known:
            continue
        source = graph.producers.get(quantizer.input[0])
        if source is not None and source.name in kernels:
            continue
        for reader in graph.readers.get(node.output[0], []):
            if reader.name not in rounded:
                for position, value in enumerate(reader.input):
                    if value == node.output[0]:
                        reader.input[position] = quantizer.input[0]


def _float_outputs(model: onnx.ModelProto, nodes: Collection[str]) -> list[str]:
    """The matrix products whose outputs need not be rounded. Of two dimensions, onnxruntime makes of a MatMul and the
    Add behind it one Gemm, in float32, unless there is a QuantizeLinear between them."""
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    products = {
        node.output[0]: ranks.get(node.output[0], 0)
        for node in model.graph.node
        if node.op_type == "MatMul" and node.name in nodes
    }
    summed = {name for node in model.graph.node if node.op_type == "Add" for name in node.input}
    return ["Gemm"] if any(rank < 3 for name, rank in products.items() if name in summed) else ["Gemm", "MatMul"]
