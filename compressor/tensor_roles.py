"""The tensors that an ONNX model holds, wherever they lie in it, and what they are to the operators that read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from compressor.onnx_file import bodies_of, nodes_in
from compressor.quantized_operators import QUANTIZED

TABLES, LINEAR, CONVOLUTION = "embedding tables", "linear weights", "convolution weights"
CODING, OTHER = "scales and zero points", "biases and constants"
WEIGHTS = (TABLES, LINEAR, CONVOLUTION)
_TRANSPARENT = ("DequantizeLinear", "Transpose", "Reshape", "Cast")
# What an operator does with its weights, and which of its inputs they are.
_WEIGHT_OF = {
    "Gather": (TABLES, (0,)),
    "GatherBlockQuantized": (TABLES, (0,)),
    "MatMul": (LINEAR, (1,)),
    "Gemm": (LINEAR, (1,)),
    "EmbedLayerNormalization": (TABLES, (2, 3, 4)),
    "QEmbedLayerNormalization": (TABLES, (2, 3, 4)),
    "Attention": (LINEAR, (1,)),
    "MatMulInteger": (LINEAR, (1,)),
    "DynamicQuantizeMatMul": (LINEAR, (1,)),
    "MatMulIntegerToFloat": (LINEAR, (1,)),
    "MatMulNBits": (LINEAR, (1,)),
    "MatMulNBitsMlp": (LINEAR, (3, 6)),
    "MatMulNBitsQkv": (LINEAR, (3, 6, 9)),
    "MatMulBnb4": (LINEAR, (1,)),
    "MatMulFpQ4": (LINEAR, (1,)),
    "DynamicQuantizeLSTM": (LINEAR, (1, 2)),
    "QAttention": (LINEAR, (1,)),
    "QGemm": (LINEAR, (3,)),
    "QMoE": (LINEAR, (2, 5, 8)),
    "QLinearMatMul": (LINEAR, (3,)),
    "Conv": (CONVOLUTION, (1,)),
    "ConvInteger": (CONVOLUTION, (1,)),
    "QLinearConv": (CONVOLUTION, (3,)),
}


@dataclass(frozen=True)
class Held:
    """A tensor of a model: an initialiser, or what a Constant gives; `in_body`: it lies in one of an If, Loop or Scan.

    `value` is what nodes read it by within its `scope`: a function, or "", the graph and the bodies in it.
    """

    scope: str
    value: str
    tensor: onnx.TensorProto
    in_body: bool

    @property
    def name(self) -> str:
        return f"{self.scope}{self.value}"


def held_tensors(model: onnx.ModelProto) -> Iterator[Held]:
    """In the order of the file; the graph's initialisers first."""
    yield from (Held("", tensor.name, tensor, False) for tensor in model.graph.initializer)
    for scope, part in _scopes(model).items():
        yield from _held_by(part.node, scope, in_body=False)


def _held_by(nodes: Iterable[onnx.NodeProto], scope: str, *, in_body: bool) -> Iterator[Held]:
    for node in nodes:
        if node.op_type == "Constant":
            given = (attribute.t for attribute in node.attribute if attribute.HasField("t"))
            yield from (Held(scope, node.output[0], tensor, in_body) for tensor in given)
        for body in bodies_of(node):
            yield from (Held(scope, tensor.name, tensor, True) for tensor in body.initializer)
            yield from _held_by(body.node, scope, in_body=True)


class Readers:
    """Who reads a value, and what it is to them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._functions = {_scope(one.domain, one.name): one for one in model.functions}
        self._readers: dict[tuple[str, str], list[onnx.NodeProto]] = defaultdict(list)
        self._read_in_bodies: set[tuple[str, str]] = set()
        self._given = {("", value.name) for value in model.graph.output}
        self._given.update((scope, value) for scope, one in self._functions.items() for value in one.output)
        for scope, part in _scopes(model).items():
            for node in nodes_in(part.node):
                for value in node.input:
                    self._readers[scope, value].append(node)
                for body in bodies_of(node):
                    self._given.update((scope, value.name) for value in body.output)
                    self._read_in_bodies.update((scope, value) for inner in body.node for value in inner.input)

    def names(self, held: Held) -> tuple[str, ...]:
        """Of the nodes that read a tensor; "output" where it is what a graph, a body or a function gives."""
        place = held.scope, held.value
        nodes = {f"{node.op_type} {node.name}".strip() for node in self._readers.get(place, ())}
        return tuple(sorted(nodes)) + ("output",) * (place in self._given)

    def keeps_float32(self, held: Held) -> bool:
        """Whether it lies in a body of If, Loop or Scan, or is read there: no quantizer changes it."""
        return held.in_body or (held.scope, held.value) in self._read_in_bodies

    def weighing(self, held: Held) -> list[onnx.NodeProto]:
        """The nodes that read it, seen through transposes and calls of functions; none where one of them has it for
        something else than a weight.
        """
        found = self._weighing(held.scope, held.value)
        return [] if None in found else [node for node in found if node is not None]

    def _weighing(self, scope: str, value: str) -> list[onnx.NodeProto | None]:
        found: list[onnx.NodeProto | None] = [None] * ((scope, value) in self._given)
        for node in self._readers.get((scope, value), ()):
            if (called := _scope(node.domain, node.op_type)) in self._functions:
                for inner, given in zip(self._functions[called].input, node.input, strict=False):
                    if given == value:
                        found += self._weighing(called, inner)
            elif node.op_type == "Transpose":
                found += self._weighing(scope, node.output[0])
            else:
                weighs = node.op_type in _WEIGHT_OF and value in _weights_of(node)
                found.append(node if weighs else None)
        return found

    def role(self, held: Held) -> tuple[str, int | None]:
        """What a tensor is to the operators that read it, seen through casts, de-quantization and calls of functions;
        and of codes in blocks, their bits.
        """
        return self._role(held.scope, held.value)

    def _role(self, scope: str, value: str) -> tuple[str, int | None]:
        for node in self._readers.get((scope, value), ()):
            if (called := _scope(node.domain, node.op_type)) in self._functions:
                for inner, given in zip(self._functions[called].input, node.input, strict=False):
                    if given == value and (found := self._role(called, inner))[0] != OTHER:
                        return found
            elif node.op_type in _TRANSPARENT:
                if node.input[0] != value:
                    return CODING if node.op_type == "DequantizeLinear" else OTHER, None
                if (found := self._role(scope, node.output[0]))[0] != OTHER:
                    return found
            elif node.op_type in _WEIGHT_OF and value in _weights_of(node):
                bits = next((entry.i for entry in node.attribute if entry.name == "bits"), None)
                return _WEIGHT_OF[node.op_type][0], bits
            elif node.op_type in QUANTIZED:
                return CODING, None
        return OTHER, None


def _weights_of(node: onnx.NodeProto) -> list[str]:
    return [node.input[position] for position in _WEIGHT_OF[node.op_type][1] if position < len(node.input)]


def _scopes(model: onnx.ModelProto) -> dict[str, onnx.GraphProto | onnx.FunctionProto]:
    return {"": model.graph, **{_scope(one.domain, one.name): one for one in model.functions}}


def _scope(domain: str, function: str) -> str:
    return f"{domain}.{function}/"
