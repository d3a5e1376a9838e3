"""Where a graph can be quantized: its products with constant weights, its convolutions, its tables."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from compressor.errors import QuantizationError
from compressor.onnx_file import opset_of, read_onnx, without_constant_inputs
from compressor.recipe_quantize import NodePrecision

# Per-channel QuantizeLinear came with 13.
_OLDEST_OPSET = 13
# The most that protobuf writes into one file.
_MOST_BYTES = 2**31 - 1

_PRODUCTS: tuple[NodePrecision, ...] = (
    "dynamic-int8", "static-int8", "static-int16", "weight-int8", "weight-int4", "float16", "bfloat16"
)  # fmt: skip
_APPLICABLE: dict[str, tuple[NodePrecision, ...]] = {
    "MatMul": _PRODUCTS,
    "Gemm": _PRODUCTS,
    "Gather": _PRODUCTS,
    # Dynamic int8 makes it a ConvInteger, which no CPU that we know runs faster than float32.
    "Conv": ("static-int8", "static-int16", "float16", "bfloat16"),
}
_WEIGHT_INPUT = {"MatMul": 1, "Gemm": 1, "Gather": 0, "Conv": 1}


@dataclass(frozen=True)
class Site:
    """A node that can be quantized: its name and operator, its weight and that one's shape."""

    node: str
    operator: str
    weight: str
    shape: tuple[int, ...]


def load_float_model(path: Path) -> onnx.ModelProto:
    """The model, whole, each node with a name of its own.

    Raises QuantizationError where it cannot be quantized: not ONNX, an opset before 13, quantized already, or beyond
    what fits into one file.
    """
    model = read_onnx(path, QuantizationError)
    without_constant_inputs(model)
    opset = opset_of(model)
    if opset < _OLDEST_OPSET:
        raise QuantizationError(
            f"{path}: opset {opset}; quantization per channel needs {_OLDEST_OPSET} or newer: export the model again,"
            " or raise it with onnx.version_converter"
        )
    if found := sorted({node.op_type for node in model.graph.node if _is_quantized(node)}):
        raise QuantizationError(f"{path}: is quantized already ({', '.join(found)}); give the float32 model")
    if model.ByteSize() > _MOST_BYTES:
        raise QuantizationError(f"{path}: {model.ByteSize():,} bytes; at most {_MOST_BYTES:,} fit into one ONNX file")
    _name_nodes(model)
    return model


def find_sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    """In the order of the graph; of the graph itself, not of the bodies of If, Loop and Scan, which stay float32."""
    weights, turned = _float_weights(model), turned_weights(model)
    found = []
    for node in model.graph.node:
        position = _WEIGHT_INPUT.get(node.op_type)
        if position is None or node.domain not in ("", "ai.onnx") or len(node.input) <= position:
            continue
        weight = turned.get(node.input[position], node.input[position])
        if weight in weights and len(weights[weight]) >= 2:
            found.append(Site(node.name, node.op_type, weight, weights[weight]))
    return tuple(found)


def assign(
    sites: tuple[Site, ...], uniform: NodePrecision, overrides: Mapping[str, NodePrecision]
) -> dict[str, NodePrecision]:
    """A precision for every site, by its node: `uniform` where it applies, else float32; then `overrides`, whose keys
    are operators or nodes, a node's own before its operator's.

    Raises QuantizationError for a key that is neither in this graph, or a precision that does not apply there.
    """
    by_node = {site.node: site for site in sites}
    operators = {site.operator for site in sites}
    for key, precision in overrides.items():
        if key not in by_node and key not in operators:
            raise QuantizationError(_unknown(key, sites))
        operator = by_node[key].operator if key in by_node else key
        if not applies(precision, operator):
            raise QuantizationError(
                f"quantize.overrides: {key}: {precision} does not apply to {operator}; expected float32 or one of"
                f" {', '.join(_APPLICABLE[operator])}"
            )
    chosen: dict[str, NodePrecision] = {}
    for site in sites:
        applied: NodePrecision = uniform if applies(uniform, site.operator) else "float32"
        chosen[site.node] = overrides.get(site.node, overrides.get(site.operator, applied))
    return chosen


def applies(precision: NodePrecision, operator: str) -> bool:
    """Whether nodes of this operator can have this precision."""
    return precision == "float32" or precision in _APPLICABLE[operator]


def applicable_operators(precision: NodePrecision) -> tuple[str, ...]:
    """The operators that `precision` applies to."""
    return tuple(operator for operator, precisions in _APPLICABLE.items() if precision in precisions)


def turned_weights(model: onnx.ModelProto) -> dict[str, str]:
    """Values that are a float32 matrix transposed, and that matrix: a table, for the product that shares it."""
    weights = _float_weights(model)
    return {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Transpose" and len(weights.get(node.input[0], ())) == 2
    }


def _float_weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def _is_quantized(node: onnx.NodeProto) -> bool:
    return any(part in node.op_type for part in ("Quantize", "Integer", "QLinear", "NBits"))


def _name_nodes(model: onnx.ModelProto) -> None:
    """Gives a name to each node that has none, or another's."""
    seen = {""}
    for number, node in enumerate(model.graph.node):
        if node.name in seen:
            node.name = f"{node.name or node.op_type}_{number}"
        while node.name in seen:
            node.name += "_"
        seen.add(node.name)


def _unknown(key: str, sites: tuple[Site, ...]) -> str:
    names = sorted({site.operator for site in sites}) + [site.node for site in sites]
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(names[:8])}"
    return f"quantize.overrides: no operator or node {key!r} that can be quantized is in this graph{hint}"
