"""Bias correction: rounding moves the mean of what a product gives, and its bias takes that back.

Nagel et al. 2019, arXiv 1906.04721, section 4.2: E[y~] = E[y] + E[e x], so E[e x] is subtracted from the bias. Here it
is measured on calibration inputs, for each product alone: what the float32 model feeds it, rounded and not. So one
sweep finds the errors of all of them, and the correction of one does not depend on which others are quantized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compressor.onnx_file import reads
from compressor.preprocess import Feed
from compressor.quantize.channels import means
from compressor.quantize.products import Graph
from compressor.quantize.seams import PRODUCTS, attribute

# Operators that add a vector to an input: which inputs, and which one is the vector.
_ADDERS: dict[str, tuple[tuple[int, ...], int]] = {
    "BiasGelu": ((0,), 1),
    "FastGelu": ((0,), 1),
    "SkipLayerNormalization": ((0, 1), 4),
    "SkipSimplifiedLayerNormalization": ((0, 1), 3),
}
_HEADS_BIAS = 3  # of MultiHeadAttention, for query, key and value one after the other


def bias_errors(
    model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Iterable[Feed]
) -> dict[str, NDArray[np.float64]]:
    """By how much rounding moves the mean of each output channel of the QDQ products in `quantized`, made of the
    float32 `model`, by node: [channels]. Raises QuantizationError where it does not run.
    """
    both, rounded = onnx.ModelProto(), Graph(quantized)
    both.CopyFrom(model)
    twins = {node.name: node for node in rounded.nodes}
    pairs: dict[str, tuple[str, str]] = {}
    axes: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS and node.name in twins:
            value = _append_rounded(both, node, twins[node.name], rounded)
            if value is not None:
                pairs[node.name] = value, node.output[0]
                axes |= dict.fromkeys(pairs[node.name], 1 if node.op_type == "Conv" else -1)
    if not pairs:
        return {}
    found = means(both, axes, feeds)
    return {name: found[value] - found[exact] for name, (value, exact) in pairs.items()}


def correct(model: onnx.ModelProto, errors: Mapping[str, NDArray[np.float64]]) -> onnx.ModelProto:
    """A copy of the model with these subtracted from the biases of their nodes. A convolution or a Gemm without a bias
    gets one; a MatMul has it in what reads it, or is left as it is: an Add of its own would be another node.
    """
    corrected = onnx.ModelProto()
    corrected.CopyFrom(model)
    graph = Graph(corrected)
    readers = Counter(name for node in graph.nodes for name in reads(node))
    for node in graph.nodes:
        place = _bias_of(graph, node) if node.name in errors else None
        if place is None:
            continue
        holder, position = place
        error = errors[node.name]
        old = [*holder.input, ""][position]
        bias = graph.array(old) if old else np.zeros(error.shape, np.float32)
        # Its own name where nothing else reads it, since each name is in the file several times.
        name = old if old and readers[old] == 1 else f"{node.name}_bias"
        tensor = numpy_helper.from_array(np.asarray(bias - error.reshape(bias.shape), np.float32), name)
        if name == old:
            graph.initializers[name].CopyFrom(tensor)
        else:
            corrected.graph.initializer.append(tensor)
            holder.input[position:] = [name, *holder.input[position + 1 :]]
    return corrected


def _append_rounded(both: onnx.ModelProto, node: onnx.NodeProto, twin: onnx.NodeProto, rounded: Graph) -> str | None:
    """Adds the product once more, as its twin has it, on what the float32 product reads; the name of what it gives."""
    activations, weights = (rounded.dequantized(value) for value in twin.input[:2])
    quantizer = rounded.producers.get(activations.input[0]) if activations is not None else None
    # Weights may be quantized as they are read: those of a table, turned.
    if activations is None or weights is None or quantizer is None or weights.input[0] not in rounded.initializers:
        return None
    prefix, graph = f"{node.name}_rounded", both.graph
    known = {tensor.name for tensor in graph.initializer}
    needed = (*quantizer.input[1:], *activations.input[1:], *weights.input)
    graph.initializer.extend(rounded.initializers[name] for name in dict.fromkeys(needed) if name not in known)
    copies = []
    for source in (quantizer, activations, weights, node):
        copy = graph.node.add()
        copy.CopyFrom(source)
        copy.name, copy.output[0] = f"{prefix}_{source.name}", f"{prefix}_{source.output[0]}"
        copies.append(copy)
    first, second, third, product = copies
    first.input[0], second.input[0] = node.input[0], first.output[0]
    product.input[0], product.input[1] = second.output[0], third.output[0]
    value: str = product.output[0]
    return value


def _bias_of(graph: Graph, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
    """The node and the input of it that add a vector to this product's output."""
    outputs = graph.array(node.input[1]).shape[0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1]
    if node.op_type == "MatMul":
        found = _adder(graph, node)
    else:
        found = None if any(one.name == "beta" and one.f != 1 for one in node.attribute) else (node, 2)
        if found is not None and not [*node.input, "", ""][2]:
            return found
    if found is None or len(found[0].input) <= found[1]:
        return None
    tensor = graph.initializers.get(found[0].input[found[1]])
    return found if tensor is not None and tensor.dims[-1:] == [outputs] and np.prod(tensor.dims) == outputs else None


def _adder(graph: Graph, product: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
    """What alone reads the product, if it adds something, and which input that is."""
    values, readers = [product.output[0]], graph.readers.get(product.output[0], [])
    if len(readers) == 1 and readers[0].op_type == "Split":
        values = list(readers[0].output)
        readers = [one for value in values for one in graph.readers.get(value, [])]
        heads = readers and readers[0].op_type == "MultiHeadAttention" and list(readers[0].input[:3]) == values
        return (readers[0], _HEADS_BIAS) if heads and len(readers) == len(values) else None
    if len(readers) != 1:
        return None
    reader = readers[0]
    if reader.op_type == "Add":
        return reader, 1 if reader.input[0] == values[0] else 0
    inputs, vector = _ADDERS.get(reader.op_type, ((), 0))
    return (reader, vector) if any(reader.input[place] == values[0] for place in inputs) else None
