"""Weights in blocks: what is stored stands for nearly what was given, as onnxruntime reads it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from compressor.quantize.blocks import Blocks, from_blocks, to_blocks


def matrix(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "block"), [(64, 32), (50, 32), (32, 16), (16, 128)])
def test_no_number_is_further_than_half_a_step_unless_the_range_was_drawn_in(
    bits: int, columns: int, block: int
) -> None:
    given = matrix(5, columns)
    blocks = to_blocks(given, bits, block)
    count = -(-columns // block)
    assert blocks.codes.shape == (5, count, block * bits // 8)
    assert blocks.scales.shape == (5, count)
    assert blocks.zero_points.shape == (5, -(-count * bits // 8))
    restored = from_blocks(blocks, columns)
    for row in range(5):
        for i in range(count):
            part = slice(i * block, min((i + 1) * block, columns))
            numbers = given[row, part].astype(np.float64)
            width = max(numbers.max(), 0) - min(numbers.min(), 0)
            step = width / (2**bits - 1)
            worst = np.abs(restored[row, part] - numbers).max()
            # What is cut off is at most 30% of the range, where the search draws it in.
            assert worst <= (0.51 * step if bits == 8 else 0.3 * width + step)


def test_halves_lie_as_the_format_says() -> None:
    """By hand: 0..15 in steps of 1 have scale 1 and zero point 0; the earlier number is in the lower half."""
    blocks = to_blocks(np.arange(16, dtype=np.float32)[None], 4, 16)
    assert blocks.scales.tolist() == [[1.0]]
    assert blocks.zero_points.tolist() == [[0]]
    assert blocks.codes[0, 0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]


def test_zero_is_exact_and_a_block_of_zeros_is_one_of_zeros() -> None:
    given = matrix(3, 64)
    given[:, ::3] = 0
    given[1] = 0
    restored = from_blocks(to_blocks(given, 4, 32), 64)
    assert (restored[given == 0] == 0).all()


def test_the_search_errs_less_than_the_whole_range_and_than_onnxruntimes_quantizer() -> None:
    given = matrix(64, 128)
    ours = np.square(from_blocks(to_blocks(given, 4, 32), 128) - given).sum()
    assert ours < np.square(from_blocks(_by_onnxruntime(given), 128) - given).sum()


def _by_onnxruntime(given: NDArray[np.float32]) -> Blocks:
    weight = onnx.numpy_helper.from_array(np.ascontiguousarray(given.T), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", given.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", given.shape[0]])],
        [weight],
    )
    quantizer = MatMulNBitsQuantizer(helper.make_model(graph), bits=4, block_size=32, is_symmetric=False)
    quantizer.process()
    found = {t.name: onnx.numpy_helper.to_array(t) for t in quantizer.model.model.graph.initializer}
    return Blocks(found["w_Q4"], found["w_scales"], found["w_zero_points"], 4, 32)
