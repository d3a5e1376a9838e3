"""A model tried out in a child process of bounded memory and time, before this one opens it.

    python -P -m compressor.intake.trial CPU_SECONDS BYTES MODEL

opens the model twice, as it stands and optimised, and runs it once each time: on arrays from standard input, an .npz
with one for each input, or on made-up ones.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import CompressorError, UsageError, first_line
from compressor.intake.onnx_model import OnnxFacts, check_onnx
from compressor.limited import RUNTIME_BYTES, Limits, limited_main, run_limited

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

TRIAL_S = 4.0
PATIENCE = 1.6  # of the clock on the wall, where others want the processor too
_BYTES_A_SECOND = 50e6  # of weights: copied and arranged twice
_DISK_BYTES_A_SECOND = 20e6
_COPIES = 4  # of the weights: the file's, the graph's, those arranged for kernels, twice at a time
# What ONNX Runtime says, whatever the class of its error, where there is no memory left.
_NO_MEMORY = ("bad_alloc", "allocate", "allocation of")
_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


def admit_onnx(path: Path, error: type[CompressorError], feed: Mapping[str, NDArray[Any]] | None = None) -> OnnxFacts:
    """Looks through an ONNX file (`check_onnx`), then tries it out in a child process, on `feed` where that is known.

    A model that crashes there, hangs, exhausts memory, or that onnxruntime does not open, is not opened here: raises
    `error`. What a run says of its inputs is not judged. Where COMPRESSOR_TRIAL_S is set, so many seconds of processor
    time are allowed, and otherwise 4, beside what the file's size takes. Raises UsageError where that is no number.
    """
    facts = check_onnx(path, error)
    said = tried("compressor.intake.trial", path, facts.bytes, error, "export it again", _packed(feed))
    if said:
        raise error(f"{path}: onnxruntime does not open it: {said}")
    return facts


def tried(module: str, path: Path, size: int, error: type[CompressorError], remedy: str, stdin: bytes = b"") -> str:
    """The last line that a module prints of a file or folder whose model has so many bytes, in a child process; before
    it onnxruntime may print something of its own. Raises `error`, with the remedy, where the child fails; UsageError.
    """
    seconds = _seconds()
    limits = Limits(
        PATIENCE * seconds + size / _DISK_BYTES_A_SECOND,
        round(seconds + size / _BYTES_A_SECOND),
        RUNTIME_BYTES + _COPIES * size,
    )
    ended = run_limited(module, [str(path)], limits, stdin)
    if ended.failure:
        remedy = "COMPRESSOR_TRIAL_S=60 allows more time" if "end within" in ended.failure else remedy
        raise error(f"{path}: a trial in a child process {ended.failure}; it is not opened here: {remedy}")
    return ended.stdout.splitlines()[-1]


def _seconds() -> float:
    text = os.environ.get("COMPRESSOR_TRIAL_S", str(TRIAL_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise UsageError(f"COMPRESSOR_TRIAL_S: expected seconds, from 1 to 86400, got {text!r}")
    return seconds


def _packed(feed: Mapping[str, NDArray[Any]] | None) -> bytes:
    import numpy as np

    content = io.BytesIO()
    if feed:
        np.savez(content, allow_pickle=False, **feed)
    return content.getvalue()


def try_once(path: Path, given: bytes) -> str:
    """The child's work: what onnxruntime says where it does not open the model, otherwise nothing. `given` is an .npz
    with an array for each input, or empty. Raises MemoryError.
    """
    import onnxruntime as ort

    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = level
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has a class of its own for everything that can be wrong
            _raise_for_memory(error)
            return first_line(error).partition(f"Load model from {path} failed:")[2] or first_line(error)
        _run(session, given)
    return ""


def _run(session: onnxruntime.InferenceSession, given: bytes) -> None:
    import numpy as np

    try:
        if given:
            with np.load(io.BytesIO(given), allow_pickle=False) as arrays:
                feed = {name: arrays[name] for name in arrays.files}
        else:
            feed = {value.name: _made(value) for value in session.get_inputs()}
        session.run(None, feed)
    except Exception as error:  # that inputs do not suit it, or cannot be made, says nothing against the model
        _raise_for_memory(error)


def _made(value: Any) -> NDArray[Any]:
    import numpy as np

    shape = [size if isinstance(size, int) and size >= 0 else 1 for size in value.shape]
    dtype = _TYPES.get(value.type, value.type.removeprefix("tensor(").rstrip(")"))
    if dtype == "object":
        return np.full(shape, "", dtype=object)
    return np.ones(shape, dtype=dtype)


def _raise_for_memory(error: Exception) -> None:
    if isinstance(error, MemoryError) or any(word in first_line(error).lower() for word in _NO_MEMORY):
        raise MemoryError from None


if __name__ == "__main__":
    sys.exit(limited_main(lambda given: try_once(Path(given[0]), sys.stdin.buffer.read()), sys.argv[1:]))
