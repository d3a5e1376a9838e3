"""What a student is trained in: a mixture of precisions, and how each node rounds in the file that is written.

Where integers lie is decided by `int8.py` alone: what it has written for the untrained weights is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compressor.certificate import Certificate
from compressor.errors import QuantizationError
from compressor.preprocess import Feed
from compressor.quantize.int8 import to_static
from compressor.quantize.mixer import certify, write_opened
from compressor.quantize.products import Graph, find_products
from compressor.quantize.saturation import can_narrow
from compressor.quantize.sites import Site, is_plain, turned_weights
from compressor.quantize.thresholds import Range
from compressor.quantize.weight_only import quantize_weights
from compressor.recipe_quantize import NodePrecision

_STATIC: NodePrecision = "static-int8"
_KNOWN: tuple[NodePrecision, ...] = ("float32", _STATIC, "weight-int8", "weight-int4")


@dataclass(frozen=True)
class Affine:
    """Activations in 8 bits: number = (code - zero point) x scale, the scale a float32; `codes`: least and largest."""

    scale: float
    zero_point: int
    codes: tuple[int, int] = (0, 255)


@dataclass(frozen=True)
class Static:
    """How a node in static int8 rounds: the activations that it `reads`, a table none, and what it `gives` (None: what
    it gives stays float32, or whoever reads it rounds it so); `bias`: whether it adds int32; `narrow`: its weights are
    such that no two products exceed 16 bits.
    """

    reads: Affine | None
    gives: Affine | None
    bias: bool
    narrow: bool


@dataclass(frozen=True)
class Target:
    """A float32 graph and the precision of every site in it, by node: float32, static-int8, weight-int8, weight-int4.

    `block`: how many weights share a scale in blocks. `ranges` of activations, by tensor. `same_everywhere`: weights of
    static int8 are narrow wherever two products could exceed 16 bits.
    """

    source: onnx.ModelProto
    sites: tuple[Site, ...]
    chosen: Mapping[str, NodePrecision]
    block: int
    ranges: Mapping[str, Range]
    same_everywhere: bool

    def __post_init__(self) -> None:
        for site in self.sites:
            if (precision := self.chosen[site.node]) not in _KNOWN:
                raise QuantizationError(
                    f"{site.node}: no student is trained in {precision}; expected one of {', '.join(_KNOWN)} in"
                    " quantize.overrides"
                )

    @cached_property
    def written(self) -> onnx.ModelProto:
        """The quantized model, before weights are narrowed. Raises QuantizationError."""
        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        if nodes := [site.node for site in self._static_sites()]:
            for node in nodes:
                _check_plain(self._nodes[node])
            model = to_static(model, nodes, "static-int8", self.ranges, trained=True)
        quantize_weights(model, self.sites, self.chosen, self.block)
        return model

    @cached_property
    def static(self) -> Mapping[str, Static]:
        """How every node in static int8 rounds. Raises QuantizationError where a student could not do as it does."""
        return _Reading(self.written, self._static_sites(), self.same_everywhere).all()

    def ship(self, path: Path, feeds: Sequence[Feed]) -> Certificate:
        """Writes the model that rounds as `static` has it, and beside it its certificate, its products tried on
        `feeds`. Raises QuantizationError.
        """
        write_opened(self.written, path)
        narrow = {node for node, rounding in self.static.items() if rounding.narrow}
        products = find_products(Graph(self.written))[0]
        weights = {product.weights for product in products if product.node.name in narrow}
        return certify(path, feeds, narrow=self.same_everywhere, before=weights)

    def weight(self, site: Site) -> NDArray[np.float32]:
        """A site's weight, a row for each output channel (of a table: for each entry)."""
        tensor = next(tensor for tensor in self.source.graph.initializer if tensor.name == site.weight)
        array = numpy_helper.to_array(tensor)
        if site.operator in ("Gather", "Conv"):
            return array
        node = self._nodes[site.node]
        rows_first = _is_transposed(node) != (node.input[1] in turned_weights(self.source))
        return array if rows_first else np.ascontiguousarray(array.T)

    @cached_property
    def _nodes(self) -> dict[str, onnx.NodeProto]:
        return {node.name: node for node in self.source.graph.node}

    def _static_sites(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if self.chosen[site.node] == _STATIC)


