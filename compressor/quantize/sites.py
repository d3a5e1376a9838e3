"""Where a graph can be quantized: its products with constant weights, its convolutions, its tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import helper

from compressor.errors import QuantizationError
from compressor.recipe_quantize import NodePrecision

# The narrowest block of onnxruntime's operators with weights in blocks.
NARROWEST_BLOCK = 16
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
_INT8: tuple[NodePrecision, ...] = ("dynamic-int8", "static-int8")
# In these a weight has one form, for nodes that read it alike.
_PER_CHANNEL: tuple[NodePrecision, ...] = (*_INT8, "static-int16")
_BLOCKS: tuple[NodePrecision, ...] = ("weight-int8", "weight-int4")


@dataclass(frozen=True)
class Site:
    """A node that can be quantized: its name and operator, its weight and that one's shape.

    `unfit`: what its operator can have, and it cannot, or who shares its weight cannot; `why`, for a reader.
    """

    node: str
    operator: str
    weight: str
    shape: tuple[int, ...]
    unfit: tuple[NodePrecision, ...] = ()
    why: str = ""


def find_sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    """In the order of the graph; of the graph itself, not of the bodies of If, Loop and Scan, which stay float32.

    Weights are matrices, those of convolutions have a kernel too; products with others stay float32, as do weights
    without numbers.
    """
    weights, turned = _float_weights(model), turned_weights(model)
    found: list[tuple[Site, onnx.NodeProto]] = []
    for node in model.graph.node:
        position = _WEIGHT_INPUT.get(node.op_type)
        if position is None or node.domain not in ("", "ai.onnx") or len(node.input) <= position:
            continue
        read = node.input[position]
        weight = read if node.op_type in ("Gather", "Conv") else turned.get(read, read)
        shape = weights.get(weight, ())
        if 0 not in shape and (len(shape) > 2 if node.op_type == "Conv" else len(shape) == 2):
            found.append((Site(node.name, node.op_type, weight, shape), node))
    by_weight: dict[str, list[tuple[Site, onnx.NodeProto]]] = {}
    for site, node in found:
        by_weight.setdefault(site.weight, []).append((site, node))
    return tuple(_fitted(site, by_weight[site.weight]) for site, _ in found)


def sharing(sites: Iterable[Site], site: Site) -> tuple[Site, ...]:
    """Those that read the weight of this one, itself among them: they have one precision."""
    return tuple(one for one in sites if one.weight == site.weight)


def assign(
    sites: Sequence[Site], uniform: NodePrecision, overrides: Mapping[str, NodePrecision]
) -> dict[str, NodePrecision]:
    """A precision for every site, by its node: `uniform` where it applies, else float32; int8 that a weight which is
    table and product cannot have is `weight-int8`. Then `overrides`, whose keys are operators or nodes, a node's own
    before its operator's; one holds for all that share a weight.

    Raises QuantizationError for a key that is neither in this graph, a precision that does not apply there, or two for
    one weight.
    """
    return settled(sites, {site.node: uniform for site in sites}, overrides)


def settled(
    sites: Sequence[Site], wanted: Mapping[str, NodePrecision], overrides: Mapping[str, NodePrecision] | None = None
) -> dict[str, NodePrecision]:
    """`assign` for a mixture, by node, float32 where nothing is said. Where a weight is shared, the last product that
    reads it decides, or else the last table.
    """
    overrides = overrides or {}
    known = {site.node for site in sites} | {site.operator for site in sites}
    if unknown := [key for key in overrides if key not in known]:
        raise QuantizationError(_unknown(unknown[0], sites))
    chosen: dict[str, NodePrecision] = {}
    for site in sites:
        shared = sharing(sites, site)
        asked = {one: overrides[one.node] for one in shared if one.node in overrides}
        asked = asked or {one: overrides[one.operator] for one in shared if one.operator in overrides}
        last = ([one for one in shared if one.operator != "Gather"] or shared)[-1]
        chosen[site.node] = _agreed(asked, overrides) if asked else _nearest(wanted.get(last.node, "float32"), last)
    return chosen


def applies(precision: NodePrecision, site: Site) -> bool:
    """Whether this site, and all that share its weight, can have this precision."""
    return precision == "float32" or (precision in _APPLICABLE[site.operator] and precision not in site.unfit)


def inapplicable(precision: NodePrecision, model: onnx.ModelProto, sites: Sequence[Site]) -> str:
    """Why nothing of the model has this precision, for a reader."""
    operators = [operator for operator, precisions in _APPLICABLE.items() if precision in precisions]
    if any(applies(precision, site) for site in sites):
        return f"quantize.overrides leave nothing in {precision}"
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if not sites and any(tensor.data_type in halves and len(tensor.dims) > 1 for tensor in model.graph.initializer):
        return "the model's weights are in half already; give the float32 model"
    others = "".join(f" ({site.operator} {site.node}, {site.why})" for site in sites[:1] if site.why)
    return f"{precision} applies to {', '.join(operators)} with constant float32 matrices; there are none{others}"


def turned_weights(model: onnx.ModelProto) -> dict[str, str]:
    """Values that are a float32 matrix transposed, and that matrix: a table, for the product that shares it."""
    weights = _float_weights(model)
    return {node.output[0]: node.input[0] for node in model.graph.node if turns(node, weights)}


def turns(node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a node transposes one of these that is a matrix; their shapes by name."""
    order = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), [1, 0])
    return node.op_type == "Transpose" and len(weights.get(node.input[0], ())) == 2 and order == [1, 0]


