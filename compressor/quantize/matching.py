"""Which module of a student each node of its graph is.

Modules are found by what their weights are, not by names: a site's weight is that of one module, or those of several
side by side, where products of one input were merged; or what export and rewrites fold into one, a batch normalization
into the layer before it, the one row that is read of a table of segments into the table of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import QuantizationError
from compressor.preprocess import Feed
from compressor.quantize.sites import Site
from compressor.quantize.target import Target

# The exporter computes a folded weight in another order.
_RELATIVE = 1e-5


@dataclass(frozen=True)
class Layer:
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
        """Whether rows are looked up in it."""
        return isinstance(self.module, nn.Embedding)


@dataclass(frozen=True)
class Match:
    """The layers that a site's weight is made of, in the order of its rows."""

    site: Site
    layers: tuple[Layer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers."""
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


def _layers(module: nn.Module, norms: Mapping[nn.Module, _BatchNorm]) -> list[Layer]:
    """Every module with a float weight of two dimensions or more, in each form in which a graph may have it."""
    found = []
    for name, part in module.named_modules():
        weight = part._parameters.get("weight")
        if weight is None or weight.ndim < 2 or not weight.is_floating_point():
            continue
        rows = weight.detach().float().cpu().numpy()
        if (norm := norms.get(part)) is not None:  # first: of one folded before, both forms are equal
            found.append(Layer(name, part, _folded_rows(rows, norm), norm=norm))
        found.append(Layer(name, part, rows))
        if weight.ndim == 2 and not isinstance(part, nn.Linear | nn.Embedding):  # transformers' Conv1D
            found.append(Layer(name, part, np.ascontiguousarray(rows.T), turned=True))
    return found


def _may_be(layer: Layer, site: Site) -> bool:
    return layer.is_table == (site.operator == "Gather") and layer.rows.ndim == len(site.shape)


def _parts(rows: NDArray[np.float32], layers: list[Layer]) -> tuple[Layer, ...] | None:
    """The layers whose rows, one after the other, are these; None where there are none."""
    parts: list[Layer] = []
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


def _shifted(rows: NDArray[np.float32], tables: list[Layer]) -> tuple[Layer, ...] | None:
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


def factors(norm: _BatchNorm) -> Tensor:
    """By what a normalization multiplies each channel."""
    assert norm.running_var is not None
    found: Tensor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return found


def _folded_rows(rows: NDArray[np.float32], norm: _BatchNorm) -> NDArray[np.float32]:
    each = factors(norm).cpu().numpy()
    folded: NDArray[np.float32] = rows * each.reshape(-1, *[1] * (rows.ndim - 1))
    return folded
