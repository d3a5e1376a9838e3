"""ONNX Runtime from Python: sessions for checking and for quality. Timing goes through the native harness instead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from compressor.errors import BundleError, first_line
from compressor.preprocess import Feed, Keep, Preprocessor, by_length, whole_output
from compressor.progress import Progress

_FAILURES = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def open_session(model: Path | bytes, threads: int = 1, *, optimized: bool = True) -> ort.InferenceSession:
    """A CPU session, spinning off so that waiting threads leave the cores to others; not `optimized`, every tensor of
    the graph is computed as it stands there. Raises BundleError."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _FAILURES as error:
        name = "the model" if isinstance(model, bytes) else model
        raise BundleError(f"{name}: onnxruntime does not open it: {first_line(error)}") from None


def run_one(session: ort.InferenceSession, feed: Feed) -> list[NDArray[Any]]:
    """The outputs for one feed, in the graph's order. Raises BundleError when the model refuses it."""
    try:
        outputs: list[NDArray[Any]] = session.run(None, feed)
    except _FAILURES as error:
        told = " ".join(str(error).split())  # sizes that do not fit are on its second line
        raise BundleError(f"onnxruntime fails to run the model: {told}") from None
    return outputs


def all_outputs(model: Path, feeds: Sequence[Feed]) -> list[list[NDArray[Any]]]:
    """The outputs for each feed, in the graph's order. Raises BundleError."""
    session = open_session(model)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda feed: run_one(session, feed), feeds))


def first_outputs(
    model: Path,
    preprocessor: Preprocessor,
    examples: Sequence[NDArray[Any]],
    *,
    batch_size: int,
    progress: Progress,
    title: str,
    keep: Keep = whole_output,
) -> NDArray[np.float32]:
    """What is kept of the first output for every example, one after the other: float32 [rows, width].

    A quantized model must be judged with `batch_size` 1, as a device runs it: dynamic int8 takes its ranges from the
    whole batch, padding included, so in a batch it is another model.
    """
    session = open_session(model)
    batches = by_length([len(example) for example in examples], batch_size)

    def answer(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        outputs: NDArray[np.float32] = run_one(session, preprocessor.collate([examples[i] for i in rows]))[0]
        return outputs

    answers: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(examples)
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool, progress.bar(title, len(examples), "example") as bar:
        for rows, outputs in zip(batches, pool.map(answer, batches), strict=True):
            for i, output in zip(rows, outputs, strict=True):
                answers[i] = keep(output, examples[i])
            bar.advance(len(rows))
    return np.concatenate(answers)
