"""Which of the teacher's weights a student keeps, and the student made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.errors import StudentError
from compressor.students.importance import Importance, NormStatistics, hidden_norms
from compressor.students.sizes import Shape
from compressor.students.structure import Parts, axes


@dataclass(frozen=True)
class LayerCut:
    """Of one layer, the rows that stay: of queries, keys and values, of the attention's output, of the neurons."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    inner: Tensor
    neurons: Tensor


@dataclass(frozen=True)
class Cut:
    """Everything that stays: int64 indices, ascending. `tokens` are of the teacher's `vocabulary` many.

    `query_scale` makes up for heads of another width.
    """

    layers: tuple[LayerCut, ...]
    hidden: Tensor
    tokens: Tensor
    vocabulary: int
    query_scale: float
    norms: Mapping[str, NormStatistics] = field(default_factory=dict)


def top(scores: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest, ascending; of equal ones the first."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


def choose_layer(importance: Importance, parts: Parts, shape: Shape, layer: int) -> LayerCut:
    """What stays of the teacher's layer `layer`.

    Heads wider than the teacher's are several of its heads side by side; narrower ones keep the dimensions in which
    queries and keys, or values, are largest.
    """
    joined = max(shape.head_dim // parts.head_dim, 1)
    by_group = importance.heads[layer].reshape(parts.kv_heads, parts.group)
    per_group = shape.heads // shape.kv_heads
    groups = top(by_group.topk(per_group, dim=1).values.sum(1), shape.kv_heads * joined)
    heads = torch.cat([int(group) * parts.group + top(by_group[group], per_group) for group in groups])
    width = min(shape.head_dim, parts.head_dim)
    matched, carried = _dimensions(importance, parts, layer, heads, width)
    queries = (heads[:, None] * parts.head_dim + matched).flatten()
    inner = (heads[:, None] * parts.head_dim + carried).flatten()
    if parts.group > 1:
        keys = values = (groups[:, None] * parts.head_dim + torch.arange(parts.head_dim)).flatten()
    else:
        keys, values = queries, inner
    return LayerCut(queries, keys, values, inner, top(importance.neurons[layer], shape.ffn))


def _dimensions(importance: Importance, parts: Parts, layer: int, heads: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Within each of `heads`, the dimensions of queries and keys, and those of values: each [heads, width]."""
    if width == parts.head_dim:
        every = torch.arange(width).expand(len(heads), width)
        return every, every
    by_head = (parts.heads, parts.head_dim)
    product = importance.queries[layer].reshape(by_head) * importance.keys[layer].reshape(by_head)
    values = importance.inner[layer].reshape(by_head)
    matched = torch.stack([top(product[head], width) for head in heads])
    return matched, torch.stack([top(values[head], width) for head in heads])


def query_scale(parts: Parts, shape: Shape) -> float:
    """What queries are multiplied with, for scores are divided by the root of the width of a head.

    Heads that lose dimensions score as before. Joined ones score the mean of theirs: their attention is the normalised
    geometric mean of the teacher's.
    """
    if shape.head_dim > parts.head_dim:
        return math.sqrt(parts.head_dim / shape.head_dim)
    return math.sqrt(shape.head_dim / parts.head_dim)


def cut_model(model: PreTrainedModel, parts: Parts, shape: Shape, cut: Cut) -> PreTrainedModel:
    """The student: a model of the teacher's class, its weights cut out of the teacher's.

    Raises StudentError when the student's class has a weight that is nowhere in the teacher.
    """
    teacher = model.state_dict()
    norms = {name: cut.norms[name] for name in hidden_norms(model, parts.hidden) if name in cut.norms}
    state = {}
    for name, skeleton in shape.skeleton.state_dict().items():
        source, index, rest = _source(name, parts, shape)
        if source not in teacher:
            raise StudentError(
                f"a {model.config.model_type} student of these sizes has {source}, which the teacher has not: keep"
                " student.hidden as it is"
            )
        tensor = teacher[source]
        if rest is not None:
            tensor = _cut_part(model, parts, tensor, rest, cut.layers[index], cut.query_scale)
        for axis in range(tensor.ndim):
            tensor = _cut_axis(name, tensor, axis, tuple(skeleton.shape), parts, cut)
        module, _, leaf = source.rpartition(".")
        if module in norms:
            if len(tensor) != len(cut.hidden):
                raise StudentError(f"{name} is not as long as the hidden state: keep student.hidden as it is")
            tensor = _rescaled(tensor, leaf, norms[module], teacher[f"{module}.weight"][cut.hidden])
        state[name] = tensor.clone()
    student: PreTrainedModel = type(model)(shape.config)
    student.load_state_dict(state)
    return student


def _source(name: str, parts: Parts, shape: Shape) -> tuple[str, int, str | None]:
    """The teacher's name of a student's weight, the layer's number in the student, and the name within the layer."""
    prefix = f"{parts.stack}."
    if not name.startswith(prefix):
        return name, 0, None
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{shape.layers[int(number)]}.{rest}", int(number), rest


def _cut_part(model: PreTrainedModel, parts: Parts, tensor: Tensor, rest: str, kept: LayerCut, scale: float) -> Tensor:
    path, _, leaf = rest.rpartition(".")
    if path not in (*parts.reads, parts.writes, *parts.rises, parts.falls):
        return tensor
    module: Any = model.get_submodule(f"{parts.stack}.0.{path}")
    axis_out, axis_in = (0, 0) if leaf == "bias" else axes(module)
    if path in (parts.writes, parts.falls):
        return (
            tensor
            if leaf == "bias"
            else tensor.index_select(axis_in, kept.inner if path == parts.writes else kept.neurons)
        )
    if path in parts.rises:
        fused = tensor.shape[axis_out] > parts.ffn
        rows = torch.cat([kept.neurons, parts.ffn + kept.neurons]) if fused else kept.neurons
        return tensor.index_select(axis_out, rows)
    q, k, _ = parts.widths
    if len(parts.reads) == 1:
        rows = torch.cat([kept.queries, q + kept.keys, q + k + kept.values])
    else:
        rows = (kept.queries, kept.keys, kept.values)[parts.reads.index(path)]
    cut = tensor.index_select(axis_out, rows)
    if scale != 1.0 and path == parts.reads[0]:
        cut.narrow(axis_out, 0, len(kept.queries)).mul_(scale)
    return cut


def _cut_axis(name: str, tensor: Tensor, axis: int, wanted: tuple[int, ...], parts: Parts, cut: Cut) -> Tensor:
    """What the parts of a layer do not say of themselves is as long as the hidden state, or the vocabulary."""
    have, want = tensor.shape[axis], wanted[axis] if len(wanted) == tensor.ndim else -1
    if have == want:
        return tensor
    if have == cut.vocabulary and want == len(cut.tokens):
        return tensor.index_select(axis, cut.tokens)
    if have == parts.hidden and want == len(cut.hidden):
        return tensor.index_select(axis, cut.hidden)
    raise StudentError(
        f"{name} has {list(tensor.shape)} in the teacher and {list(wanted)} in the student: it cannot be cut to that;"
        " keep student.hidden and student.heads as they are"
    )


def _rescaled(tensor: Tensor, leaf: str, found: NormStatistics, weight: Tensor) -> Tensor:
    """A norm divides by the deviation of fewer dimensions: its gain and bias give what it gave on average.

    (x - m') / s' * g s'/s + b + g (m' - m)/s is (x - m) / s * g + b, as far as s'/s and (m' - m)/s are constant.
    """
    return tensor * found.spread if leaf == "weight" else tensor + weight * found.shift
