"""A student that computes as its quantized graph will: every module rounds as its node does.

What export and rewrites fold is folded in the student too, for good, so that what is trained is what is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from compressor.errors import QuantizationError
from compressor.preprocess import Feed
from compressor.quantize.fake import InBlocks, Int8Rows, Int32Bias, Uint8Table, rounded_activation
from compressor.quantize.matching import Layer, Match, factors, match
from compressor.quantize.sites import Site
from compressor.quantize.target import Affine, Static, Target
from compressor.quantize.weight_only import BITS, block_of


@contextmanager
def fake_quantized(module: nn.Module, target: Target, feed: Feed) -> Iterator[tuple[Match, ...]]:
    """Within, the module computes in float32 what the target's file computes in integers, and gradients go straight
    through the rounding. Afterwards it is as it was, but for its weights and for folded normalizations.

    Raises QuantizationError as `match` does.
    """
    found = match(module, target, feed)
    tables = {site.weight for site in target.sites if site.operator == "Gather"}
    with ExitStack() as undo:
        done: set[str] = set()
        for one in found:
            for layer in one.layers:
                if layer.name not in done:
                    _Rounding(layer, one.site, target, undo).apply(tied=one.site.weight in tables)
                    done.add(layer.name)
        yield found


@dataclass(frozen=True)
class _Rounding:
    layer: Layer
    site: Site
    target: Target
    undo: ExitStack

    def apply(self, *, tied: bool) -> None:
        precision, layer = self.target.chosen[self.site.node], self.layer
        if layer.norm is not None:
            self._fold(layer.norm)
        if layer.shift is not None:
            self._shift(*layer.shift)
        if precision in BITS:
            block = block_of(layer.rows.shape[1], self.target.block, tied)
            self._parametrize(layer.module, "weight", InBlocks(BITS[precision], block, turned=layer.turned))
        elif self.site.operator == "Gather":
            self._parametrize(layer.module, "weight", Uint8Table())
        else:
            self._static(self.target.static[self.site.node])

    def _static(self, rounding: Static) -> None:
        layer, last = self.layer, self.layer.norm or self.layer.module
        weight, bias = layer.module.weight, getattr(last, "bias", None)
        assert isinstance(weight, nn.Parameter)
        assert rounding.reads is not None
        self._hook(layer.module.register_forward_pre_hook(_rounding_input(rounding.reads)))
        added = bias if rounding.bias else None
        rows = Int8Rows(turned=layer.turned, narrow=rounding.narrow, bias=added, unit=rounding.reads.scale)
        self._parametrize(layer.module, "weight", rows)
        if rounding.bias:
            if bias is None:
                raise self._untrained(f"adds a constant that {layer.name} has not")
            self._parametrize(last, "bias", Int32Bias(weight, rows))
        if rounding.gives is not None:
            if bias is not None and not rounding.bias:
                raise self._untrained(f"is rounded before {layer.name} adds its bias")
            self._hook(last.register_forward_hook(_rounding_output(rounding.gives)))

    def _untrained(self, why: str) -> QuantizationError:
        node = self.site.node
        return QuantizationError(f"{node}: {why}; set quantize.overrides to {{{node}: float32}}")

    def _fold(self, norm: _BatchNorm) -> None:
        """Leaves a normalization that adds its bias and does nothing else, and stays so in training."""
        layer = self.layer.module
        bias = _folded_bias(layer, norm)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.layer.rows))  # type: ignore[operator]
            if getattr(layer, "bias", None) is not None:
                layer.bias.zero_()  # type: ignore[operator]
            norm.weight.fill_(1.0)
            norm.bias.copy_(bias)
            norm.running_mean.zero_()  # type: ignore[union-attr]
            norm.running_var.fill_(_unit_variance(norm.eps))  # type: ignore[union-attr]
        still = [norm.weight, *([layer.bias] if getattr(layer, "bias", None) is not None else [])]
        for parameter in still:
            self._freeze(parameter)
        self._hook(norm.register_forward_pre_hook(_not_training))

    def _shift(self, added: nn.Embedding, row: int) -> None:
        """Leaves of the other table differences from the row that is read, which is 0, and stays so in training."""
        with torch.no_grad():
            self.layer.module.weight.copy_(torch.tensor(self.layer.rows))  # type: ignore[operator]
            added.weight -= added.weight[row].clone()
        self._freeze(added.weight)

    def _freeze(self, parameter: Tensor | nn.Module) -> None:
        assert isinstance(parameter, nn.Parameter)
        self.undo.callback(parameter.requires_grad_, parameter.requires_grad)
        parameter.requires_grad_(False)

    def _parametrize(self, module: nn.Module, name: str, rounding: nn.Module) -> None:
        parametrize.register_parametrization(module, name, rounding)
        self.undo.callback(parametrize.remove_parametrizations, module, name, leave_parametrized=False)

    def _hook(self, handle: Any) -> None:
        self.undo.callback(handle.remove)


def _not_training(norm: nn.Module, _: Any) -> None:
    norm.train(False)


def _rounding_input(affine: Affine) -> Callable[..., Any]:
    return lambda _, inputs: (rounded_activation(inputs[0], affine), *inputs[1:])


def _rounding_output(affine: Affine) -> Callable[..., Any]:
    return lambda _, __, output: rounded_activation(output, affine)


def _folded_bias(layer: nn.Module, norm: _BatchNorm) -> Tensor:
    assert norm.running_mean is not None
    own = getattr(layer, "bias", None)
    before = torch.zeros_like(norm.running_mean) if own is None else own.detach()
    bias: Tensor = norm.bias.detach() + (before - norm.running_mean) * factors(norm)
    return bias


def _unit_variance(eps: float) -> float:
    """A float32 variance to which eps adds up to 1, so that a normalization by it changes nothing."""
    variance = np.float32(1) - np.float32(eps)
    for candidate in (variance, np.nextafter(variance, np.float32(0)), np.nextafter(variance, np.float32(1))):
        if candidate + np.float32(eps) == 1:
            return float(candidate)
    raise QuantizationError(f"a batch normalization with eps {eps:g} cannot be folded; set its convolution to float32")
