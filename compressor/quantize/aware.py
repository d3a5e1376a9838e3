"""A student that computes as its quantized graph will: which module each node of the graph is, and how it rounds.

Modules are found by what their weights are, not by names: a site's weight is that of one module, or those of several
side by side, where products of one input were merged. What export and rewrites fold is folded in the student too, for
good, so that what is trained is what is rounded: a batch normalization into the layer before it, and the one row that
is read of a table of segments into the table of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from compressor.errors import QuantizationError
from compressor.preprocess import Feed
from compressor.quantize.fake import InBlocks, Int8Rows, Int32Bias, Uint8Table, rounded_activation
from compressor.quantize.sites import Site
from compressor.quantize.target import Affine, Static, Target
from compressor.quantize.weight_only import BITS, block_of

# The exporter computes a folded weight in another order.
_RELATIVE = 1e-5


@dataclass(frozen=True)
class _Layer:
    """A module with a weight, whose rows are float32 [outputs, ...]; `turned`: the weight has them as columns.

    `norm`: the batch normalization after it, folded into `rows`. `shift`: the table of which that row is added.
    """

    name: str
    module: nn.Module
    rows: NDArray[np.float32]
    turned: bool = False
    norm: _BatchNorm | None = None
    shift: tuple[nn.Embedding, int] | None = None

    @property
    def is_table(self) -> bool:
        return isinstance(self.module, nn.Embedding)


@dataclass(frozen=True)
class Match:
    """The layers that a site's weight is made of, in the order of its rows."""

    site: Site
    layers: tuple[_Layer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)


def match(module: nn.Module, target: Target, feed: Feed) -> tuple[Match, ...]:
    """The modules of every site that is to be quantized.

    `feed` is run once. Raises QuantizationError for a site that has no module, or where two modules have equal weights,
    or one is read by nodes that round differently.
    """
    layers = _layers(module, _norms(module, feed))
    found = []
    for site in target.sites:
        if target.chosen[site.node] == "float32":
            continue
        rows, possible = target.weight(site), [layer for layer in layers if _may_be(layer, site)]
        parts = _parts(rows, possible)
        if parts is None and site.operator == "Gather":
            parts = _shifted(rows, possible)
        if parts is None:
            raise QuantizationError(
                f"{site.node} ({site.operator} with {' x '.join(map(str, site.shape))} weights): no module of the"
                f" student has its weights, so it cannot be trained; set quantize.overrides to {{{site.node}: float32}}"
            )
        found.append(Match(site, parts))
    _check_once(found, target)
    return tuple(found)


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
    layer: _Layer
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


def _layers(module: nn.Module, norms: Mapping[nn.Module, _BatchNorm]) -> list[_Layer]:
    """Every module with a float weight of two dimensions or more, in each form in which a graph may have it."""
    found = []
    for name, part in module.named_modules():
        weight = part._parameters.get("weight")
        if weight is None or weight.ndim < 2 or not weight.is_floating_point():
            continue
        rows = weight.detach().float().cpu().numpy()
        if (norm := norms.get(part)) is not None:  # first: of one folded before, both forms are equal
            found.append(_Layer(name, part, _folded_rows(rows, norm), norm=norm))
        found.append(_Layer(name, part, rows))
        if weight.ndim == 2 and not isinstance(part, nn.Linear | nn.Embedding):  # transformers' Conv1D
            found.append(_Layer(name, part, np.ascontiguousarray(rows.T), turned=True))
    return found


def _may_be(layer: _Layer, site: Site) -> bool:
    return layer.is_table == (site.operator == "Gather") and layer.rows.ndim == len(site.shape)


def _parts(rows: NDArray[np.float32], layers: list[_Layer]) -> tuple[_Layer, ...] | None:
    """The layers whose rows, one after the other, are these; None where there are none."""
    parts: list[_Layer] = []
    at = 0
    while at < len(rows):
        fitting = [layer for layer in layers if _begins_with(rows[at:], layer.rows)]
        if not fitting:
            return None
        if len({id(layer.module) for layer in fitting}) > 1:
            raise QuantizationError(
                f"{' and '.join(layer.name for layer in fitting)} have equal weights and cannot be told apart; train"
                " the student first (distill.epochs)"
            )
        parts.append(fitting[0])
        at += len(fitting[0].rows)
    return tuple(parts)


