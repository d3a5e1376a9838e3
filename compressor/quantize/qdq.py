"""A mixture of precisions in QDQ form whose every rounding is known before it is written: a student can train in it.

Rounded are the activations that products and convolutions read, not what else reads them, and not what products give: a
residual stream stays float32. A convolution is the exception where nothing rounds its output further on, since
onnxruntime runs it in integers only between two roundings. onnxruntime's quantizer, which `int8.py` calls, rounds every
tensor that a product touches, for all that read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.errors import QuantizationError
from compressor.quantize.sites import Site, turned_weights
from compressor.quantize.weight_only import quantize_weights
from compressor.recipe import NodePrecision

Range = tuple[float, float]

MAX_INT8, MAX_UINT8 = 127, 255
MIN_INT32, MAX_INT32 = float(-(2**31)), float(2**31 - 128)  # the largest float32 below 2^31
_STATIC: NodePrecision = "static-int8"
_KNOWN: tuple[NodePrecision, ...] = ("float32", _STATIC, "weight-int8", "weight-int4")
_KEEPS_ROUNDING = ("Relu", "Clip")


@dataclass(frozen=True)
class Affine:
    """Activations in uint8: number = (code - zero point) x scale, the scale a float32."""

    scale: float
    zero_point: int

    @staticmethod
    def of(range_: Range) -> Affine:
        """The parameters that onnxruntime's quantizer takes for a range (`compute_scale_zp`); zero is always in it."""
        low, high = np.minimum(np.float32(range_[0]), 0), np.maximum(np.float32(range_[1]), 0)
        scale = (float(high) - float(low)) / MAX_UINT8
        if scale < np.finfo(np.float32).tiny:
            return Affine(1.0, 0)
        return Affine(float(np.float32(scale)), int(np.rint(-float(low) / scale)))


def int8_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 codes of `rows` [rows, ...], and the scale of each row: its largest magnitude is 127."""
    scales = np.abs(rows).reshape(len(rows), -1).max(1) / np.float32(MAX_INT8)
    scales[scales < np.finfo(np.float32).tiny] = 1
    each = scales.reshape(-1, *[1] * (rows.ndim - 1))
    return np.clip(np.rint(rows / each), -MAX_INT8, MAX_INT8).astype(np.int8), scales


@dataclass(frozen=True)
class Target:
    """A float32 graph and the precision of every site in it, by node: float32, static-int8, weight-int8, weight-int4.

    `block`: how many weights share a scale in blocks.
    """

    source: onnx.ModelProto
    sites: tuple[Site, ...]
    chosen: Mapping[str, NodePrecision]
    block: int

    def __post_init__(self) -> None:
        for site in self.sites:
            if (precision := self.chosen[site.node]) not in _KNOWN:
                raise QuantizationError(
                    f"{site.node}: no student is trained in {precision}; expected one of {', '.join(_KNOWN)} in"
                    " quantize.overrides"
                )

    def static_sites(self) -> tuple[Site, ...]:
        """Those in static int8."""
        return tuple(site for site in self.sites if self.chosen[site.node] == _STATIC)

    def rounded_outputs(self) -> frozenset[str]:
        """Outputs of convolutions that are rounded themselves: those that no product reads, or through Relu or Clip."""
        read = {self.node(site).input[0] for site in self.static_sites() if site.operator != "Gather"}
        through = {n.output[0]: n.input[0] for n in self.source.graph.node if n.op_type in _KEEPS_ROUNDING}
        read |= {through[name] for name in read if name in through}
        outputs = {self.node(site).output[0] for site in self.static_sites() if site.operator == "Conv"}
        return frozenset(outputs - read)

    def activations(self) -> tuple[str, ...]:
        """The tensors that need a range."""
        inputs = [self.node(site).input[0] for site in self.static_sites() if site.operator != "Gather"]
        return tuple(dict.fromkeys([*inputs, *sorted(self.rounded_outputs())]))

    def node(self, site: Site) -> onnx.NodeProto:
        """The node of a site."""
        found: onnx.NodeProto = next(node for node in self.source.graph.node if node.name == site.node)
        return found

    def weight(self, site: Site) -> NDArray[np.float32]:
        """A site's weight, a row for each output channel (of a table: for each entry)."""
        tensor = next(tensor for tensor in self.source.graph.initializer if tensor.name == site.weight)
        array = numpy_helper.to_array(tensor)
        return array if self.has_rows_first(site) else np.ascontiguousarray(array.T)

    def has_rows_first(self, site: Site) -> bool:
        """Whether the weight lies in the file as `weight` gives it."""
        if site.operator in ("Gather", "Conv"):
            return True
        node = self.node(site)
        return _is_transposed(node) != (node.input[1] in turned_weights(self.source))

    def bias(self, site: Site) -> NDArray[np.float32] | None:
        """The constant that a Gemm or a Conv adds, float32 [rows]; it becomes int32 in static int8."""
        node = self.node(site)
        name = node.input[2] if site.operator in ("Gemm", "Conv") and len(node.input) > 2 else ""
        found = (tensor for tensor in self.source.graph.initializer if tensor.name == name)
        tensor = next(found, None)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def written(self, ranges: Mapping[str, Range]) -> onnx.ModelProto:
        """The quantized model; `ranges` are of `activations`. Raises QuantizationError for a node that has none."""
        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        writer = _Writer(self, model, ranges)
        for site in self.static_sites():
            writer.table(site) if site.operator == "Gather" else writer.product(site)
        writer.finish()
        quantize_weights(
            model, self.sites, {**self.chosen, **{s.node: "float32" for s in self.static_sites()}}, self.block
        )
        return model


