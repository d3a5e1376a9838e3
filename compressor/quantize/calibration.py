"""One sweep over calibration batches: counts, moments and a histogram of every tensor that a quantizer asks for.

Memory grows with the number of tensors and not with that of batches: what a batch computes is counted by the native
module and dropped, two at a time where there are threads for them. `thresholds.py` makes ranges of what was counted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
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
    fetched = tuple(name for name in known if name not in inputs)
    # Two batches at a time: where one is counted, or computed by one thread alone, the other keeps the cores at work.
    at_once = min(threads, 2)
    session = _session(model, [known[name] for name in fetched], max(threads - 1, 1)) if fetched else None
    calibrator = native.load().Calibrator(len(known), threads // at_once)
    source = _Batches(batches, first_number)
    sweeps = [_Sweep(session, calibrator, inputs, fetched, tuple(known)) for _ in range(at_once)]
    pool = ThreadPoolExecutor(at_once)
    running: list[Future[None]] = []
    try:
        running.extend(pool.submit(sweep.run, source) for sweep in sweeps)
        wait(running)
    finally:
        source.ended = True
        _wait_whatever_is_pressed(running)
        pool.shutdown()
    failed = [(sweep.number, error) for sweep, one in zip(sweeps, running, strict=True) if (error := one.exception())]
    if failed:
        raise min(failed, key=lambda one: one[0])[1]  # of two the first, as one sweep would have met it
    return Calibration(
        tuple(known),
        sum(sweep.counted for sweep in sweeps),
        sum(sweep.not_finite for sweep in sweeps),
        sum(sweep.all_zero for sweep in sweeps),
        min(sweep.first_all_zero for sweep in sweeps),
        calibrator.statistics(),
    )


def _wait_whatever_is_pressed(running: Sequence[Future[None]]) -> None:
    """For sweeps, each a batch from its end: a thread that outlived the interpreter would abort the process. (Of a join
    that is interrupted Python 3.11 believes that the thread has ended.)"""
    while not all(one.done() for one in running):
        with suppress(KeyboardInterrupt):
            wait(running)


class _Batches:
    """What several sweeps share: each batch, with its number, goes to one of them, until somebody says `ended`."""

    ended = False

    def __init__(self, batches: Iterable[Feed], first_number: int) -> None:
        self._numbered: Iterator[tuple[int, Feed]] = enumerate(batches, first_number)
        self._alone = threading.Lock()

    def __iter__(self) -> Iterator[tuple[int, Feed]]:
        return self

    def __next__(self) -> tuple[int, Feed]:
        with self._alone:
            if self.ended:
                raise StopIteration
            return next(self._numbered)


@dataclass
class _Sweep:
    """Counts the batches that it is given; `number` is that of the one at hand. The calibrator serves one at a time."""

    session: Any
    calibrator: Any
    inputs: Mapping[str, np.dtype[Any]]
    fetched: tuple[str, ...]
    tensors: tuple[str, ...]
    number: int = field(default=NO_BATCH, init=False)
    counted: int = field(default=0, init=False)
    not_finite: int = field(default=0, init=False)
    all_zero: int = field(default=0, init=False)
    first_all_zero: int = field(default=NO_BATCH, init=False)

    def run(self, batches: _Batches) -> None:
        try:
            for self.number, feed in batches:
                self._count(feed)
                self.number = NO_BATCH  # what fails now is a later one
        finally:
            batches.ended = True

    def _count(self, feed: Feed) -> None:
        _check_feed(feed, self.inputs, self.number)
        if not any(array.any() for array in feed.values()):
            self.all_zero += 1
            self.first_all_zero = min(self.first_all_zero, self.number)
        elif self.calibrator.observe(self._computed(feed), self.number):
            self.counted += 1
        else:
            self.not_finite += 1

    def _computed(self, feed: Feed) -> list[NDArray[np.float32]]:
        """What a batch gives for each of the tensors. The caller keeps none of it while the next one runs."""
        found = dict(feed)
        if self.session is not None:
            try:
                found.update(zip(self.fetched, run_one(self.session, feed), strict=True))
            except BundleError as error:
                raise QuantizationError(f"calibration batch {self.number}: {error}; check its shapes") from None
        return [np.ascontiguousarray(found[name], dtype=np.float32) for name in self.tensors]


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
    try:
        return open_session(with_outputs(model, outputs).SerializeToString(), threads)
    except BundleError as error:
        raise QuantizationError(f"calibration: {error}") from None


def _inputs(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in model.graph.input
        if value.name not in constants
    }


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
