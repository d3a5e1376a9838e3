"""Reading what happens inside a transformer while it runs: hidden states of layers, and their queries, keys, values.

A tap's name says what and where: `hidden.3` is the output of layer 3, float [batch, sequence, hidden]; `qkv.5` are the
queries, keys and values of layer 5 side by side, float [batch, sequence, 3 * width].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.artifacts import TapPair
from compressor.errors import CompressorError, RecipeError, StudentError, TeacherError
from compressor.recipe_base import is_on
from compressor.recipe_distill import Distillation, TokenDistillation

HIDDEN, QKV = "hidden", "qkv"
# The last part of the name of a linear map, by whose authors named it so.
_SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_FUSED = ("Wqkv", "c_attn", "qkv")


def layer_stack(module: nn.Module, error: type[CompressorError]) -> nn.ModuleList:
    """The layers of the transformer in a module. `error` is raised where there is no transformer, or no one stack."""
    model = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
    depth = None
    if model is not None:
        with suppress(AttributeError):
            depth = model.config.num_hidden_layers
    found = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if len(found) != 1:
        raise error(
            "hidden_weight and relation_weight need a transformer with one stack of layers;"
            f" found {'none' if depth is None else f'{len(found)} of {depth} layers'}: set both to 0"
        )
    return found[0]


def inside_signals(settings: Distillation) -> tuple[str, ...]:
    """Which signals from inside the teacher have a weight: the kinds of taps that they need."""
    if not isinstance(settings, TokenDistillation):
        return ()
    weights = {HIDDEN: settings.hidden_weight, QKV: settings.relation_weight}
    return tuple(kind for kind, weight in weights.items() if is_on(weight))


def tap_pairs(settings: TokenDistillation, student: nn.Module, teacher: nn.Module) -> tuple[TapPair, ...]:
    """What the student is to learn from inside the teacher: hidden states, relations of the last layers.

    Unless `settings.hidden_layers` says which, student layer i of n learns from teacher layer (i + 1) * N / n - 1 of N:
    the last from the last, the others evenly before it (Jiao et al. 2020, TinyBERT). Raises TeacherError, StudentError,
    and RecipeError for `relation_heads` that do not divide the widths.
    """
    small, large = len(layer_stack(student, StudentError)), len(layer_stack(teacher, TeacherError))
    spread = {layer: round((layer + 1) * large / small) - 1 for layer in range(small)}
    layers = settings.hidden_layers if settings.hidden_layers is not None else spread
    pairs = [TapPair(f"{HIDDEN}.{mine}", f"{HIDDEN}.{theirs}") for mine, theirs in sorted(layers.items())]
    last = [TapPair(f"{QKV}.{small - 1}", f"{QKV}.{large - 1}")]
    inside = inside_signals(settings)
    if QKV in inside:
        _check_heads(settings.relation_heads, student, teacher)
    return (*(pairs if HIDDEN in inside else ()), *(last if QKV in inside else ()))


def _check_heads(heads: int, student: nn.Module, teacher: nn.Module) -> None:
    mine = _width(_queries_keys_values(layer_stack(student, StudentError)[-1], StudentError))
    theirs = _width(_queries_keys_values(layer_stack(teacher, TeacherError)[-1], TeacherError))
    both = math.gcd(mine, theirs)
    if both % heads:
        best = max(number for number in range(1, heads) if both % number == 0)
        raise RecipeError(
            f"distill.relation_heads: expected a divisor of the width of queries, {mine} in the student and {theirs} in"
            f" the teacher, got {heads}; set it to {best}"
        )


def _width(maps: Sequence[nn.Module]) -> int:
    """Of the queries alone. The outputs of a linear map are `out_features`, of GPT-2's kind `nf`."""
    return sum(int(getattr(part, "out_features", 0)) or int(getattr(part, "nf", 0)) for part in maps) // 3


class Taps:
    """Hooks in a module's layers; `take` hands over what the last forward pass gave. `close` removes the hooks.

    Raises `error` (a CompressorError) where a layer does not exist, or its queries, keys and values are not found.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], error: type[CompressorError]) -> None:
        self._values: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        stack = layer_stack(module, error) if names else nn.ModuleList()
        for name in dict.fromkeys(names):
            kind, _, number = name.partition(".")
            if not 0 <= int(number) < len(stack):
                raise error(
                    f"distill.hidden_layers: layer {number}: expected 0 to {len(stack) - 1}; the model has {len(stack)}"
                    " layers"
                )
            layer = stack[int(number)]
            for part, target in enumerate([layer] if kind == HIDDEN else _queries_keys_values(layer, error)):
                self._hooks.append(target.register_forward_hook(self._keeping(f"{name}/{part}")))

    def _keeping(self, key: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._values[key] = output[0] if isinstance(output, tuple) else output

        return hook

    def take(self) -> dict[str, Tensor]:
        """By tap: float [batch, sequence, width], with the graph that made it."""
        parts: dict[str, list[Tensor]] = {}
        for key, value in sorted(self._values.items()):
            parts.setdefault(key.partition("/")[0], []).append(value)
        self._values.clear()
        return {name: torch.cat(values, dim=-1) for name, values in parts.items()}

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _queries_keys_values(layer: nn.Module, error: type[CompressorError]) -> list[nn.Module]:
    """The maps whose outputs, side by side, are queries, keys and values of equal width."""
    by_name = {name.rpartition(".")[2]: part for name, part in layer.named_modules()}
    for names in _SEPARATE:
        if all(name in by_name for name in names):
            found = [by_name[name] for name in names]
            if len({getattr(part, "out_features", None) for part in found}) > 1:
                raise error("relation_weight: queries, keys and values differ in width (grouped heads); set it to 0")
            return found
    for name in _FUSED:
        if name in by_name:
            return [by_name[name]]
    raise error(f"relation_weight: found no queries, keys and values in {type(layer).__name__}; set it to 0")
