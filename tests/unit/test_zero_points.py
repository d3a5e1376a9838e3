"""Zero points of 0: not written, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from compressor.quantize.int8 import to_static
from compressor.quantize.zero_points import drop_zero_points

FLOAT = TensorProto.FLOAT
CHANNELS = 48


def network() -> onnx.ModelProto:
    """A convolution, a mean over all places, a Gemm."""
    draw = np.random.default_rng(0)
    arrays = {
        "kernel": draw.standard_normal((CHANNELS, 3, 3, 3), np.float32),
        "bias": draw.standard_normal(CHANNELS, np.float32),
        "axes": np.array([2, 3]),
        "matrix": draw.standard_normal((10, CHANNELS), np.float32),
        "offsets": draw.standard_normal(10, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel", "bias"], ["seen"], "conv"),
            helper.make_node("ReduceMean", ["seen", "axes"], ["mean"], "mean", keepdims=0),
            helper.make_node("Gemm", ["mean", "matrix", "offsets"], ["logits"], "gemm", transB=1),
        ],
        "network",
        [helper.make_tensor_value_info("image", FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("logits", FLOAT, [1, 10])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized() -> onnx.ModelProto:
    ranges = {"image": (-3.0, 3.0), "seen": (-20.0, 20.0), "mean": (-2.0, 2.0), "logits": (-15.0, 15.0)}
    return to_static(network(), ["conv", "gemm"], "static-int8", ranges)


def dequantizers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """By the name of the constant that they read, without what quantization adds to it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {name.removesuffix("_quantized"): node for name, node in found.items() if name in constants}


def answers(model: onnx.ModelProto, optimized: Path) -> tuple[np.ndarray, list[str]]:
    """Of one image, and the operators that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(1).standard_normal((1, 3, 12, 12), np.float32)
    return session.run(None, {"image": image})[0], [node.op_type for node in onnx.load(optimized).graph.node]


def written(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with the zero points that are not there."""
    full = onnx.ModelProto()
    full.CopyFrom(model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in full.graph.initializer}
    for node in full.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 2:
            zeros = np.zeros(arrays[node.input[1]].shape, arrays[node.input[0]].dtype)
            name = f"{node.input[0]}_zeros"
            full.graph.initializer.append(numpy_helper.from_array(zeros, name))
            node.input.append(name)
    return full


def test_a_convolutions_constants_have_none() -> None:
    constants = dequantizers(quantized())
    assert {name: len(node.input) for name, node in constants.items()} == {
        "kernel": 2, "bias": 2, "matrix": 3, "offsets": 3
    }  # fmt: skip


def test_onnxruntime_runs_the_same_integers(tmp_path: Path) -> None:
    model = quantized()
    full = written(model)
    # Five bytes a channel: one of the kernel, four of the bias.
    assert full.ByteSize() - model.ByteSize() > 5 * CHANNELS
    without, operators = answers(model, tmp_path / "without.onnx")
    with_zeros, their_operators = answers(full, tmp_path / "with.onnx")
    np.testing.assert_array_equal(without, with_zeros)
    assert operators == their_operators
    assert {"QLinearConv", "QGemm"} <= set(operators)


def test_other_zero_points_stay() -> None:
    model = written(quantized())
    by_name = {tensor.name: tensor for tensor in model.graph.initializer}
    name = dequantizers(model)["kernel"].input[2]
    by_name[name].CopyFrom(numpy_helper.from_array(np.full(CHANNELS, 3, np.int8), name))
    drop_zero_points(model)
    constants = dequantizers(model)
    assert (len(constants["kernel"].input), len(constants["bias"].input)) == (3, 2)
    assert name in {tensor.name for tensor in model.graph.initializer}
