"""A physically smaller transformer cut out of the teacher's own weights: encoder, decoder or vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.recipe_student import TextStudent, TransformerStudent
from compressor.students.cut import Cut, choose_layer, cut_model, query_scale, top
from compressor.students.embedding import fill_parts, note_parts, put_parts, refuse_tied
from compressor.students.importance import Importance, TorchFeed, measure, norm_statistics
from compressor.students.sizes import Shape, chosen_layers, resolve
from compressor.students.structure import Parts, find_parts


@dataclass(frozen=True)
class Derived:
    """A student in evaluation mode, and its sizes in words."""

    model: PreTrainedModel
    notes: tuple[str, ...]


def derive_model(
    model: PreTrainedModel, spec: TransformerStudent, feeds: Sequence[TorchFeed], kept_ids: Tensor | None = None
) -> Derived:
    """A student of the sizes in `spec`, of the teacher's class and with its weights; the teacher stays as it was.

    `feeds` are batches of the model's keyword arguments, int64 `input_ids` and `attention_mask` [batch, sequence] or
    float32 `pixel_values` [batch, channels, height, width]: what matters is measured on them. `kept_ids` int64 are the
    tokens that stay, ascending; None keeps all. Raises StudentError for what is impossible.
    """
    parts = find_parts(model)
    vocabulary = vocabulary_of(model)
    tokens = torch.arange(vocabulary) if kept_ids is None else kept_ids
    shape = resolve(model, parts, spec, first_layers(spec, parts), len(tokens))
    refuse_tied(model, _table_width(spec), shape.hidden)
    importance = measure(model, parts, feeds, spec.importance) if _measured(spec, shape, parts) else _equal(parts)
    if isinstance(spec.layers, int) and spec.choose == "influence":
        shape = resolve(model, parts, spec, _most_influential(importance, spec.layers), len(tokens))
    hidden = top(importance.hidden, shape.hidden)
    cut = Cut(
        layers=tuple(choose_layer(importance, parts, shape, layer) for layer in shape.layers),
        hidden=hidden,
        tokens=tokens,
        vocabulary=vocabulary,
        query_scale=query_scale(parts, shape),
        norms=norm_statistics(model, parts.hidden, hidden, feeds) if shape.hidden < parts.hidden else {},
    )
    student = cut_model(model, parts, shape, cut)
    table: Any = student.get_input_embeddings()
    _extend(student, model, spec)
    fill_parts(student, table.weight if _table_width(spec) is not None else torch.empty(0), hidden)
    student.train(False)
    return Derived(student, _notes(model, parts, shape, spec))


def blank_model(model: PreTrainedModel, spec: TransformerStudent, vocabulary: int) -> PreTrainedModel:
    """A student of the sizes in `spec` with weights of no meaning. Raises StudentError for what is impossible."""
    parts = find_parts(model)
    shape = resolve(model, parts, spec, first_layers(spec, parts), vocabulary)
    refuse_tied(model, _table_width(spec), shape.hidden)
    student = type(model)(shape.config)
    _extend(student, model, spec)
    return student


def _extend(student: PreTrainedModel, teacher: PreTrainedModel, spec: TransformerStudent) -> None:
    """A narrow token table where one is asked for; to a hidden state that is the output, a map to the teacher's."""
    width, full = int(student.config.hidden_size), int(teacher.config.hidden_size)
    gives_hidden = student.base_model is student and student.main_input_name == "input_ids"
    note_parts(student.config, _table_width(spec), full if gives_hidden and width < full else None)
    put_parts(student)


def vocabulary_of(model: PreTrainedModel) -> int:
    """Tokens that a model knows; none where it reads no text."""
    return int(model.config.vocab_size) if model.main_input_name == "input_ids" else 0


def _table_width(spec: TransformerStudent) -> int | None:
    """Of the token table, where one is asked for that is narrower than the hidden state."""
    return spec.embedding if isinstance(spec, TextStudent) else None


def first_layers(spec: TransformerStudent, parts: Parts) -> tuple[int, ...]:
    """The layers of the student as far as they are known without data. Raises StudentError."""
    return chosen_layers(spec.layers, parts.depth)


def count(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _measured(spec: TransformerStudent, shape: Shape, parts: Parts) -> bool:
    narrower = (shape.hidden, shape.heads, shape.ffn) != (parts.hidden, parts.heads, parts.ffn)
    return narrower or spec.choose == "influence"


def _equal(parts: Parts) -> Importance:
    by_head, inner = (parts.depth, parts.heads), (parts.depth, parts.heads * parts.head_dim)
    keys, neurons = (parts.depth, parts.kv_heads * parts.head_dim), (parts.depth, parts.ffn)
    sizes = (parts.hidden,), inner, by_head, inner, keys, neurons, (parts.depth,)
    return Importance(*(torch.zeros(size) for size in sizes))


def _most_influential(importance: Importance, number: int) -> tuple[int, ...]:
    """The first layer, which reads the embeddings, and those of most influence among the others."""
    others = 1 + top(importance.influence[1:], number - 1)
    return (0, *others.tolist())


def _notes(model: PreTrainedModel, parts: Parts, shape: Shape, spec: TransformerStudent) -> tuple[str, ...]:
    kept = [
        f"layers {', '.join(map(str, shape.layers))} of {parts.depth}",
        f"hidden {shape.hidden} of {parts.hidden}",
        f"heads {shape.heads} of {parts.heads}",
        f"feed-forward {shape.ffn} of {parts.ffn}",
    ]
    if model.main_input_name == "input_ids":
        kept.append(f"vocabulary {shape.config.vocab_size} of {model.config.vocab_size}")
    if (width := _table_width(spec)) is not None:
        kept.append(f"embedding {width} of {shape.hidden}")
    return tuple(kept)
