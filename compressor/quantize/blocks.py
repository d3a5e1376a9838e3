"""Weights in blocks of few bits: each block of consecutive numbers has a scale and a zero point of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# How far a block's range is drawn in, in the search for the least squared error; of 8 bits nothing is gained by it.
SHRINKS: dict[int, tuple[float, ...]] = {4: (0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: ()}


@dataclass(frozen=True)
class Blocks:
    """A matrix [rows, columns], each row cut into blocks: number = (code - zero point) x scale.

    `codes` uint8 [rows, blocks, block x bits / 8]: of 4 bits two in a byte, the earlier one in the lower half.
    `scales` float32 [rows, blocks]. `zero_points` uint8 [rows, ceil(blocks x bits / 8)], packed in the same way.
    A last block that the row does not fill ends in codes of 0. This is how onnxruntime's MatMulNBits has its weights.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]
    bits: int
    block: int


def to_blocks(matrix: NDArray[np.float32], bits: int, block: int) -> Blocks:
    """Rounds a matrix [rows, columns] to `bits` (4 or 8) in blocks of `block` columns, asymmetric, 0 exact."""
    rows, columns = matrix.shape
    count = -(-columns // block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :columns] = matrix
    numbers = padded.reshape(rows, count, block)
    low, high = np.minimum(numbers.min(2), 0), np.maximum(numbers.max(2), 0)
    codes, scales, zeros = _rounded(numbers, low, high, bits)
    best = _squared_error(numbers, codes, scales, zeros)
    for shrink in SHRINKS[bits]:
        tried = _rounded(numbers, low * shrink, high * shrink, bits)
        error = _squared_error(numbers, *tried)
        better = error < best
        best[better] = error[better]
        codes[better], scales[better], zeros[better] = (part[better] for part in tried)
    return Blocks(_packed(codes, bits), scales, _packed(zeros, bits), bits, block)


def from_blocks(blocks: Blocks, columns: int) -> NDArray[np.float32]:
    """The matrix [rows, columns] that the blocks stand for."""
    rows, count = blocks.scales.shape
    codes = _unpacked(blocks.codes, blocks.bits)
    zeros = _unpacked(blocks.zero_points, blocks.bits)[:, :count]
    numbers = (codes.astype(np.float32) - zeros[..., None].astype(np.float32)) * blocks.scales[..., None]
    return numbers.reshape(rows, -1)[:, :columns]


def _rounded(
    numbers: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    most = 2**bits - 1
    scales = ((high - low) / most).astype(np.float32)
    scales[scales == 0] = 1
    zeros = np.clip(np.rint(-low / scales), 0, most).astype(np.uint8)
    codes = np.clip(np.rint(numbers / scales[..., None]) + zeros[..., None], 0, most).astype(np.uint8)
    return codes, scales, zeros


def _squared_error(
    numbers: NDArray[np.float32], codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8]
) -> NDArray[np.float64]:
    restored = (codes.astype(np.float32) - zeros[..., None]) * scales[..., None]
    # In float64, where the order of a sum does not decide between two ranges: `fake.py` sums in another.
    error: NDArray[np.float64] = np.square(restored - numbers, dtype=np.float64).sum(2)
    return error


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Along the last dimension; an odd number of halves ends in 0."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
