"""Small models with inputs for them, what ONNX Runtime's Python session answers, and calls of compressor-runner."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from compressor import native

Feed = dict[str, NDArray[Any]]
_node = helper.make_node


@dataclass(frozen=True)
class Sample:
    path: Path
    feeds: list[Feed]
    exact: bool  # integers all the way that matters: every version and processor must give the same bits


def save(path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights=()) -> Path:
    """A model of `nodes`; inputs and outputs are (name, element type, shape), weights (name, array)."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    # An opset and a format that the oldest supported runtime reads.
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def samples(folder: Path) -> dict[str, Sample]:
    """An MLP and its dynamic int8 form, a CNN and its static int8 form, and integers without any float."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32)

    vectors = [{"x": normal(rows, 32)} for rows in (1, 3)]
    images = [{"image": normal(1, 3, 16, 16)} for _ in range(2)]
    mlp = save(
        folder / "mlp.onnx",
        [_node("MatMul", ["x", "w1"], ["a"]), _node("Relu", ["a"], ["b"]), _node("MatMul", ["b", "w2"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", 32])],
        [("y", TensorProto.FLOAT, ["batch", 10])],
        [("w1", normal(32, 64) / 6), ("w2", normal(64, 10) / 8)],
    )
    cnn = save(
        folder / "cnn.onnx",
        [
            _node("Conv", ["image", "k"], ["a"], pads=[1, 1, 1, 1]),
            _node("Relu", ["a"], ["b"]),
            _node("MaxPool", ["b"], ["c"], kernel_shape=[4, 4], strides=[4, 4]),
            _node("Flatten", ["c"], ["d"]),
            _node("MatMul", ["d", "w"], ["y"]),
        ],
        [("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [("y", TensorProto.FLOAT, [1, 10])],
        [("k", normal(8, 3, 3, 3) / 5), ("w", normal(128, 10) / 11)],
    )
    integers = save(
        folder / "integers.onnx",
        [_node("Gather", ["table", "ids"], ["rows"]), _node("Add", ["rows", "ids2"], ["y"])],
        [("ids", TensorProto.INT64, ["length"]), ("ids2", TensorProto.INT64, [4])],
        [("y", TensorProto.INT64, ["length", 4])],
        [("table", generator.integers(-(2**40), 2**40, (50, 4)))],
    )
    ids = [{"ids": generator.integers(0, 50, length), "ids2": generator.integers(-9, 9, 4)} for length in (1, 7)]
    return {
        "mlp": Sample(mlp, vectors, exact=False),
        "mlp-int8": Sample(_dynamic_int8(mlp), vectors, exact=True),
        "cnn": Sample(cnn, images, exact=False),
        "cnn-int8": Sample(_static_int8(cnn, images), images, exact=True),
        "integers": Sample(integers, ids, exact=True),
    }


# Weights of 7 bits: with 8, x86 processors without VNNI saturate sums of two products, and others do not.
def _dynamic_int8(model: Path) -> Path:
    path = model.with_name(f"{model.stem}-int8.onnx")
    quantize_dynamic(model, path, weight_type=QuantType.QInt8, reduce_range=True)
    return path


def _static_int8(model: Path, feeds: list[Feed]) -> Path:
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    path = model.with_name(f"{model.stem}-int8.onnx")
    settings: dict[str, Any] = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8}
    quantize_static(model, path, Reader(), weight_type=QuantType.QInt8, reduce_range=True, **settings)
    return path


def python_session(sample: Sample) -> onnxruntime.InferenceSession:
    """The installed onnxruntime's own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(sample.path, options, providers=["CPUExecutionProvider"])


def python_answers(sample: Sample) -> list[list[NDArray[Any]]]:
    """Of `python_session`: [feeds][outputs]."""
    session = python_session(sample)
    return [session.run(None, feed) for feed in sample.feeds]


def assert_same(got: NDArray[Any], wanted: NDArray[Any], *, exact: bool, tolerance: float) -> None:
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    if exact:
        assert got.tobytes() == wanted.tobytes()
    else:
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def write_cases(folder: Path, feeds: Sequence[Feed], expected: Sequence[Feed] = ()) -> Path:
    """A folder as --cases takes it."""
    folder.mkdir(parents=True)
    lines = []
    for kind, rows in (("input", feeds), ("expected", expected)):
        for number, arrays in enumerate(rows):
            for name, array in arrays.items():
                file = f"{kind}-{number}-{name}.npy"
                np.save(folder / file, array)
                lines.append((number, kind, name, file))
    lines.sort(key=lambda line: line[0])  # cases come in their order
    (folder / "cases.tsv").write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return folder


def program() -> Path:
    """The runner; `make sanitize-threads` names another in COMPRESSOR_RUNNER."""
    named = os.environ.get("COMPRESSOR_RUNNER")
    return native.runner(Path(named) if named else None)


def command(*arguments: str | Path, runtime: Path | None = None, words: Sequence[str | Path] = ()) -> list[str]:
    """The runner's command line; `words` instead of the program, `runtime` instead of the installed ONNX Runtime."""
    start = words or [program()]
    return [str(word) for word in (*start, "--ort", runtime or native.onnxruntime_library(), *arguments)]


def call(
    *arguments: str | Path,
    runtime: Path | None = None,
    words: Sequence[str | Path] = (),
    environment: Mapping[str, str] | None = None,
    limit_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    full = command(*arguments, runtime=runtime, words=words)
    variables = {**os.environ, **(environment or {})}
    # Names of files are in what it says of them, and may be any bytes.
    return subprocess.run(
        full, capture_output=True, text=True, errors="replace", check=False, timeout=limit_s, env=variables
    )


def result(*arguments: str | Path, **how: Any) -> dict[str, Any]:
    """What the runner prints with --json."""
    ended = call(*arguments, "--json", **how)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def failure(*arguments: str | Path, code: int = 1, **how: Any) -> str:
    """The one line that the runner says where it fails."""
    ended = call(*arguments, **how)
    assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
    assert ended.stdout == ""
    assert ended.stderr.startswith("compressor-runner: ")
    assert ended.stderr.endswith("\n")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr.removeprefix("compressor-runner: ").rstrip("\n")
