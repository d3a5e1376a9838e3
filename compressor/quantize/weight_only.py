"""Weights in few bits, products in float32 or int8: what streams less of the model from memory, needs no calibration.

Products become MatMulNBits, tables GatherBlockQuantized, both of onnxruntime's own operators. A weight that several
nodes share is still one in the file. Halves are a Cast away from float32, which onnxruntime folds when it loads the
model: the file is half as large, and what is computed is float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import QuantizationError
from compressor.onnx_file import CONTRIB, import_contrib, reads
from compressor.quantize.blocks import to_blocks
from compressor.quantize.sites import NARROWEST_BLOCK, Site, is_plain, turned_weights
from compressor.recipe_quantize import NodePrecision

BITS: dict[NodePrecision, int] = {"weight-int8": 8, "weight-int4": 4}
_HALVES: dict[NodePrecision, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# The activation is rounded to int8 block by block, and products are of integers: some two times as fast as float32.
_INT8_PRODUCTS = 4


def quantize_weights(
    model: onnx.ModelProto, sites: Iterable[Site], chosen: Mapping[str, NodePrecision], block: int
) -> None:
    """Rewrites in place what is `weight-int8`, `weight-int4`, `float16` or `bfloat16` by `chosen` (by node).

    `block`: how many weights share a scale, a power of two from 16 on. Raises QuantizationError for a table whose rows
    are not whole blocks of 16.
    """
    named = {node.name: node for node in model.graph.node}
    writer = _Writer(model, block, turned_weights(model))
    of_tables = {site.weight for site in sites if site.operator == "Gather"}
    for site in sites:
        precision = chosen[site.node]
        if precision in _HALVES:
            node = named[site.node]
            writer.replace(node, writer.halved(site, node, _HALVES[precision]))
        elif precision in BITS:
            node = named[site.node]
            bits = BITS[precision]
            make = writer.table if site.operator == "Gather" else writer.product
            writer.replace(node, make(site, node, bits, site.weight in of_tables))
    writer.finish()


def block_of(columns: int, block: int, tied: bool) -> int:
    """How many weights share a scale in a matrix of so many columns; `tied`: a table reads it, whose rows are whole
    blocks.
    """
    return min(block, columns & -columns) if tied else block


@dataclass(frozen=True)
class _Stored:
    """The names of initialisers that hold a weight in blocks (`blocks.Blocks`); a table's codes are [rows, bytes]."""

    codes: str
    scales: str
    zero_points: str
    rows: int
    columns: int
    block: int


