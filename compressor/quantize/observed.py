"""The extremes of a float32 graph's tensors over calibration inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed
from compressor.quantize.qdq import Range


def observed_ranges(model: onnx.ModelProto, tensors: Sequence[str], feeds: Iterable[Feed]) -> dict[str, Range]:
    """The least and the largest value of each float tensor, by its name. `feeds` are run one by one, and not kept."""
    inputs = {value.name for value in model.graph.input}
    inside = [name for name in tensors if name not in inputs]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inside)
    found: dict[str, Range] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        onnx.save(watched, path)
        session = open_session(path) if inside else None
        for feed in feeds:
            values = (
                dict(feed) if session is None else {**feed, **dict(zip(inside, run_one(session, feed), strict=True))}
            )
            for name in tensors:
                low, high = found.get(name, (float("inf"), float("-inf")))
                found[name] = min(low, float(values[name].min())), max(high, float(values[name].max()))
    return found
