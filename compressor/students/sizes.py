"""What a student's sizes come to: the config of the teacher's class with them, or one line that says why not."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from compressor.errors import StudentError, first_line
from compressor.recipe_student import Layers, TextStudent, TransformerStudent
from compressor.students.structure import Parts, width_in


@dataclass(frozen=True)
class Shape:
    """A student's sizes, every one known and possible; `skeleton` is the student without memory for its weights."""

    layers: tuple[int, ...]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    skeleton: PreTrainedModel

    @property
    def config(self) -> PretrainedConfig:
        return self.skeleton.config


def chosen_layers(wanted: Layers | None, depth: int) -> tuple[int, ...]:
    """Layer indices: as given, or `wanted` of them evenly spaced with the first and the last; None is all of them.

    Raises StudentError.
    """
    if wanted is None:
        return tuple(range(depth))
    if isinstance(wanted, int):
        if not 1 <= wanted <= depth:
            raise StudentError(f"student.layers: expected 1 to {depth} (the teacher's depth), got {wanted}")
        return tuple(round(i * (depth - 1) / max(wanted - 1, 1)) for i in range(wanted)) if wanted > 1 else (0,)
    if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= depth:
        raise StudentError(
            f"student.layers: expected ascending layer numbers from 0 to {depth - 1}, got {list(wanted)}"
        )
    return wanted


def resolve(
    model: PreTrainedModel, parts: Parts, spec: TransformerStudent, layers: tuple[int, ...], vocab: int
) -> Shape:
    """The sizes that `spec` asks for beside `layers` and `vocab`; what it leaves out stays the teacher's.

    Raises StudentError for sizes that are larger than the teacher's or do not fit each other.
    """
    hidden = _at_most("hidden", spec.hidden, parts.hidden)
    heads, kv_heads = _heads(parts, spec, hidden)
    ffn = _at_most("ffn", spec.ffn, parts.ffn)
    if hidden % heads:
        raise StudentError(f"student.hidden: expected a multiple of the {heads} heads, got {hidden}; set student.heads")
    config = with_layers(model.config, parts, layers)
    setattr(config, parts.hidden_key, hidden)
    setattr(config, parts.heads_key, heads)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = kv_heads
    setattr(config, parts.ffn_key, ffn)
    if model.main_input_name == "input_ids":
        config.vocab_size = vocab
    skeleton = _with_head_dim(model, parts, config, heads)
    head_dim = width_in(skeleton.get_submodule(f"{parts.stack}.0"), parts.writes) // heads
    _check_head_dim(parts, config, heads, head_dim)
    _check_layers(model, parts, skeleton, layers)
    return Shape(layers, hidden, heads, kv_heads, head_dim, ffn, skeleton)


def with_layers(config: PretrainedConfig, parts: Parts, layers: tuple[int, ...]) -> PretrainedConfig:
    """The config with these of its layers, each with the kind of attention that it has."""
    smaller = copy.deepcopy(config)
    setattr(smaller, parts.depth_key, len(layers))
    if (kinds := getattr(config, "layer_types", None)) is not None:
        smaller.layer_types = [kinds[layer] for layer in layers]
    return smaller


def without_memory(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """A model of the same class on torch's meta device: shapes and names alone. Raises StudentError."""
    try:
        with torch.device("meta"):
            skeleton = type(model)(copy.deepcopy(config))
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        reason = first_line(error)
        raise StudentError(f"transformers builds no {config.model_type} model of these sizes: {reason}") from None
    return skeleton


def _heads(parts: Parts, spec: TransformerStudent, hidden: int) -> tuple[int, int]:
    """Query heads and key-value heads. Left out, all of them where hidden stays, else as many as fit it."""
    kv_heads = parts.kv_heads
    if spec.heads is not None:
        heads = _at_most("heads", spec.heads, parts.heads)
    elif hidden == parts.hidden or parts.heads * parts.head_dim != parts.hidden:
        heads = parts.heads
    else:
        heads = max(hidden // parts.head_dim, 1) // parts.group * parts.group or parts.group
    if isinstance(spec, TextStudent) and spec.kv_heads is not None:
        kv_heads = _at_most("kv_heads", spec.kv_heads, parts.kv_heads)
        if parts.group == 1 and kv_heads != heads:
            raise StudentError("student.kv_heads: the teacher has no grouped-query attention; leave it out")
    elif heads % parts.group:
        raise StudentError(
            f"student.heads: expected a multiple of {parts.group}, the teacher's query heads to a key-value head, got"
            f" {heads}; or set student.kv_heads"
        )
    else:
        kv_heads = heads // parts.group
    if heads % kv_heads or heads // kv_heads > parts.group:
        raise StudentError(
            f"student.kv_heads: {heads} heads in {kv_heads} groups: expected equal groups of at most {parts.group},"
            " the teacher's"
        )
    return heads, kv_heads


def _with_head_dim(model: PreTrainedModel, parts: Parts, config: PretrainedConfig, heads: int) -> PreTrainedModel:
    """The student's shape with heads as wide as the teacher's, where its class takes their width from the config."""
    if getattr(config, "head_dim", None) is not None:
        return without_memory(model, config)
    if heads * parts.head_dim == getattr(config, parts.hidden_key):
        return without_memory(model, config)
    told: Any = copy.deepcopy(config)
    told.head_dim = parts.head_dim
    skeleton = without_memory(model, told)
    inner = width_in(skeleton.get_submodule(f"{parts.stack}.0"), parts.writes)
    return skeleton if inner == heads * parts.head_dim else without_memory(model, config)


def _check_head_dim(parts: Parts, config: PretrainedConfig, heads: int, head_dim: int) -> None:
    if head_dim == parts.head_dim:
        return
    kind = f"{heads} heads of a {config.model_type} model with hidden {getattr(config, parts.hidden_key)}"
    if parts.group > 1 or getattr(config, "rope_parameters", None) is not None:
        raise StudentError(
            f"student.heads: {kind} are {head_dim} wide; expected {parts.head_dim} as the teacher's, whose rotary"
            f" positions or groups need it: choose hidden = heads x {parts.head_dim}"
        )
    if head_dim > parts.head_dim and (head_dim % parts.head_dim or heads * head_dim > parts.heads * parts.head_dim):
        raise StudentError(
            f"student.heads: {kind} are {head_dim} wide; expected at most the teacher's {parts.head_dim}, or a multiple"
            f" of it: choose hidden = heads x {parts.head_dim}"
        )


def _check_layers(model: PreTrainedModel, parts: Parts, skeleton: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Some models build their first layer otherwise: ModernBERT's has no norm in front."""
    for new, old in enumerate(layers):
        wanted = skeleton.get_submodule(f"{parts.stack}.{new}").state_dict().keys()
        if wanted != model.get_submodule(f"{parts.stack}.{old}").state_dict().keys():
            raise StudentError(
                f"student.layers: layer {old} of a {model.config.model_type} model cannot be layer {new} of a student,"
                f" which is built otherwise; keep layer {new} in its place"
            )


def _at_most(name: str, wanted: int | None, limit: int) -> int:
    if wanted is None:
        return limit
    if wanted > limit:
        raise StudentError(f"student.{name}: expected at most {limit} (the teacher's), got {wanted}")
    return wanted
