"""Integer products that saturate on processors without VNNI: found on data, and narrowed until they cannot.

x86's pmaddubsw multiplies unsigned activations with signed weights and adds the products in pairs, within 16 bits. Two
large weights side by side can exceed them; the answer then is another one than on every other processor.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compressor import native
from compressor.certificate import SAFE_WEIGHT_SUM, Certificate, Layer, certificate
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed
from compressor.quantize.products import (
    ON_INTEGERS,
    Graph,
    IntegerProduct,
    adds_in_pairs,
    columns_of,
    find_products,
    rows_of,
)
from compressor.store import sha256_file, write_atomic

# Up to here no 32-bit accumulator overflows, whatever the order of the four terms that zero points make of a product:
# VNNI would clamp it there, other processors wrap.
_DEEPEST = 2**31 // (4 * 255 * 128)


@dataclass
class _Tally:
    """A product's weights in columns, and what has been seen of it."""

    product: IntegerProduct
    columns: NDArray[Any]
    in_pairs: bool
    narrowed: int
    sums: int = 0
    saturated: int = 0
    outputs: int = 0
    wrong: int = 0

    def add(self, activations: NDArray[Any]) -> None:
        """Multiplies the integer activations of one inference on both paths."""
        if not self.in_pairs:
            return
        rows = rows_of(self.product, activations)
        if rows.dtype == np.int8:  # onnxruntime adds 128 to signed activations on x86
            rows = rows.view(np.uint8) ^ np.uint8(0x80)
        for group, columns in zip(rows, self.columns, strict=True):
            excess, saturated = native.load().saturation(group, columns)
            self.sums += excess.size * (len(columns) // 2)
            self.saturated += int(saturated.sum())
            self.outputs += excess.size
            self.wrong += int(np.count_nonzero(excess))

    def layer(self) -> Layer:
        signed = self.columns.dtype == np.int8
        return Layer(
            node=self.product.name,
            operator=self.product.node.op_type,
            weights=self.product.weights,
            depth=self.columns.shape[1],
            columns=self.columns.shape[0] * self.columns.shape[2],
            largest_weight_sum=int(weight_sums(self.columns).max()) if self.in_pairs else 0,
            lowest_weights=int((self.columns == -128).sum(axis=1).max()) if signed else 0,
            sums=self.sums,
            saturated=self.saturated,
            outputs=self.outputs,
            wrong=self.wrong,
            narrowed=self.narrowed,
        )


@dataclass
class _Examination:
    tallies: list[_Tally]
    unexamined: list[str] = field(default_factory=list)


def same_everywhere(path: Path, feeds: Sequence[Feed], *, narrow: bool, before: Collection[str] = ()) -> Certificate:
    """Certifies the quantized model at `path`; with `narrow`, first widens the step of weights where products saturate.

    All output channels of a product that saturates on one of `feeds` get so few bits, between 7 and 8, that no input
    makes them saturate; the file is replaced, its size the same. Those with the weights `before` get them unseen. A
    product whose scale the graph does not show is left as it is. Raises BundleError when onnxruntime does not run the
    model.
    """
    model = onnx.load(path)
    known = [product for product in find_products(Graph(model))[0] if product.weights in before]
    narrowed = {product.weights: count for product in known if (count := _narrow(model, product))}
    while True:
        seen = _examine(model, feeds, narrowed)
        saturating = [tally.product for tally in seen.tallies if tally.saturated]
        changed = {p.weights: count for p in saturating if (count := _narrow(model, p))} if narrow else {}
        if not changed:
            break
        narrowed |= changed
        # What comes after a product that has changed is another number now: all is looked at again.
    if narrowed:
        write_atomic(path, model.SerializeToString())
    layers = tuple(tally.layer() for tally in seen.tallies)
    return certificate(sha256_file(path), len(feeds), layers, tuple(seen.unexamined))


def weight_sums(columns: NDArray[np.int8]) -> NDArray[np.int32]:
    """Of every output channel [groups, outputs] the largest sum of the weights of one pair, positive or negative ones
    alone: the others need not count, since their activations may be 0. `columns` is [groups, depth, outputs]."""
    wide = columns.astype(np.int32)
    if wide.shape[1] % 2:
        wide = np.pad(wide, ((0, 0), (0, 1), (0, 0)))
    largest: NDArray[np.int32] = np.zeros((wide.shape[0], wide.shape[2]), np.int32)
    for sign in (wide, -wide):
        positive = np.maximum(sign, 0)
        largest = np.maximum(largest, (positive[:, ::2] + positive[:, 1::2]).max(axis=1))
    return largest


def _examine(model: onnx.ModelProto, feeds: Sequence[Feed], narrowed: dict[str, int]) -> _Examination:
    graph = Graph(model)
    products, unexamined = find_products(graph)
    found = _Examination([], unexamined)
    for product in products:
        weights = graph.array(product.weights)
        columns = columns_of(product, weights)
        if columns.shape[1] > _DEEPEST:
            unexamined.append(product.name)
        else:
            in_pairs = adds_in_pairs(product, weights)
            found.tallies.append(_Tally(product, columns, in_pairs, narrowed.get(product.weights, 0)))
    watched = list(dict.fromkeys(tally.product.activations for tally in found.tallies if tally.in_pairs))
    if not watched:
        return found
    session = open_session(_showing(model, watched), optimized=False)
    names = [output.name for output in session.get_outputs()]
    for feed in feeds:
        arrays = dict(zip(names, run_one(session, feed), strict=True))
        for tally in found.tallies:
            if tally.in_pairs:
                tally.add(arrays[tally.product.activations])
    return found


def _showing(model: onnx.ModelProto, values: list[str]) -> bytes:
    """The model with these tensors among its outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    already = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in already)
    content: bytes = shown.SerializeToString()
    return content


def _narrow(model: onnx.ModelProto, product: IntegerProduct) -> int:
    """Gives the output channels that can saturate a step so wide that they cannot; how many those are. 0 where that is
    not possible here."""
    graph = Graph(model)
    weights = graph.array(product.weights)
    sums = weight_sums(columns_of(product, weights)).reshape(-1)
    if sums.max() <= SAFE_WEIGHT_SUM or product.scale is None or not can_narrow(graph, product):
        return 0
    # Rounding adds at most a half to each weight, so that the sum of two is at most SAFE_WEIGHT_SUM then.
    wider = np.where(sums > SAFE_WEIGHT_SUM, sums / (SAFE_WEIGHT_SUM - 1), 1.0)
    scale = graph.array(product.scale)
    if scale.size == 1:
        wider = np.full_like(wider, wider.max())
    along = [1] * weights.ndim
    along[product.channel_axis] = -1
    _replace(graph, product.weights, np.rint(weights / wider.reshape(along)).astype(np.int8))
    _replace(graph, product.scale, _times(scale, wider))
    if product.bias is not None:
        bias, bias_scale = product.bias
        _replace(graph, bias, np.rint(graph.array(bias) / wider).astype(np.int32))
        _replace(graph, bias_scale, _times(graph.array(bias_scale), wider))
    return int((sums > SAFE_WEIGHT_SUM).sum())


def can_narrow(graph: Graph, product: IntegerProduct) -> bool:
    """Whether two of its products are added in 16 bits; and weights, scale and bias serve this product alone, in one
    form, and a weight of 0 means 0, so that they can be given a wider step."""
    if product.scale is None or not adds_in_pairs(product, graph.array(product.weights)):
        return False
    if product.bias is not None and graph.array(product.bias[1]).size != graph.array(product.scale).size:
        return False
    names = [product.weights, product.scale, *(product.bias or ())]
    if product.node.op_type not in ON_INTEGERS:
        names += product.node.input[1:]
    zero = product.zero_point
    symmetric = zero is None or (zero in graph.initializers and not graph.array(zero).any())
    return symmetric and all(len(graph.readers[name]) == 1 for name in names if name)


def _times(scale: NDArray[np.float32], wider: NDArray[np.float64]) -> NDArray[np.float32]:
    factor = wider.max() if scale.size == 1 else wider.reshape(scale.shape)
    return np.asarray(scale * factor, np.float32)


def _replace(graph: Graph, name: str, array: NDArray[Any]) -> None:
    graph.initializers[name].CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), name))
