"""ONNX Runtime from Python: sessions for checking and for quality. Timing goes through the native harness instead."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from compressor.errors import BundleError
from compressor.preprocess import Feed, Preprocessor
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


def open_session(model: Path, threads: int = 1) -> ort.InferenceSession:
    """A CPU session, spinning off so that waiting threads leave the cores to others. Raises BundleError."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except _FAILURES as error:
        raise BundleError(f"{model}: onnxruntime does not open it: {str(error).splitlines()[0]}") from None


def run_one(session: ort.InferenceSession, feed: Feed) -> list[NDArray[Any]]:
    """The outputs for one feed, in the graph's order. Raises BundleError when the model refuses it."""
    try:
        outputs: list[NDArray[Any]] = session.run(None, feed)
    except _FAILURES as error:
        raise BundleError(f"onnxruntime fails to run the model: {str(error).splitlines()[0]}") from None
    return outputs


def first_outputs(
    model: Path,
    preprocessor: Preprocessor,
    examples: Sequence[NDArray[Any]],
    *,
    workers: int,
    progress: Progress,
    title: str,
) -> NDArray[np.float32]:
    """The first output for every example, one at a time as a device would: float32 [examples, width].

    One at a time also because dynamic int8 takes its ranges from the whole batch, padding included, so
    a batched evaluation would judge another model than the one that runs on the device.
    """
    session = open_session(model)

    def answer(example: NDArray[Any]) -> NDArray[np.float32]:
        row: NDArray[np.float32] = run_one(session, preprocessor.collate([example]))[0][0]
        return row

    rows: list[NDArray[np.float32]] = []
    with ThreadPoolExecutor(workers) as pool, progress.bar(title, len(examples), "example") as bar:
        for row in pool.map(answer, examples, chunksize=1):
            rows.append(row)
            bar.advance()
    return np.stack(rows)
