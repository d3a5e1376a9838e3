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
import onnx.shape_inference
from numpy.typing import NDArray

from compressor import native
from compressor.errors import BundleError, QuantizationError
from compressor.onnx_file import with_outputs
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed
from compressor.quantize.statistics import NO_BATCH, Calibration

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def calibrate(
    model: onnx.ModelProto,
    batches: Iterable[Feed],
    operators: Sequence[str],
    *,
    first_number: int = 0,
    threads: int | None = None,
) -> Calibration:
    """Runs a model on every batch and counts the float inputs and outputs of its `operators`, constants excepted.

    Batches are numbered from `first_number` on; the numbers name them in messages. `threads`: None for one a core.
    Raises QuantizationError for a batch that the model does not take.
    """
    threads = threads or len(os.sched_getaffinity(0))
    inputs = _inputs(model)
    known = _tensors(model, operators)
    tensors, fetched = tuple(known), tuple(name for name in known if name not in inputs)
    session = _session(model, [known[name] for name in fetched], threads) if fetched else None
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


def _tensors(model: onnx.ModelProto, operators: Sequence[str]) -> dict[str, onnx.ValueInfoProto]:
    """The float inputs and outputs of the operators that are no constants, in the order of the graph."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    known = {value.name: value for value in (*inferred.value_info, *graph.output, *graph.input)}
    constants = {tensor.name for tensor in graph.initializer}
    return {
        name: known[name]
        for node in graph.node
        if node.op_type in operators
        for name in (*node.input, *node.output)
        if name in known and name not in constants and known[name].type.tensor_type.elem_type in _FLOATS
    }


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its float constants turned into inputs: as good for finding shapes, and small."""
    graph = model.graph
    shapes = [tensor for tensor in graph.initializer if tensor.data_type not in _FLOATS]
    weights = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type in _FLOATS
    ]
    sketch = onnx.helper.make_graph(
        graph.node, graph.name, [*graph.input, *weights], graph.output, shapes, value_info=graph.value_info
    )
    return onnx.helper.make_model(sketch, opset_imports=model.opset_import, ir_version=model.ir_version)


def _session(model: onnx.ModelProto, outputs: Iterable[onnx.ValueInfoProto], threads: int) -> Any:
    with tempfile.TemporaryDirectory(prefix="compressor-calibration-") as folder:
        path = Path(folder, "model.onnx")
        onnx.save(with_outputs(model, outputs), path)
        try:
            return open_session(path, threads)
        except BundleError as error:
            raise QuantizationError(f"calibration: {error}") from None


def _inputs(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in model.graph.input
        if value.name not in constants
    }


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
