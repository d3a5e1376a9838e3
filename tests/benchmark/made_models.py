"""ONNX models written by hand, and data to calibrate on."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader


def save(path, nodes, inputs, outputs, weights=()):
    """A model of `nodes`; inputs and outputs are (name, element type, shape)."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


class Images(CalibrationDataReader):
    """A few images to calibrate on."""

    def __init__(self):
        generator = np.random.default_rng(5)
        self._left = [generator.standard_normal((1, 3, 16, 16), dtype=np.float32) for _ in range(8)]

    def get_next(self):
        return {"image": self._left.pop()} if self._left else None


def transformer(path, vocabulary=100, hidden=32, heads=4):
    """One layer of an encoder with tokens in, their mean out; batch and length are dynamic."""
    normal = np.random.default_rng(7).standard_normal
    node = helper.make_node
    weights = [(name, normal((hidden, hidden), np.float32) / 6) for name in ("wq", "wk", "wv", "wo", "w1", "w2")]
    weights += [("table", normal((vocabulary, hidden), np.float32))]
    weights += [("ones", np.ones(hidden, np.float32)), ("zeros", np.zeros(hidden, np.float32))]
    weights += [
        ("split", np.array([0, 0, heads, hidden // heads], np.int64)),
        ("join", np.array([0, 0, hidden], np.int64)),
    ]
    weights += [("scale", np.array((hidden // heads) ** -0.5, np.float32)), ("one", np.array([1], np.int64))]
    nodes = [node("Gather", ["table", "input_ids"], ["x"])]
    for letter, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", f"w{letter}"], [f"{letter}1"]),
            node("Reshape", [f"{letter}1", "split"], [f"{letter}2"]),
            node("Transpose", [f"{letter}2"], [letter], perm=order),
        ]
    nodes += [
        node("MatMul", ["q", "k"], ["qk"]),
        node("Mul", ["qk", "scale"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "join"], ["joined"]),
        node("MatMul", ["joined", "wo"], ["attended"]),
        node("Add", ["attended", "x"], ["sum1"]),
        node("LayerNormalization", ["sum1", "ones", "zeros"], ["norm1"]),
        node("MatMul", ["norm1", "w1"], ["h1"]),
        node("Relu", ["h1"], ["h2"]),
        node("MatMul", ["h2", "w2"], ["h3"]),
        node("Add", ["h3", "norm1"], ["sum2"]),
        node("LayerNormalization", ["sum2", "ones", "zeros"], ["norm2"]),
        node("ReduceMean", ["norm2"], ["embedding"], axes=[1], keepdims=0),
    ]
    inputs = [("input_ids", TensorProto.INT64, ["batch", "length"])]
    return save(path, nodes, inputs, [("embedding", TensorProto.FLOAT, ["batch", hidden])], weights)
