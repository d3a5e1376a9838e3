"""Statistics of each channel of a graph's values, in one sweep: memory grows with channels, not with batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.errors import BundleError, QuantizationError
from compressor.onnx_file import with_outputs
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed


@dataclass(frozen=True, eq=False)
class Channels:
    """Of each channel the extremes, zero included, and the mean square, float64 [channels]."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    square: NDArray[np.float64]

    @property
    def largest(self) -> NDArray[np.float64]:
        """The largest magnitude."""
        return np.maximum(-self.low, self.high)


def channels(model: onnx.ModelProto, axes: Mapping[str, int], feeds: Iterable[Feed]) -> dict[str, Channels]:
    """The statistics of these values along their axes. Raises QuantizationError where the model does not run."""
    found: dict[str, Channels] = {}
    numbers = dict.fromkeys(axes, 0)
    for name, rows in _rows(model, axes, feeds):
        low, high = np.minimum(rows.min(1), 0.0), np.maximum(rows.max(1), 0.0)
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        numbers[name] += rows.shape[1]
        if (old := found.get(name)) is not None:
            low, high, squares = np.minimum(old.low, low), np.maximum(old.high, high), old.square + squares
        found[name] = Channels(low, high, squares)
    return {name: Channels(one.low, one.high, one.square / numbers[name]) for name, one in found.items()}


def means(model: onnx.ModelProto, axes: Mapping[str, int], feeds: Iterable[Feed]) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel of these values. Raises QuantizationError where the model does not run."""
    sums: dict[str, NDArray[np.float64]] = {}
    numbers = dict.fromkeys(axes, 0)
    for name, rows in _rows(model, axes, feeds):
        sums[name] = sums.get(name, 0.0) + rows.sum(1, dtype=np.float64)
        numbers[name] += rows.shape[1]
    return {name: total / numbers[name] for name, total in sums.items()}


def _rows(
    model: onnx.ModelProto, axes: Mapping[str, int], feeds: Iterable[Feed]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """For each feed each of these values by its name, [channels, numbers]."""
    for outputs in run_on(with_outputs(model, axes), feeds):
        for (name, axis), output in zip(axes.items(), outputs, strict=True):
            yield name, np.moveaxis(output, axis, 0).reshape(output.shape[axis], -1)


def run_on(model: onnx.ModelProto, feeds: Iterable[Feed]) -> Iterator[list[NDArray[np.float32]]]:
    """The model's outputs for each of the feeds. Raises QuantizationError where it does not run."""
    try:
        session = open_session(model.SerializeToString(), threads=0)
        for feed in feeds:
            yield run_one(session, feed)
    except BundleError as error:
        raise QuantizationError(f"calibration: {error}") from None
