"""Scaled dot-product attention over products with constant weights, in three steps.

1. `heads`: the split into heads, the scaled scores with their mask, softmax, the mixture: one MultiHeadAttention.
2. `merged`: the three products of one input become one, whose input int8 then quantizes once.
3. `whole`: product and MultiHeadAttention become one Attention. The quantizer of static int8 does not know it.

Vaswani et al. 2017: softmax(q k^T / sqrt(width of a head) + mask) v. The operators are ONNX Runtime's, domain
com.microsoft.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from compressor.export.rewrites.masks import KeyMask, key_mask
from compressor.export.rewrites.symbols import constant, dimensions, known, maker, scalar
from compressor.onnx_file import CONTRIB


def _optional(name: str) -> Any:
    return pattern.Var(name, can_match_none=True)


def _sdpa(masked: bool, guarded: bool) -> Any:
    """torch's scaled_dot_product_attention as its exporter writes it; `guarded`: rows that softmax made NaN become 0.

    They cannot be NaN unless scores are: what is added is finite.
    """

    def target(op: Any, q: Any, k: Any, v: Any, mask: Any, open_: Any, closed: Any, half_scale: Any) -> Any:
        heads = [
            op.Transpose(op.Reshape(x, pattern.ANY_VALUE, _outputs=[f"{name}_heads"]), perm=[0, 2, 1, 3])
            for x, name in ((q, "q"), (k, "k"), (v, "v"))
        ]
        transposed = op.Transpose(heads[1], perm=[0, 1, 3, 2])
        scores = op.MatMul(op.Mul(heads[0], half_scale), op.Mul(transposed, half_scale))
        if masked:
            scores = op.Add(scores, op.Where(mask, open_, closed))
        shares = op.Softmax(scores, axis=-1)
        if guarded:
            shares = op.Where(op.IsNaN(shares), 0.0, shares)
        mixed = op.Transpose(op.MatMul(shares, heads[2]), perm=[0, 2, 1, 3])
        return op.Reshape(mixed, pattern.ANY_VALUE, _outputs=["mixed"])

    return target


def _keys_of(mask: ir.Value | None, open_: ir.Value | None, closed: ir.Value | None) -> KeyMask | None:
    if mask is None:
        return KeyMask(None)
    if scalar(open_) != 0 or (lowest := scalar(closed)) is None or not lowest <= -1e30:
        return None
    return key_mask(mask)


def _is_attention(
    context: Any,  # noqa: ARG001
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    half_scale: ir.Value,
    q_heads: ir.Value,
    k_heads: ir.Value,
    v_heads: ir.Value,
    mixed: ir.Value,
    mask: ir.Value | None = None,
    open_: ir.Value | None = None,
    closed: ir.Value | None = None,
) -> bool:
    sizes, heads = dimensions(q), dimensions(q_heads)
    if sizes is None or heads is None or len(sizes) != 3 or len(heads) != 4 or scalar(half_scale) is None:
        return False
    batch, length, width = sizes
    # From here on [batch, length, heads, width of a head] on all sides: no grouped queries, no other keys' length.
    if heads[:2] != (batch, length) or not isinstance(heads[2], int) or not isinstance(heads[3], int):
        return False
    same = dimensions(k) == dimensions(v) == dimensions(mixed) == sizes
    split = dimensions(k_heads) == dimensions(v_heads) == heads and heads[2] * heads[3] == width
    keys = _keys_of(mask, open_, closed)
    if not same or not split or keys is None:
        return False
    return keys.keys is None or dimensions(keys.keys) == (batch, length)


def _heads(
    op: Any,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    half_scale: ir.Value,
    q_heads: ir.Value,
    mask: ir.Value | None = None,
    open_: ir.Value | None = None,
    closed: ir.Value | None = None,
    **_: Any,
) -> Any:
    heads, factor, keys = dimensions(q_heads), scalar(half_scale), _keys_of(mask, open_, closed)
    assert heads is not None
    assert factor is not None
    assert keys is not None
    attributes: dict[str, Any] = {"num_heads": heads[2]}
    if not np.isclose(factor**2, float(heads[3]) ** -0.5, rtol=1e-6):  # else it is what the operator does by itself
        attributes["scale"] = factor**2
    inputs = [q, k, v]
    if keys.keys is not None:
        attributes["mask_filter_value"] = scalar(closed)
        inputs += [None, op.Cast(keys.keys, to=ir.DataType.INT32)]  # type: ignore[list-item]
    return op.MultiHeadAttention(*inputs, **attributes, _domain=CONTRIB)


HEADS = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_sdpa(masked, guarded), _heads, _is_attention, name="heads", remove_nodes=False)
        for masked in (True, False)
        for guarded in (True, False)
    ]
)


def _three_products(biased: bool) -> Any:
    def target(op: Any, x: Any, w_q: Any, w_k: Any, w_v: Any, b_q: Any, b_k: Any, b_v: Any) -> Any:
        products = [op.MatMul(x, weight) for weight in (w_q, w_k, w_v)]
        if biased:
            products = [op.Add(product, bias) for product, bias in zip(products, (b_q, b_k, b_v), strict=True)]
        return op.MultiHeadAttention(*products, None, _optional("mask"), _domain=CONTRIB, _outputs=["attended"])

    return target


def _are_constant(
    context: Any,  # noqa: ARG001
    w_q: ir.Value,
    w_k: ir.Value,
    w_v: ir.Value,
    b_q: ir.Value | None = None,
    b_k: ir.Value | None = None,
    b_v: ir.Value | None = None,
    **_: Any,
) -> bool:
    weights = [constant(w) for w in (w_q, w_k, w_v)]
    if any(w is None or w.ndim != 2 or w.shape != weights[0].shape for w in weights):  # type: ignore[union-attr]
        return False
    # A weight that something else reads too would be in the file twice.
    if any(len(w.uses()) > 1 for w in (w_q, w_k, w_v)):
        return False
    return b_q is None or all((b := constant(bias)) is not None and b.ndim == 1 for bias in (b_q, b_k, b_v))


def _merged(
    op: Any,
    x: ir.Value,
    w_q: ir.Value,
    w_k: ir.Value,
    w_v: ir.Value,
    attended: ir.Value,
    mask: ir.Value | None = None,
    b_q: ir.Value | None = None,
    b_k: ir.Value | None = None,
    b_v: ir.Value | None = None,
) -> Any:
    weights = np.concatenate([known(w) for w in (w_q, w_k, w_v)], axis=1)
    product, bias = op.MatMul(x, op.initializer(ir.tensor(weights), f"{w_q.name}_qkv")), None
    if b_q is not None:
        biases = np.concatenate([known(b) for b in (b_q, b_k, b_v)])
        # Named by the weight, which is this layer's alone; equal biases, such as zeros, are stored once for all layers.
        bias = op.initializer(ir.tensor(biases), f"{w_q.name}_qkv_bias")
    parts = op.Split(product, axis=-1, num_outputs=3, _outputs=3)
    return op.MultiHeadAttention(*parts, bias, mask, **_attributes(attended), _domain=CONTRIB)


def _attributes(output: ir.Value) -> dict[str, Any]:
    node = maker(output)
    assert node is not None
    return {name: attribute.value for name, attribute in node.attributes.items()}


MERGED = pattern.RewriteRuleSet(
    [pattern.RewriteRule(_three_products(biased), _merged, _are_constant, name="merged") for biased in (True, False)]
)


def _product_and_heads(op: Any, x: Any, weight: Any) -> Any:
    parts = op.Split(op.MatMul(x, weight), axis=-1, num_outputs=3, _outputs=3)
    return op.MultiHeadAttention(*parts, _optional("bias"), _optional("mask"), _domain=CONTRIB, _outputs=["attended"])


def _whole(
    op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value | None, mask: ir.Value | None, attended: ir.Value
) -> Any:
    if bias is None:
        bias = op.initializer(ir.tensor(np.zeros(known(weight).shape[1], np.float32)), f"{weight.name}_bias")
    return op.Attention(x, weight, bias, mask, **_attributes(attended), _domain=CONTRIB)


WHOLE = pattern.RewriteRuleSet([pattern.RewriteRule(_product_and_heads, _whole, name="whole")])
