"""A dynamic product in one node, where onnxruntime's quantizer writes four."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto, helper

from compressor.onnx_file import CONTRIB, import_contrib, reads_of
from compressor.quantize.products import Graph


def merge_products(model: onnx.ModelProto) -> None:
    """Makes one MatMulIntegerToFloat of each product as onnxruntime's quantizer writes it, in place; it has the name of
    the MatMulInteger, and gives what the last Mul gave:

        Cast(MatMulInteger(activations, weights)) * (scale of the activations * scale of the weights)

    A product stays as it is where anything else reads a value in between; and where a bias is added right behind: as
    onnxruntime opens the file, it makes one node of such a product with its bias, but not of the merged one and an Add.
    """
    graph, reads = Graph(model), reads_of(model.graph)
    gone: set[str] = set()
    for product in graph.nodes:
        if product.op_type != "MatMulInteger" or (parts := _parts(graph, reads, product)) is None:
            continue
        cast, scales, last = parts
        gone.update((product.output[0], cast.output[0], scales.output[0]))
        # All that it reads is there before the last of the four.
        last.CopyFrom(_merged(graph, product, scales, last.output[0]))
    for place in reversed(range(len(model.graph.node))):
        if gone.intersection(model.graph.node[place].output):
            del model.graph.node[place]
    if gone:
        import_contrib(model)


def _parts(
    graph: Graph, reads: Counter[str], product: onnx.NodeProto
) -> tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto] | None:
    """The Cast, the Mul of the scales and the Mul of both; None where these are not what the product goes into."""
    quantizer = graph.producers.get(product.input[0])
    cast = _reader(graph, reads, product, "Cast")
    last = None if cast is None else _reader(graph, reads, cast, "Mul")
    if quantizer is None or quantizer.op_type != "DynamicQuantizeLinear" or cast is None or last is None:
        return None
    (factor,) = (value for value in last.input if value != cast.output[0])
    scales = graph.producers.get(factor)
    if scales is None or scales.op_type != "Mul" or reads[factor] != 1:
        return None
    constants = [value for value in scales.input if value in graph.initializers]
    fits = len(constants) == 1 and quantizer.output[1] in scales.input and graph.integers(product.input[1])
    to_float = any(one.name == "to" and one.i == TensorProto.FLOAT for one in cast.attribute)
    return (cast, scales, last) if fits and to_float and not _adds_bias(graph, last) else None


def _reader(graph: Graph, reads: Counter[str], node: onnx.NodeProto, operator: str) -> onnx.NodeProto | None:
    """What alone reads a node's output, if it is this operator."""
    readers = graph.readers.get(node.output[0], [])
    alone = len(readers) == 1 and reads[node.output[0]] == 1
    return readers[0] if alone and readers[0].op_type == operator else None


def _adds_bias(graph: Graph, last: onnx.NodeProto) -> bool:
    readers = graph.readers.get(last.output[0], [])
    added = readers[0].input if len(readers) == 1 and readers[0].op_type == "Add" else ()
    return any(value in graph.initializers for value in added)


def _merged(graph: Graph, product: onnx.NodeProto, scales: onnx.NodeProto, output: str) -> onnx.NodeProto:
    activations, weights, zero_point, weights_zero_point = [*product.input, "", ""][:4]
    of_weights = next(value for value in scales.input if value in graph.initializers)
    of_activations = next(value for value in scales.input if value != of_weights)
    inputs = [activations, weights, of_activations, of_weights, zero_point, weights_zero_point]
    return helper.make_node("MatMulIntegerToFloat", inputs, [output], name=product.name, domain=CONTRIB)
