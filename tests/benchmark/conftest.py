"""Small ONNX models that stand for what is measured, made once per session, and feeds for them."""

import numpy as np
import onnx
import pytest
from made_models import Images, save, transformer
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """name -> (path, feed maker): an MLP, a CNN and a transformer, their int8 forms, and one with every input dtype."""
    folder = tmp_path_factory.mktemp("models")
    normal = np.random.default_rng(0).standard_normal
    node = helper.make_node
    floats = TensorProto.FLOAT
    mlp = save(
        folder / "mlp.onnx",
        [node("MatMul", ["x", "w1"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w2"], ["y"])],
        [("x", floats, ["batch", 32])],
        [("y", floats, ["batch", 10])],
        [("w1", normal((32, 64), np.float32)), ("w2", normal((64, 10), np.float32))],
    )
    int8 = folder / "mlp-int8.onnx"
    quantize_dynamic(mlp, int8, weight_type=QuantType.QInt8)
    cnn = save(
        folder / "cnn.onnx",
        [
            node("Conv", ["image", "k"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("GlobalAveragePool", ["b"], ["c"]),
            node("Flatten", ["c"], ["y"]),
        ],
        [("image", floats, [1, 3, 16, 16])],
        [("y", floats, [1, 8])],
        [("k", normal((8, 3, 3, 3), np.float32))],
    )
    cnn_int8 = folder / "cnn-int8.onnx"
    quantize_static(cnn, cnn_int8, Images(), quant_format=QuantFormat.QDQ, per_channel=True)
    encoder = transformer(folder / "transformer.onnx")
    encoder_int8 = folder / "transformer-int8.onnx"
    quantize_dynamic(encoder, encoder_int8, weight_type=QuantType.QInt8)
    mixed = save(
        folder / "mixed.onnx",
        [
            node("Cast", ["ids"], ["i"], to=floats),
            node("Cast", ["counts"], ["c"], to=floats),
            node("Cast", ["pixels"], ["p"], to=floats),
            node("Where", ["mask", "i", "c"], ["chosen"]),
            node("Sum", ["chosen", "p", "x"], ["sum"]),
            node("ArgMax", ["sum"], ["best"], axis=-1, keepdims=0),
        ],
        [
            ("ids", TensorProto.INT64, ["batch", "length"]),
            ("counts", TensorProto.INT32, ["batch", "length"]),
            ("pixels", TensorProto.UINT8, ["batch", "length"]),
            ("mask", TensorProto.BOOL, ["batch", "length"]),
            ("x", floats, ["batch", "length"]),
        ],
        [("sum", floats, ["batch", "length"]), ("best", TensorProto.INT64, ["batch"])],
    )

    def mixed_feed(generator):
        shape = (2, 7)
        return {
            "ids": generator.integers(0, 9, shape),
            "counts": generator.integers(0, 9, shape, dtype=np.int32),
            "pixels": generator.integers(0, 255, shape, dtype=np.uint8),
            "mask": generator.random(shape) < 0.5,
            "x": generator.standard_normal(shape, dtype=np.float32),
        }

    def vector(generator):
        return {"x": generator.standard_normal((3, 32), dtype=np.float32)}

    def image(generator):
        return {"image": generator.standard_normal((1, 3, 16, 16), dtype=np.float32)}

    def tokens(generator):
        return {"input_ids": generator.integers(0, 100, (2, int(generator.integers(3, 12))))}

    return {
        "mlp": (mlp, vector),
        "mlp-int8": (int8, vector),
        "cnn": (cnn, image),
        "cnn-int8": (cnn_int8, image),
        "transformer": (encoder, tokens),
        "transformer-int8": (encoder_int8, tokens),
        "mixed": (mixed, mixed_feed),
    }


@pytest.fixture(scope="session")
def crashing_model(tmp_path_factory):
    """Valid by the checker, but ONNX Runtime follows the absent optional bias into a null pointer."""
    path = save(
        tmp_path_factory.mktemp("crash") / "crash.onnx",
        [helper.make_node("LayerNormalization", ["x", "scale", ""], ["y"])],
        [("x", TensorProto.FLOAT, [2, 4]), ("scale", TensorProto.FLOAT, [4])],
        [("y", TensorProto.FLOAT, [2, 4])],
    )
    onnx.checker.check_model(str(path))
    return path


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory):
    """Some ten milliseconds an inference: 459 of them take seconds."""
    size = 1024
    weights = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    return save(
        tmp_path_factory.mktemp("slow") / "slow.onnx",
        [helper.make_node("MatMul", ["x" if i == 0 else f"h{i}", "w"], [f"h{i + 1}"]) for i in range(2)],
        [("x", TensorProto.FLOAT, [size, size])],
        [("h2", TensorProto.FLOAT, [size, size])],
        [("w", weights)],
    )


@pytest.fixture(scope="session")
def string_model(tmp_path_factory):
    return save(
        tmp_path_factory.mktemp("string") / "string.onnx",
        [helper.make_node("Identity", ["text"], ["same"])],
        [("text", TensorProto.STRING, [1])],
        [("same", TensorProto.STRING, [1])],
    )
