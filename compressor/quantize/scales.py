"""By what the channels of a seam are divided, so that int8 errs less behind it.

Cross-layer equalization (Nagel et al. 2019, arXiv 1906.04721, equation 11): s = sqrt(r1 / r2), with r1 the largest
weight that makes a channel and r2 the largest that reads it. SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, equation
4): s = max|x|^a / max|w|^(1 - a) moves the difficulty of activations into the weights, as far as `a` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compressor.quantize.channels import Channels
from compressor.quantize.products import Graph
from compressor.quantize.seams import PRODUCTS, Seam, by_input

_STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_STEPS, _WEIGHT_STEPS = 255, 254
# What is expected of rounding is only an estimate: a seam is moved where it errs less by a tenth.
_WORTH = 0.9
# A channel that is nearly nothing must not be blown up into the range of the others.
_MOST = 2.0**10


def choose_scales(
    model: onnx.ModelProto, seams: tuple[Seam, ...], seen: Mapping[str, Channels]
) -> dict[Seam, NDArray[np.float64]]:
    """For each seam where one of the formulas lessens the rounding that is expected behind it, that one's scales."""
    graph = Graph(model)
    chosen = {}
    for seam in seams:
        readers = [_weights(graph, name) for name in seam.readers]
        least = _WORTH * expected_error(readers, seen[seam.value], np.ones(seam.channels))
        for scale in _candidates(graph, seam, readers, seen[seam.value]):
            error = expected_error(readers, seen[seam.value], scale)
            if error < least:
                least, chosen[seam] = error, scale
    return chosen


def expected_error(readers: list[NDArray[np.float32]], seen: Channels, scale: NDArray[np.float64]) -> float:
    """Squared error of the products' outputs that rounding gives, when channels are divided by `scale`.

    A step of q errs by q^2 / 12 (Widrow and Kollar 2008): of activations, through the weights; of weights, each output
    channel with a step of its own, through the activations. `readers` are weights as `seams.by_input` has them.
    """
    step = ((seen.high / scale).max() - (seen.low / scale).min()) / _STEPS
    error = 0.0
    for weights in readers:
        groups, _, inputs, _ = weights.shape
        along = scale.reshape(groups, 1, inputs, 1)
        scaled = weights * along
        error += step**2 * float(np.square(scaled).sum())
        steps = 2.0 * np.abs(scaled).max(axis=(2, 3)) / _WEIGHT_STEPS
        power = (seen.square.reshape(along.shape) / along**2).sum(axis=(2, 3)) * weights.shape[3]
        error += float((steps**2 * power).sum())
    return error / 12.0


def _candidates(
    graph: Graph, seam: Seam, readers: list[NDArray[np.float32]], seen: Channels
) -> Iterator[NDArray[np.float64]]:
    read = np.max([np.abs(weights).max(axis=(1, 3)).reshape(-1) for weights in readers], axis=0).astype(np.float64)
    made = _made_by(graph, seam)
    alive = (seen.largest > 0) & (read > 0)
    if made is not None:
        alive &= made > 0
    if not alive.any():
        return
    if made is not None:
        yield _within(np.sqrt(_over(made, read, alive)), alive, seen)
    for strength in _STRENGTHS:
        parts = np.where(alive, seen.largest, 1.0) ** strength, np.where(alive, read, 1.0) ** (1 - strength)
        yield _within(parts[0] / parts[1], alive, seen)


def _over(made: NDArray[np.float64], read: NDArray[np.float64], alive: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(alive, made, 1.0) / np.where(alive, read, 1.0)


def _made_by(graph: Graph, seam: Seam) -> NDArray[np.float64] | None:
    """The largest weight of each channel in the product that makes it; None where no product does."""
    nodes = {node.name: node for node in graph.nodes}
    for fold in seam.folds:
        if fold.position == 1 and nodes[fold.node].op_type in PRODUCTS:
            weights = np.moveaxis(graph.array(nodes[fold.node].input[1]), fold.axis, 0)
            part = weights[fold.start : fold.start + seam.channels].reshape(seam.channels, -1)
            largest: NDArray[np.float64] = np.abs(part).max(axis=1).astype(np.float64)
            return largest
    return None


def _within(scale: NDArray[np.float64], alive: NDArray[np.bool_], seen: Channels) -> NDArray[np.float64]:
    """Brought to where the range as a whole stays as it is. Channels that are never used, or not read, stay."""
    divided = np.where(alive, seen.largest / scale, 0.0).max()
    return np.where(alive, np.clip(scale * divided / seen.largest.max(), 1 / _MOST, _MOST), 1.0)


def _weights(graph: Graph, name: str) -> NDArray[np.float32]:
    node = next(node for node in graph.nodes if node.name == name)
    return by_input(numpy_helper.to_array(graph.initializers[node.input[1]]), node)