def _shifted(rows: NDArray[np.float32], tables: list[_Layer]) -> tuple[_Layer, ...] | None:
    """The table that gives these rows once one row of another is added to all of its own; None if there is none."""
    for layer in (table for table in tables if table.rows.shape == rows.shape):
        for other in (table for table in tables if table.module is not layer.module):
            assert isinstance(other.module, nn.Embedding)
            first = (
                np.abs(layer.rows[0] + other.rows - rows[0]).max(1) if other.rows.shape[1:] == rows.shape[1:] else []
            )
            for row in np.flatnonzero(np.asarray(first) <= _RELATIVE * float(np.abs(rows).max(initial=0.0))):
                if _begins_with(rows, layer.rows + other.rows[row]):
                    return (replace(layer, rows=rows, shift=(other.module, int(row))),)
    return None


def _begins_with(rows: NDArray[np.float32], part: NDArray[np.float32]) -> bool:
    if part.shape[1:] != rows.shape[1:] or len(part) > len(rows):
        return False
    tolerance = _RELATIVE * float(np.abs(part).max(initial=0.0))
    return bool(
        np.allclose(part[0], rows[0], rtol=0, atol=tolerance)
        and np.allclose(part, rows[: len(part)], rtol=0, atol=tolerance)
    )


def _check_once(found: list[Match], target: Target) -> None:
    """A module rounds in one way, however often it is called."""
    seen: dict[str, tuple[object, str]] = {}
    for one in found:
        own = target.chosen[one.site.node], target.static.get(one.site.node)
        for name in one.names:
            way, node = seen.setdefault(name, (own, one.site.node))
            if way != own:
                raise QuantizationError(
                    f"{name}: is both {node} and {one.site.node}, which round differently; set quantize.overrides to"
                    f" {{{node}: weight-int8, {one.site.node}: weight-int8}}"
                )


def _norms(module: nn.Module, feed: Feed) -> dict[nn.Module, _BatchNorm]:
    """Which batch normalization each module's output goes into."""
    made: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # or a later tensor could have the same id
    found: dict[nn.Module, _BatchNorm] = {}

    def note(part: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(part, _BatchNorm) and part.affine and part.track_running_stats:
            if (source := made.get(id(inputs[0]))) is not None:
                found[source] = part
        elif isinstance(output, Tensor) and "weight" in part._parameters:
            made[id(output)] = part
            kept.append(output)

    handles = [part.register_forward_hook(note) for part in module.modules()]
    try:
        with torch.inference_mode():
            module.eval()(**{name: torch.from_numpy(array) for name, array in feed.items()})
    finally:
        for handle in handles:
            handle.remove()
    return found


def _factors(norm: _BatchNorm) -> Tensor:
    assert norm.running_var is not None
    factors: Tensor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return factors


def _folded_rows(rows: NDArray[np.float32], norm: _BatchNorm) -> NDArray[np.float32]:
    factors = _factors(norm).cpu().numpy()
    folded: NDArray[np.float32] = rows * factors.reshape(-1, *[1] * (rows.ndim - 1))
    return folded


def _folded_bias(layer: nn.Module, norm: _BatchNorm) -> Tensor:
    assert norm.running_mean is not None
    own = getattr(layer, "bias", None)
    before = torch.zeros_like(norm.running_mean) if own is None else own.detach()
    bias: Tensor = norm.bias.detach() + (before - norm.running_mean) * _factors(norm)
    return bias


def _unit_variance(eps: float) -> float:
    """A float32 variance to which eps adds up to 1, so that a normalization by it changes nothing."""
    variance = np.float32(1) - np.float32(eps)
    for candidate in (variance, np.nextafter(variance, np.float32(0)), np.nextafter(variance, np.float32(1))):
        if candidate + np.float32(eps) == 1:
            return float(candidate)
    raise QuantizationError(f"a batch normalization with eps {eps:g} cannot be folded; set its convolution to float32")