class _Writer:
    def __init__(self, model: onnx.ModelProto, block: int, turned: Mapping[str, str]) -> None:
        self._graph, self._block, self._turned = model.graph, block, turned
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._stored: dict[str, _Stored] = {}
        self._made: dict[str, onnx.NodeProto] = {}
        self._replaced: dict[str, list[onnx.NodeProto]] = {}
        import_contrib(model)

    def replace(self, node: onnx.NodeProto, by: list[onnx.NodeProto]) -> None:
        self._replaced[node.name] = by

    def product(self, site: Site, node: onnx.NodeProto, bits: int, tied: bool) -> list[onnx.NodeProto]:
        """MatMulNBits for a MatMul or a Gemm, whose bias is added after it."""
        if not is_plain(node):
            raise QuantizationError(
                f"{site.node}: a Gemm with alpha, beta or transA has no form with weights in blocks; set"
                f" quantize.overrides to {{{site.node}: float32}}"
            )
        transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        rows_first = transposed != (node.input[1] in self._turned)
        stored = self._store(site, bits, rows_first, tied)
        codes = self._cubed(stored, bits) if tied else stored.codes
        bias = list(node.input[2:3])
        output = f"{node.output[0]}_unbiased" if bias else node.output[0]
        made = helper.make_node(
            "MatMulNBits",
            [node.input[0], codes, stored.scales, stored.zero_points],
            [output],
            name=node.name,
            domain=CONTRIB,
            K=stored.columns,
            N=stored.rows,
            bits=bits,
            block_size=stored.block,
            accuracy_level=_INT8_PRODUCTS,
        )
        added = [helper.make_node("Add", [output, bias[0]], [node.output[0]], name=f"{node.name}_bias")] if bias else []
        return [made, *added]

    def table(self, site: Site, node: onnx.NodeProto, bits: int, tied: bool) -> list[onnx.NodeProto]:
        """GatherBlockQuantized for a Gather of rows."""
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
        if axis != 0 or len(site.shape) != 2 or site.shape[1] % NARROWEST_BLOCK:
            raise QuantizationError(
                f"{site.node}: expected a table of rows of whole blocks of {NARROWEST_BLOCK}, got"
                f" {list(site.shape)} along axis {axis}; set quantize.overrides to {{{site.node}: float32}}"
            )
        stored = self._store(site, bits, True, tied)
        return [
            helper.make_node(
                "GatherBlockQuantized",
                [stored.codes, node.input[1], stored.scales, stored.zero_points],
                [node.output[0]],
                name=node.name,
                domain=CONTRIB,
                gather_axis=0,
                quantize_axis=1,
                block_size=stored.block,
                bits=bits,
            )
        ]

    def halved(self, site: Site, node: onnx.NodeProto, dtype: np.dtype[Any]) -> list[onnx.NodeProto]:
        """The same node, its weight cast from half. Raises QuantizationError for a weight beyond what half holds."""
        half, restored = f"{site.weight}_{dtype}", f"{site.weight}_from_{dtype}"
        if restored not in self._made:
            numbers = numpy_helper.to_array(self._weights[site.weight])
            with np.errstate(over="ignore"):
                halves = numbers.astype(dtype)
            if np.isfinite(numbers).all() and not np.isfinite(halves.astype(np.float32)).all():
                raise QuantizationError(
                    f"{site.node}: its weight has numbers up to {np.abs(numbers).max():.3g}, beyond {dtype}; set"
                    f" quantize.overrides to {{{site.node}: bfloat16}}"
                )
            self._add(numpy_helper.from_array(halves, half))
            self._made[restored] = helper.make_node("Cast", [half], [restored], name=restored, to=TensorProto.FLOAT)
        same = onnx.NodeProto()
        same.CopyFrom(node)
        for position, value in enumerate(node.input):
            if value == site.weight:
                same.input[position] = restored
            elif self._turned.get(value) == site.weight:
                turned = f"{restored}_transposed"
                if turned not in self._made:
                    self._made[turned] = helper.make_node("Transpose", [restored], [turned], name=turned, perm=[1, 0])
                same.input[position] = turned
        return [same]

    def finish(self) -> None:
        """Puts the new nodes where the old ones were, and drops the weights that nothing reads any more."""
        nodes = [new for node in self._graph.node for new in self._replaced.get(node.name, [node])]
        # A transposed table that no product reads any more would keep the table.
        read = self._read_by(nodes)
        nodes = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in read]
        nodes = [*self._made.values(), *nodes]
        read = self._read_by(nodes)
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(nodes)
        self._graph.initializer.extend(kept)

    def _read_by(self, nodes: Iterable[onnx.NodeProto]) -> set[str]:
        return {value for node in nodes for value in reads(node)} | {value.name for value in self._graph.output}

    def _store(self, site: Site, bits: int, rows_first: bool, tied: bool) -> _Stored:
        key = f"{site.weight}_{bits}bits{'' if rows_first else '_transposed'}"
        if key not in self._stored:
            numbers = numpy_helper.to_array(self._weights[site.weight])
            matrix = np.ascontiguousarray(numbers if rows_first else numbers.T)
            rows, columns = matrix.shape
            block = block_of(columns, self._block, tied)
            blocks = to_blocks(matrix, bits, block)
            stored = _Stored(f"{key}_codes", f"{key}_scales", f"{key}_zero_points", rows, columns, block)
            codes = blocks.codes.reshape(rows, -1) if tied else blocks.codes
            self._add(numpy_helper.from_array(codes, stored.codes))
            self._add(numpy_helper.from_array(blocks.scales, stored.scales))
            self._add(numpy_helper.from_array(blocks.zero_points, stored.zero_points))
            self._stored[key] = stored
        return self._stored[key]

    def _cubed(self, stored: _Stored, bits: int) -> str:
        """A table's codes as [rows, blocks, bytes of a block]; onnxruntime folds it when it loads the model."""
        cubed = f"{stored.codes}_cubed"
        if cubed not in self._made:
            shape = np.array([stored.rows, -1, stored.block * bits // 8])
            self._add(numpy_helper.from_array(shape, f"{cubed}_shape"))
            self._made[cubed] = helper.make_node("Reshape", [stored.codes, f"{cubed}_shape"], [cubed], name=cubed)
        return cubed

    def _add(self, tensor: onnx.TensorProto) -> None:
        self._graph.initializer.append(tensor)
