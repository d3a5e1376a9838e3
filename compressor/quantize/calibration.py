"""One sweep over calibration batches: counts, moments and a histogram of every tensor that a quantizer asks for.

Memory grows with the number of tensors and not with that of batches: what a batch computes is counted by the native
module and dropped. `thresholds.py` makes ranges of what was counted.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from compressor import native
from compressor.errors import BundleError, QuantizationError
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed
from compressor.quantize.statistics import NO_BATCH, Calibration

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def calibrate(
    model: Path,
    batches: Iterable[Feed],
    operators: Sequence[str],
    *,
    first_number: int = 0,
    threads: int | None = None,
) -> Calibration:
    """Runs an ONNX model on every batch and counts the float inputs and outputs of its `operators`, constants excepted.

    Batches are numbered from `first_number` on; the numbers name them in messages. `threads`: None for one a core.
    Raises QuantizationError for a batch that the model does not take.
    """
    threads = threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="compressor-calibration-") as folder:
        augmented = Path(folder, "model.onnx")
        inputs, tensors, fetched = _fetching(model, operators, augmented)
        session = _opened(augmented, threads) if fetched else None
    calibrator = native.load().Calibrator(len(tensors), threads)
    counted = not_finite = all_zero = 0
    first_all_zero = NO_BATCH
    for number, feed in enumerate(batches, first_number):
        _check_feed(feed, inputs, number)
        if not any(array.any() for array in feed.values()):
            all_zero += 1
            first_all_zero = min(first_all_zero, number)
            continue
        if calibrator.observe(_computed(session, feed, fetched, tensors, number), number):
            counted += 1
        else:
            not_finite += 1
    return Calibration(tensors, counted, not_finite, all_zero, first_all_zero, calibrator.statistics())


def _fetching(
    model: Path, operators: Sequence[str], destination: Path
) -> tuple[dict[str, np.dtype[Any]], tuple[str, ...], tuple[str, ...]]:
    """Writes the model with the tensors to calibrate as its only outputs, if there are any to compute.

    Returns the types of its inputs, all tensors to calibrate in the order of the graph, and those to fetch: a graph's
    input is at hand.
    """
    loaded = load_model_with_shape_infer(model)
    graph = loaded.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in graph.input
        if value.name not in constants
    }
    known = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
    tensors = tuple(
        dict.fromkeys(
            name
            for node in graph.node
            if node.op_type in operators
            for name in (*node.input, *node.output)
            if name in known and name not in constants and known[name].type.tensor_type.elem_type in _FLOATS
        )
    )
    fetched = tuple(name for name in tensors if name not in inputs)
    if fetched:
        del graph.output[:]
        graph.output.extend(known[name] for name in fetched)
        onnx.save(loaded, destination)
    return inputs, tensors, fetched


def _opened(model: Path, threads: int) -> Any:
    try:
        return open_session(model, threads)
    except BundleError as error:
        raise QuantizationError(f"calibration: {error}") from None


def _computed(
    session: Any, feed: Feed, fetched: Sequence[str], tensors: Sequence[str], number: int
) -> list[NDArray[np.float32]]:
    """What a batch gives for each of the tensors. The caller keeps none of it while the next one runs."""
    found = dict(feed)
    if session is not None:
        try:
            found.update(zip(fetched, run_one(session, feed), strict=True))
        except BundleError as error:
            raise QuantizationError(f"calibration batch {number}: {error}; check its shapes") from None
    return [np.ascontiguousarray(found[name], dtype=np.float32) for name in tensors]


def _check_feed(feed: Feed, inputs: Mapping[str, np.dtype[Any]], number: int) -> None:
    if feed.keys() != inputs.keys():
        raise QuantizationError(
            f"calibration batch {number}: expected arrays for {', '.join(inputs)}, got {', '.join(feed) or 'none'}; "
            "name them as the graph's inputs"
        )
    for name, dtype in inputs.items():
        if feed[name].dtype != dtype:
            raise QuantizationError(
                f"calibration batch {number}: expected {name} to be {dtype}, got {feed[name].dtype}; convert it"
            )