class _Writer:
    def __init__(self, target: Target, model: onnx.ModelProto, ranges: Mapping[str, Range]) -> None:
        self._target, self._graph, self._ranges = target, model.graph, ranges
        self._nodes = {node.name: node for node in model.graph.node}
        self._outputs = target.rounded_outputs()
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._after: dict[str, list[onnx.NodeProto]] = {}
        self._made: set[str] = set()

    def product(self, site: Site) -> None:
        """A MatMul, a Gemm or a Conv between what its operands are rounded to."""
        node, target = self._nodes[site.node], self._target
        _check_plain(node)
        read = node.input[0]
        affine = Affine.of(self._ranges[read])
        scales = self._weight(site, node)
        bias = target.bias(site)
        if bias is not None:
            self._bias(node, bias, np.float32(affine.scale) * scales)
        node.input[0] = self._rounded(read, node)
        if node.output[0] in self._outputs:
            self._round_output(node)

    def table(self, site: Site) -> None:
        """Rows are taken as codes and become numbers then: what is read of the table is a quarter."""
        node = self._nodes[site.node]
        codes, scales = int8_rows(self._target.weight(site).reshape(1, -1))
        name, output = f"{site.weight}_int8_table", node.output[0]
        self._add(codes.reshape(site.shape), name)
        self._add(scales.reshape(()), f"{name}_scale")
        node.input[0], node.output[0] = name, f"{output}_codes"
        dequantized = helper.make_node(
            "DequantizeLinear", [node.output[0], f"{name}_scale"], [output], name=f"{node.name}_numbers"
        )
        self._after.setdefault(node.name, []).append(dequantized)

    def finish(self) -> None:
        nodes = [
            one
            for node in self._graph.node
            for one in (*self._before.get(node.name, ()), node, *self._after.get(node.name, ()))
        ]
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _weight(self, site: Site, node: onnx.NodeProto) -> NDArray[np.float32]:
        """Puts codes and their numbers in the weight's place. Returns the scale of each row."""
        codes, scales = int8_rows(self._target.weight(site))
        axis = 0 if site.operator == "Conv" or _is_transposed(node) else 1
        name = f"{site.weight}_int8_along_{axis}"
        self._add(np.ascontiguousarray(codes.T) if axis else codes, name)
        self._add(scales, f"{name}_scales")
        zeros = self._add(np.zeros(len(scales), np.int8), f"{name}_zero_points")
        node.input[1] = self._numbers(name, f"{name}_scales", zeros, node, axis=axis)
        return scales

    def _bias(self, node: onnx.NodeProto, bias: NDArray[np.float32], scales: NDArray[np.float32]) -> None:
        codes = np.clip(np.rint(bias / scales), MIN_INT32, MAX_INT32).astype(np.int32)
        name = f"{node.name}_bias_int32"
        self._add(codes, name)
        self._add(scales, f"{name}_scales")
        zeros = self._add(np.zeros(len(scales), np.int32), f"{name}_zero_points")
        node.input[2] = self._numbers(name, f"{name}_scales", zeros, node, axis=0)

    def _rounded(self, tensor: str, node: onnx.NodeProto) -> str:
        """The name of what `tensor` is rounded to, which the first node that reads it so brings along."""
        codes = f"{tensor}_uint8"
        scale, zero = self._affine(tensor)
        if codes not in self._made:
            quantized = helper.make_node("QuantizeLinear", [tensor, scale, zero], [codes], name=codes)
            self._before.setdefault(node.name, []).append(quantized)
            self._made.add(codes)
        return self._numbers(codes, scale, zero, node)

    def _round_output(self, node: onnx.NodeProto) -> None:
        output = node.output[0]
        scale, zero = self._affine(output)
        codes, node.output[0] = f"{output}_uint8", f"{output}_float32"
        self._after[node.name] = [
            helper.make_node("QuantizeLinear", [node.output[0], scale, zero], [codes], name=codes),
            helper.make_node("DequantizeLinear", [codes, scale, zero], [output], name=f"{codes}_numbers"),
        ]

    def _affine(self, tensor: str) -> tuple[str, str]:
        affine = Affine.of(self._ranges[tensor])
        scale = self._add(np.array(affine.scale, np.float32), f"{tensor}_uint8_scale")
        return scale, self._add(np.array(affine.zero_point, np.uint8), f"{tensor}_uint8_zero_point")

    def _numbers(self, codes: str, scale: str, zero: str, node: onnx.NodeProto, **attributes: Any) -> str:
        numbers = f"{codes}_numbers"
        if numbers not in self._made:
            made = helper.make_node("DequantizeLinear", [codes, scale, zero], [numbers], name=numbers, **attributes)
            self._before.setdefault(node.name, []).append(made)
            self._made.add(numbers)
        return numbers

    def _add(self, array: NDArray[Any], name: str) -> str:
        if name not in self._made:
            self._graph.initializer.append(numpy_helper.from_array(array, name))
            self._made.add(name)
        return name


def _is_transposed(node: onnx.NodeProto) -> bool:
    """Whether a product reads its second operand a row for each output."""
    return any(entry.name == "transB" and entry.i for entry in node.attribute)


def _check_plain(node: onnx.NodeProto) -> None:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if any(attributes.get(name, plain) != plain for name, plain in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))):
        raise QuantizationError(
            f"{node.name}: a Gemm with alpha, beta or transA has no form in which a student could be trained; set"
            f" quantize.overrides to {{{node.name}: float32}}"
        )
