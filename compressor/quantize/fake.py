"""Fake quantization in torch: float32 numbers that are what codes stand for, with gradients as if nothing were rounded.

Each function gives bit for bit what the writers of this package put into a file, `qdq.py` for int8 and `blocks.py` for
blocks, and what onnxruntime's QuantizeLinear then computes: round half to even, in float32 throughout. Divisors are
tensors, since torch on a GPU multiplies by the reciprocal of a plain number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.quantize.blocks import SHRINKS
from compressor.quantize.qdq import MAX_INT8, MAX_INT32, MAX_UINT8, MIN_INT32, Affine

_TINY = float(np.finfo(np.float32).tiny)


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
    """uint8 codes as float32, not yet clipped to 0..255."""
    return torch.round(numbers / numbers.new_tensor(affine.scale)) + affine.zero_point


def rounded_activation(numbers: Tensor, affine: Affine) -> Tensor:
    """An activation as its uint8 codes have it; what lies outside of their range learns nothing."""

    def rounding(numbers: Tensor) -> tuple[Tensor, Tensor]:
        codes = activation_codes(numbers, affine)
        clipped = codes.clamp(0, MAX_UINT8)
        return (clipped - affine.zero_point) * numbers.new_tensor(affine.scale), clipped == codes

    return _straight_through(numbers, rounding)


def int8_scales(rows: Tensor) -> Tensor:
    """The scale of each row of [rows, ...]: float32 [rows, 1, ...]. As `qdq.int8_rows`."""
    scales = rows.abs().flatten(1).amax(1) / rows.new_tensor(MAX_INT8)
    scales = torch.where(scales < _TINY, torch.ones_like(scales), scales)
    return scales.reshape(-1, *[1] * (rows.ndim - 1))


class Int8Rows(nn.Module):
    """A weight in int8, a scale for each of its rows, or one for all of it; `turned`: its columns are the rows."""

    def __init__(self, *, whole: bool = False, turned: bool = False) -> None:
        super().__init__()
        self.whole, self.turned = whole, turned

    def forward(self, weight: Tensor) -> Tensor:
        return _straight_through(weight, self._rounding)

    def _rounding(self, weight: Tensor) -> tuple[Tensor, None]:
        rows = weight.T if self.turned else weight
        rows = rows.reshape(1, -1) if self.whole else rows
        scales = int8_scales(rows)
        rounded = torch.round(rows / scales).clamp(-MAX_INT8, MAX_INT8) * scales
        return (rounded.T if self.turned else rounded).reshape(weight.shape), None


class Int32Bias(nn.Module):
    """A bias in int32, in units of the products that it is added to: the activation's scale times that of the row."""

    def __init__(self, weight: nn.Parameter, affine: Affine, *, turned: bool = False) -> None:
        super().__init__()
        self._weight = (weight,)  # in a tuple: it is no parameter of this module
        self._affine, self._turned = affine, turned

    def forward(self, bias: Tensor) -> Tensor:
        return _straight_through(bias, self._rounding)

    def _rounding(self, bias: Tensor) -> tuple[Tensor, None]:
        weight = self._weight[0].T if self._turned else self._weight[0]
        scales = bias.new_tensor(self._affine.scale) * int8_scales(weight).flatten()
        return torch.round(bias / scales).clamp(MIN_INT32, MAX_INT32) * scales, None


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