class _Reading:
    """How nodes round in a quantized model, whose sites have the names that they had before."""

    def __init__(self, model: onnx.ModelProto, sites: tuple[Site, ...], narrow: bool) -> None:
        self._graph, self._outputs = Graph(model), {value.name for value in model.graph.output}
        self._sites = {site.node: site for site in sites}
        self._nodes = {node.name: node for node in self._graph.nodes}
        products = find_products(self._graph)[0] if narrow else []
        self._narrow = {product.node.name for product in products if can_narrow(self._graph, product)}

    def all(self) -> dict[str, Static]:
        found = {node: self._one(self._nodes[node], site) for node, site in self._sites.items()}
        for node in self._graph.nodes:
            if node.op_type == "QuantizeLinear":
                self._check_known(node)
        return found

    def _one(self, node: onnx.NodeProto, site: Site) -> Static:
        weight = self._graph.dequantized(node.input[0 if site.operator == "Gather" else 1])
        if weight is None or weight.input[0] not in self._graph.initializers:
            raise _not_trained(node.name, "its weights are quantized anew in every inference, as those of a table are")
        if site.operator == "Gather":  # its entries are rounded already
            return Static(None, None, bias=False, narrow=False)
        reads = self._graph.dequantized(node.input[0])
        if reads is None:
            raise _not_trained(node.name, "what it reads is not rounded")
        bias = len(node.input) > 2 and self._graph.dequantized(node.input[2]) is not None
        return Static(self._affine(reads), self._given(node), bias, node.name in self._narrow)

    def _given(self, node: onnx.NodeProto) -> Affine | None:
        """As what a node's output is rounded for others than the sites, which round what they read."""
        for quantizer in self._graph.readers.get(node.output[0], []):
            if quantizer.op_type == "QuantizeLinear" and not self._for_sites_alone(quantizer):
                return self._affine(quantizer)
        return None

    def _check_known(self, quantizer: onnx.NodeProto) -> None:
        """A student rounds what its modules read and give. What else is rounded must have been so before."""
        source = self._graph.producers.get(quantizer.input[0])
        if self._for_sites_alone(quantizer):
            return
        if source is not None:
            before = self._graph.dequantized(source.input[0])
            site = self._sites.get(source.name)
            if site is not None and site.operator != "Gather":
                return
            if before is not None and self._affine(before) == self._affine(quantizer):
                return
        others = [reader for reader in self._readers_of_numbers(quantizer) if reader not in self._sites]
        while source is not None and source.name not in self._sites:
            source = self._graph.producers.get(source.input[0])
        name = quantizer.input[0] if source is None else source.name
        raise _not_trained(name, f"what comes of it is rounded for {others[0]}, and no module rounds it")

    def _for_sites_alone(self, quantizer: onnx.NodeProto) -> bool:
        return all(name in self._sites for name in self._readers_of_numbers(quantizer))

    def _readers_of_numbers(self, quantizer: onnx.NodeProto) -> list[str]:
        """The nodes that read what a QuantizeLinear's codes stand for, and the graph's outputs among that."""
        numbers = [node.output[0] for node in self._graph.readers.get(quantizer.output[0], [])]
        nodes = [node.name for name in numbers for node in self._graph.readers.get(name, [])]
        return [*nodes, *self._outputs.intersection(numbers)]

    def _affine(self, node: onnx.NodeProto) -> Affine:
        """Of a QuantizeLinear or a DequantizeLinear."""
        scale, zero_point = (self._graph.array(name) for name in node.input[1:3])
        limits = np.iinfo(zero_point.dtype)
        return Affine(float(scale.reshape(())), int(zero_point.reshape(())), (int(limits.min), int(limits.max)))


def _not_trained(node: str, why: str) -> QuantizationError:
    return QuantizationError(
        f"{node}: {why}, so that no student can be trained in it; set quantize.overrides to {{{node}: float32}}"
    )


def _is_transposed(node: onnx.NodeProto) -> bool:
    """Whether a product reads its second operand a row for each output."""
    return any(entry.name == "transB" and entry.i for entry in node.attribute)


def _check_plain(node: onnx.NodeProto) -> None:
    if not is_plain(node):
        raise _not_trained(node.name, "it is a Gemm with alpha, beta or transA")