def is_plain(node: onnx.NodeProto) -> bool:
    """Whether a product is one of rows and weights, to which a bias may be added: no Gemm that scales or turns more."""
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return all(attributes.get(name, plain) == plain for name, plain in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)))


def _float_weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def _fitted(site: Site, shared: Sequence[tuple[Site, onnx.NodeProto]]) -> Site:
    """The site, with what is unfit for it and for those that share its weight."""
    unfit: list[NodePrecision] = []
    why = []
    # onnxruntime's quantizer makes codes for one way to read them; others would read what they stand for, in float32.
    if len({_reading(one, node) for one, node in shared}) > 1 or _reading(*shared[0]) == "turned":
        unfit += _PER_CHANNEL
        others = [one.node for one, _ in shared if one != site]
        why.append(f"which has one weight with {' and '.join(others) or 'other nodes'}")
    if any(one.operator == "Gather" and not _has_blocks(one, node) for one, node in shared):
        unfit += _BLOCKS
        why.append(f"a table {list(site.shape)}, not of rows of whole blocks of {NARROWEST_BLOCK}")
    if any(one.operator == "Gemm" and not is_plain(node) for one, node in shared):
        unfit += ["dynamic-int8", *_BLOCKS]
        why.append("a Gemm with alpha, beta or transA")
    if any(one.operator == "Gemm" and _scales_bias(node) for one, node in shared):
        unfit += _PER_CHANNEL  # onnxruntime's integer kernel leaves beta out
    return replace(site, unfit=tuple(dict.fromkeys(unfit)), why=", ".join(why))


def _reading(site: Site, node: onnx.NodeProto) -> str:
    """As what a node reads its weight: one form of integers serves those that read it alike."""
    if site.operator in ("Gather", "Conv"):
        return site.operator
    if node.input[1] != site.weight:
        return "turned"
    return "rows" if any(entry.name == "transB" and entry.i for entry in node.attribute) else "columns"


def _scales_bias(node: onnx.NodeProto) -> bool:
    return any(entry.name == "beta" and entry.f != 1 for entry in node.attribute)


def _has_blocks(site: Site, node: onnx.NodeProto) -> bool:
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
    return axis == 0 and site.shape[1] % NARROWEST_BLOCK == 0


def _nearest(precision: NodePrecision, site: Site) -> NodePrecision:
    """`precision` where it applies. int8 of a weight that has no other form of it is in blocks: products round what
    they read to int8 there as well, and a table that a product shares is stored once.
    """
    if applies(precision, site):
        return precision
    return "weight-int8" if precision in _INT8 and applies("weight-int8", site) else "float32"


def _agreed(asked: Mapping[Site, NodePrecision], overrides: Mapping[str, NodePrecision]) -> NodePrecision:
    """The one precision that overrides ask for of sites that share a weight. Raises QuantizationError."""
    (first, precision), *others = asked.items()
    for site, other in others:
        if other != precision:
            raise QuantizationError(
                f"quantize.overrides: {first.node}: {precision} and {site.node}: {other}, but both read the weight"
                f" {site.weight}: give them one precision, by the name of one of them"
            )
    for site in asked:
        if not applies(precision, site):
            possible = [one for one in _APPLICABLE[site.operator] if applies(one, site)]
            key = site.node if site.node in overrides else site.operator
            why = f" {site.node}, {site.why}" if site.why else ""
            raise QuantizationError(
                f"quantize.overrides: {key}: {precision} does not apply to {site.operator}{why}; expected float32 or"
                f" one of {', '.join(possible)}, as in {{{site.node}: {possible[0]}}}"
            )
    return precision


def _unknown(key: str, sites: Sequence[Site]) -> str:
    names = sorted({site.operator for site in sites}) + [site.node for site in sites]
    near = difflib.get_close_matches(key, names, n=1)
    has = f"it has {', '.join(names[:8])}" if names else "nothing in it can be: leave out quantize.overrides"
    hint = f"; did you mean {near[0]}?" if near else f"; {has}"
    return f"quantize.overrides: no operator or node {key!r} that can be quantized is in this graph{hint}"
