"""Fake quantization in torch: float32 numbers that are what codes stand for, with gradients as if nothing were rounded.

Each function gives bit for bit what is put into a file, in int8 by onnxruntime's quantizer and `saturation.py`, in
blocks by `blocks.py`, and what onnxruntime's QuantizeLinear then computes: round half to even. Divisors are tensors,
since torch on a GPU multiplies by the reciprocal of a plain number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.certificate import SAFE_WEIGHT_SUM
from compressor.quantize.blocks import SHRINKS
from compressor.quantize.target import Affine

_TINY = float(np.finfo(np.float32).tiny)
_MAX_INT8, _MAX_UINT8, _MIN_INT32, _MAX_INT32 = 127, 255, -(2**31), 2**31 - 1
# By how much onnxruntime's quantizer lets the least scale of a bias exceed what its int32 needs.
_SPARE = 1.0001

Rounding = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class _StraightThrough(torch.autograd.Function):
    """What `rounding` makes of numbers; backward the gradient as if it were nothing, 0 where its second result is not
    true (Bengio et al. 2013).
    """

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, rounding: Rounding) -> Tensor:
        rounded, inside = rounding(numbers)
        ctx.save_for_backward(inside)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0] if inside is None else gradients[0] * inside, None


def _straight_through(numbers: Tensor, rounding: Rounding) -> Tensor:
    result: Tensor = _StraightThrough.apply(numbers, rounding)  # type: ignore[no-untyped-call]
    return result


def activation_codes(numbers: Tensor, affine: Affine) -> Tensor:
    """Codes as float32, not yet clipped to those that there are."""
    return torch.round(numbers / numbers.new_tensor(affine.scale)) + affine.zero_point


def rounded_activation(numbers: Tensor, affine: Affine) -> Tensor:
    """An activation as its codes have it; what lies outside of their range learns nothing."""

    def rounding(numbers: Tensor) -> tuple[Tensor, Tensor]:
        codes = activation_codes(numbers, affine)
        clipped = codes.clamp(*affine.codes)
        return (clipped - affine.zero_point) * numbers.new_tensor(affine.scale), clipped == codes

    return _straight_through(numbers, rounding)


class Int8Rows(nn.Module):
    """A weight in int8, a scale for each of its rows: its largest magnitude is 127. `turned`: its columns are the rows.

    `narrow`: rows of which two neighbours could exceed 16 bits, times uint8, are rounded once more to a wider step, as
    `saturation.py` does. With a `bias` that becomes int32, in units of the activations' scale `unit` times that of the
    row, a scale is no less than that needs.
    """

    def __init__(
        self,
        *,
        turned: bool = False,
        narrow: bool = False,
        bias: nn.Parameter | None = None,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self._turned, self._narrow, self._unit = turned, narrow, unit
        self._bias = (bias,)  # in a tuple: it is no parameter of this module

    def forward(self, weight: Tensor) -> Tensor:
        return _straight_through(weight, self._rounding)

    def rounded_bias(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The bias of a product with this weight as its int32 codes have it."""
        _, scales, wider = self._codes(weight)
        scales = bias.new_tensor(self._unit) * scales
        codes = torch.round(bias.double() / scales.double()).clamp(_MIN_INT32, _MAX_INT32)
        return torch.round(codes / wider).float() * _times(scales, wider)

    def _rounding(self, weight: Tensor) -> tuple[Tensor, None]:
        codes, scales, wider = self._codes(weight)
        rows = torch.round(codes / _along(wider, codes)).float() * _along(_times(scales, wider), codes)
        return (rows.T if self._turned else rows), None

    def _codes(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """int8 codes as float32 [rows, ...], the scale of each row, float32, and how much wider its step is to be."""
        rows = weight.T if self._turned else weight
        scales = self._scales(rows)
        codes = torch.round(rows / _along(scales, rows)).clamp(-_MAX_INT8, _MAX_INT8)
        return codes, scales, _wider(codes) if self._narrow else torch.ones_like(scales, dtype=torch.float64)

    def _scales(self, rows: Tensor) -> Tensor:
        scales = rows.abs().flatten(1).amax(1) / rows.new_tensor(_MAX_INT8)
        scales = torch.where(scales < _TINY, torch.ones_like(scales), scales)
        (bias,) = self._bias
        if bias is None:
            return scales
        now = rows.new_tensor(self._unit).double() * scales.double()
        least = (rows.new_tensor(_SPARE) * (2 * bias.detach().abs())).double() / float(2 * _MAX_INT32)
        return torch.where(now < least, (scales.double() * (least / now)).float(), scales)


class Uint8Table(nn.Module):
    """A table in uint8, with one scale and one zero point: its extremes, and 0, are codes."""

    def forward(self, weight: Tensor) -> Tensor:
        return _straight_through(weight, self._rounding)

    def _rounding(self, weight: Tensor) -> tuple[Tensor, None]:
        low, high = weight.amin().clamp(max=0).double(), weight.amax().clamp(min=0).double()
        scale = (high - low) / low.new_tensor(_MAX_UINT8)
        scale = torch.where(scale < _TINY, torch.ones_like(scale), scale)
        zero, scale = torch.round(-low / scale).float(), scale.float()
        codes = (torch.round(weight / scale) + zero).clamp(0, _MAX_UINT8)
        return (codes - zero) * scale, None


class Int32Bias(nn.Module):
    """A bias in int32, in units of the products of `rows` that it is added to."""

    def __init__(self, weight: nn.Parameter, rows: Int8Rows) -> None:
        super().__init__()
        self._weight, self._rows = (weight,), (rows,)  # in tuples: they are no parts of this module

    def forward(self, bias: Tensor) -> Tensor:
        return _straight_through(bias, self._rounding)

    def _rounding(self, bias: Tensor) -> tuple[Tensor, None]:
        return self._rows[0].rounded_bias(self._weight[0].detach(), bias), None


def _wider(codes: Tensor) -> Tensor:
    """For each row of codes by how much its step is to widen, float64: as `saturation.weight_sums` and `_narrow`."""
    depth = codes.movedim(1, -1).flatten(1)  # inputs of a place in a kernel are neighbours
    depth = functional.pad(depth, (0, depth.shape[1] % 2))
    pairs = [sign.clamp(min=0).reshape(len(sign), -1, 2).sum(2).amax(1) for sign in (depth, -depth)]
    sums = torch.maximum(*pairs).double()
    return torch.where(sums > SAFE_WEIGHT_SUM, sums / sums.new_tensor(SAFE_WEIGHT_SUM - 1), torch.ones_like(sums))


def _along(each: Tensor, rows: Tensor) -> Tensor:
    return each.reshape(-1, *[1] * (rows.ndim - 1))


def _times(scales: Tensor, wider: Tensor) -> Tensor:
    return (scales.double() * wider).float()


class InBlocks(nn.Module):
    """A weight [rows, columns] in blocks of `bits`, as `blocks.to_blocks` makes them; `turned`: [columns, rows]."""

    def __init__(self, bits: int, block: int, *, turned: bool = False) -> None:
        super().__init__()
        self.bits, self.block, self.turned = bits, block, turned

    def forward(self, weight: Tensor) -> Tensor:
        return _straight_through(weight, self._rounding)

    def _rounding(self, weight: Tensor) -> tuple[Tensor, None]:
        rounded = _in_blocks(weight.T if self.turned else weight, self.bits, self.block)
        return rounded.T if self.turned else rounded, None


def _in_blocks(rows: Tensor, bits: int, block: int) -> Tensor:
    columns = rows.shape[1]
    numbers = functional.pad(rows, (0, -columns % block)).reshape(len(rows), -1, block)
    low, high = numbers.amin(2).clamp(max=0), numbers.amax(2).clamp(min=0)
    best = _affine_blocks(numbers, low, high, bits)
    least = _squared_error(best, numbers)
    for shrink in SHRINKS[bits]:
        tried = _affine_blocks(numbers, low * shrink, high * shrink, bits)
        error = _squared_error(tried, numbers)
        better = error < least
        best = torch.where(better[..., None], tried, best)
        least = torch.where(better, error, least)
    return best.reshape(len(rows), -1)[:, :columns]


def _affine_blocks(numbers: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    most = 2**bits - 1
    scales = (high - low) / numbers.new_tensor(most)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    zeros = torch.round(-low / scales).clamp(0, most)[..., None]
    scales = scales[..., None]
    codes = (torch.round(numbers / scales) + zeros).clamp(0, most)
    return (codes - zeros) * scales


def _squared_error(rounded: Tensor, numbers: Tensor) -> Tensor:
    return (rounded - numbers).double().square().sum(2)
