"""One calibration in a process of its own: `python -m bench._calibration_process WAY METHOD MODEL BATCHES`.

Prints JSON: the seconds from the model's path to ranges, imports not counted; the process's peak memory; and the
ranges.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from bench._made_onnx import Feed
from compressor import native
from compressor.progress import without_chatter
from compressor.quantize.calibration import calibrate
from compressor.quantize.thresholds import ranges
from compressor.recipe_quantize import RangeMethod

OPERATORS = ["MatMul", "Gemm", "Gather", "Conv"]
LENGTH, VOCABULARY = 128, 30522
THEIR_METHODS = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"symmetric": False}),
    "entropy": (CalibrationMethod.Entropy, {}),
}

Ranges = dict[str, tuple[float, float]]


def batches(count: int) -> Iterator[Feed]:
    for number in range(count):
        yield {"input_ids": np.random.default_rng(number).integers(0, VOCABULARY, (1, LENGTH))}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, count: int) -> None:
        self._feeds = batches(count)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _theirs(method: str, model: Path, count: int, folder: Path) -> Ranges:
    kind, options = THEIR_METHODS[method]
    with without_chatter():
        calibrator = create_calibrator(
            model, OPERATORS, str(folder / "augmented.onnx"), calibrate_method=kind, extra_options=options
        )
        calibrator.collect_data(_Reader(count))
        found = calibrator.compute_data()
    return {name: (float(np.ravel(data.lowest)[0]), float(np.ravel(data.highest)[0])) for name, data in found.items()}


def _ours(method: RangeMethod, model: Path, count: int) -> Ranges:
    return ranges(calibrate(onnx.load(model), batches(count), OPERATORS), method)


def _peak_mib() -> float:
    """Of this process alone; what getrusage says begins with the parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def main(way: str, method: Any, model: Path, count: int) -> dict[str, object]:
    native.load()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        found = _ours(method, model, count) if way == "compressor" else _theirs(method, model, count, Path(folder))
        seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "peak_mib": _peak_mib(),
        "ranges": found,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
