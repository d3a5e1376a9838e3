"""ONNX models that cases make for themselves, with random weights from fixed seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Feed = dict[str, NDArray[Any]]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def save_onnx(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], weights: dict[str, NDArray[Any]]
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def transformer(
    folder: Path, layers: int = 2, hidden: int = 128, heads: int = 4, vocabulary: int = 1000
) -> tuple[Path, Feed]:
    """Layers of self-attention and feed-forward over the embeddings of tokens."""
    normal = np.random.default_rng(2).standard_normal
    node = helper.make_node
    weights: dict[str, NDArray[Any]] = {
        "table": normal((vocabulary, hidden), np.float32),
        "ones": np.ones(hidden, np.float32),
        "zeros": np.zeros(hidden, np.float32),
        "split": np.array([0, 0, heads, hidden // heads]),
        "join": np.array([0, 0, hidden]),
        "scale": np.array((hidden // heads) ** -0.5, np.float32),
    }
    nodes, x = [node("Gather", ["table", "input_ids"], ["x"])], "x"
    for layer in range(layers):
        p = f"l{layer}."
        for name, shape in (("wq", 1), ("wk", 1), ("wv", 1), ("wo", 1), ("w1", 4), ("w2", 4)):
            size = (hidden, hidden * shape) if name != "w2" else (hidden * shape, hidden)
            weights[p + name] = normal(size, np.float32) / np.float32(size[0] ** 0.5)
        for letter, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            nodes += [
                node("MatMul", [x, f"{p}w{letter}"], [f"{p}{letter}1"]),
                node("Reshape", [f"{p}{letter}1", "split"], [f"{p}{letter}2"]),
                node("Transpose", [f"{p}{letter}2"], [p + letter], perm=order),
            ]
        nodes += [
            node("MatMul", [p + "q", p + "k"], [p + "qk"]),
            node("Mul", [p + "qk", "scale"], [p + "scores"]),
            node("Softmax", [p + "scores"], [p + "shares"], axis=-1),
            node("MatMul", [p + "shares", p + "v"], [p + "mixed"]),
            node("Transpose", [p + "mixed"], [p + "back"], perm=[0, 2, 1, 3]),
            node("Reshape", [p + "back", "join"], [p + "joined"]),
            node("MatMul", [p + "joined", p + "wo"], [p + "attended"]),
            node("Add", [p + "attended", x], [p + "sum1"]),
            node("LayerNormalization", [p + "sum1", "ones", "zeros"], [p + "norm1"]),
            node("MatMul", [p + "norm1", p + "w1"], [p + "h1"]),
            node("Relu", [p + "h1"], [p + "h2"]),
            node("MatMul", [p + "h2", p + "w2"], [p + "h3"]),
            node("Add", [p + "h3", p + "norm1"], [p + "sum2"]),
            node("LayerNormalization", [p + "sum2", "ones", "zeros"], [p + "norm2"]),
        ]
        x = p + "norm2"
    nodes.append(node("ReduceMean", [x], ["embedding"], axes=[1], keepdims=0))
    inputs = [("input_ids", INT64, ["batch", "length"])]
    path = save_onnx(folder / "transformer.onnx", nodes, inputs, [("embedding", FLOAT, ["batch", hidden])], weights)
    return path, {"input_ids": np.random.default_rng(3).integers(0, vocabulary, (1, 32))}
