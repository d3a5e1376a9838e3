"""Integer products that saturate: the emulator against numpy, the search, what is narrowed, and the certificate."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor import native
from compressor.certificate import Certificate, Layer, certificate, dump_certificate, read_certificate, summary
from compressor.errors import BundleError
from compressor.preprocess import Feed
from compressor.quantize.products import Graph, columns_of, find_products, rows_of
from compressor.quantize.saturation import same_everywhere, weight_sums
from compressor.store import sha256_file

MakeOnnx = Callable[..., Path]

WITHOUT_VNNI, WITH_VNNI, ARM = "x86-64 without VNNI", "x86-64 with VNNI", "aarch64"


def uint8(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def int8(*shape: int) -> NDArray[np.int8]:
    return np.random.default_rng(sum(shape)).integers(-128, 128, shape, dtype=np.int8)


def saturated(a: list[list[int]], b: list[list[int]]) -> tuple[Any, Any]:
    """The excess and the counts."""
    excess, counts = native.load().saturation(np.array(a, np.uint8), np.array(b, np.int8))
    return excess.tolist(), counts.tolist()


def test_by_hand() -> None:
    # 255 * 127 * 2 = 64770 becomes 32767, 255 * -128 * 2 = -65280 becomes -32768, and 255 stays.
    assert saturated([[255, 255]], [[127, -128, 1], [127, -128, 0]]) == ([[32767 - 64770, 65280 - 32768, 0]], [1, 1, 0])


def test_the_bounds_of_16_bits_do_not_saturate() -> None:
    # 255 * 127 + 191 * 2 = 32767, 255 * -128 + 128 * -1 = -32768.
    assert saturated([[255, 191]], [[127], [2]]) == ([[0]], [0])
    assert saturated([[255, 192]], [[127], [2]]) == ([[-2]], [1])
    assert saturated([[255, 128]], [[-128], [-1]]) == ([[0]], [0])
    assert saturated([[255, 129]], [[-128], [-1]]) == ([[1]], [1])


def test_pairs_are_neighbours_from_the_start_and_an_odd_one_is_alone() -> None:
    # (0, 1) and (2, 3) saturate; the fifth has no partner.
    excess = (32767 - 64770) + (64770 - 32768)
    assert saturated([[255] * 5], [[127], [127], [-127], [-127], [127]]) == ([[excess]], [2])
    assert saturated([[255] * 5], [[1], [127], [127], [1], [127]]) == ([[0]], [0])


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("depth", [1, 2, 7, 64, 129])
@pytest.mark.parametrize("columns", [1, 31, 32, 65])
def test_it_is_numpy(rows: int, depth: int, columns: int) -> None:
    a, b = uint8(rows, depth), int8(depth, columns)
    a[a < 40] = 0
    excess, counts = native.load().saturation(a, b)
    products = a.astype(np.int64)[:, :, None] * b.astype(np.int64)
    pairs = np.pad(products, ((0, 0), (0, depth % 2), (0, 0))).reshape(rows, (depth + 1) // 2, 2, columns).sum(axis=2)
    kept = np.clip(pairs, -(2**15), 2**15 - 1)
    np.testing.assert_array_equal(excess, (kept - pairs).sum(axis=1))
    np.testing.assert_array_equal(counts, (kept != pairs).sum(axis=(0, 1)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (uint8(2, 3), int8(4, 5)),
        (uint8(3), int8(3, 1)),
        (uint8(2, 3), int8(3)),
    ],
)
def test_shapes_must_fit(a: NDArray[Any], b: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="depth"):
        native.load().saturation(a, b)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError):
        native.load().saturation(int8(2, 3), int8(3, 2))


def test_the_bound_of_weights_is_reached_and_not_passed() -> None:
    ends = np.array(list(itertools.product([0, 255], repeat=5)), np.int32)  # a sum is largest at the ends
    for seed in range(50):
        b = np.random.default_rng(seed).integers(-128, 128, (5, 3), dtype=np.int8)
        products = np.pad(ends[:, :, None] * b, ((0, 0), (0, 1), (0, 0)))
        largest = np.abs(products[:, ::2] + products[:, 1::2]).max(axis=(0, 1))
        np.testing.assert_array_equal(255 * weight_sums(b[None])[0], largest)


@pytest.mark.parametrize(
    ("shape", "weights", "attributes"),
    [
        ((2, 6, 9, 8), (4, 6, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ((1, 6, 5, 5), (9, 2, 2, 2), {"group": 3}),
        ((3, 4, 11), (5, 4, 3), {"pads": [1, 1]}),
        ((1, 8, 4, 4), (8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    ],
)
def test_a_convolution_is_the_product_of_rows_and_columns(
    shape: tuple[int, ...], weights: tuple[int, ...], attributes: dict[str, Any], make_onnx: MakeOnnx, tmp_path: Path
) -> None:
    """onnxruntime's float convolution of the same small integers is exact."""
    x, w = uint8(*shape), int8(*weights)
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "one"], ["b"]),
        helper.make_node("Conv", ["a", "b"], ["y"], kernel_shape=weights[2:], **attributes),
    ]
    arrays = {"w": w, "one": np.float32(1), "zero": np.uint8(7)}
    interface = {"x": (TensorProto.UINT8, list(shape))}, {"y": (TensorProto.FLOAT, [None] * len(shape))}
    graph = Graph(onnx.load(make_onnx(tmp_path / "conv.onnx", nodes, *interface, arrays)))
    (product,), others = find_products(graph)
    assert not others
    rows, columns = rows_of(product, x), columns_of(product, w)
    sums = (rows.astype(np.int64) - 7) @ columns.astype(np.int64)  # [groups, batch * places, outputs of a group]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = tmp_path / "conv.onnx"
    y = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    by_place = np.moveaxis(y, 1, -1).reshape(-1, len(sums), sums.shape[2])
    np.testing.assert_array_equal(sums.swapaxes(0, 1), by_place)


# A product that saturates (every weight large, every activation large), and one that cannot.
LARGE = np.full((32, 8), 120, np.int8)
SMALL = int8(8, 4) // 2


@pytest.fixture
def dynamic(make_onnx: MakeOnnx, tmp_path: Path) -> Path:
    """Two dynamically quantized products, as onnxruntime's quantizer writes them."""
    nodes = []
    for number, (source, weights) in enumerate([("x", "large"), ("h", "small")]):
        result = ["h", "y"][number]
        a, scale, zero = (f"{source}.{part}" for part in ("quantized", "scale", "zero"))
        nodes += [
            helper.make_node("DynamicQuantizeLinear", [source], [a, scale, zero]),
            helper.make_node("MatMulInteger", [a, weights, zero], [f"{weights}.sums"], name=f"{weights}.product"),
            helper.make_node("Cast", [f"{weights}.sums"], [f"{weights}.cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, f"{weights}.scale"], [f"{weights}.scales"]),
            helper.make_node("Mul", [f"{weights}.cast", f"{weights}.scales"], [result]),
        ]
    arrays = {
        "large": LARGE,
        "small": SMALL,
        "large.scale": np.linspace(0.01, 0.02, 8, dtype=np.float32),
        "small.scale": np.full(4, 0.01, np.float32),
    }
    interface = {"x": (TensorProto.FLOAT, ["batch", 32])}, {"y": (TensorProto.FLOAT, ["batch", 4])}
    return make_onnx(tmp_path / "dynamic.onnx", nodes, *interface, arrays)


@pytest.fixture
def static(make_onnx: MakeOnnx, tmp_path: Path) -> Path:
    """A convolution with a bias, and a Gemm, between (de)quantizers; the convolution saturates."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x.scale", "zero"], ["x.quantized"]),
        helper.make_node("DequantizeLinear", ["x.quantized", "x.scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "w.scale"], ["b"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "bias.scale"], ["c"], axis=0),
        helper.make_node("Conv", ["a", "b", "c"], ["h"], kernel_shape=[3, 3], name="conv"),
        helper.make_node("QuantizeLinear", ["h", "h.scale", "zero"], ["h.quantized"]),
        helper.make_node("DequantizeLinear", ["h.quantized", "h.scale", "zero"], ["d"]),
        helper.make_node("Flatten", ["d"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "h.scale", "zero"], ["flat.quantized"]),
        helper.make_node("DequantizeLinear", ["flat.quantized", "h.scale", "zero"], ["e"]),
        helper.make_node("DequantizeLinear", ["v", "v.scale"], ["f"]),
        helper.make_node("Gemm", ["e", "f"], ["y"], transB=1, name="gemm"),
    ]
    w = np.full((2, 4, 3, 3), 100, np.int8)
    w[1] = int8(4, 3, 3) // 2  # this output channel cannot saturate
    w_scale = np.array([0.01, 0.03], np.float32)
    arrays = {
        "w": w,
        "w.scale": w_scale,
        "bias": np.array([4000, -70], np.int32),
        "bias.scale": w_scale * np.float32(1 / 255),
        "x.scale": np.float32(1 / 255),
        "h.scale": np.float32(0.2),
        "zero": np.uint8(0),
        "v": int8(3, 8) // 2,
        "v.scale": np.float32(0.02),
    }
    interface = {"x": (TensorProto.FLOAT, ["batch", 4, 4, 4])}, {"y": (TensorProto.FLOAT, ["batch", 3])}
    return make_onnx(tmp_path / "static.onnx", nodes, *interface, arrays)


def feeds_of(path: Path, count: int = 5) -> list[Feed]:
    """Batches of one, bright: their integers are near 255."""
    shape = [d.dim_value or 1 for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    generator = np.random.default_rng(0)
    return [{"x": generator.uniform(0.9, 1.0, shape).astype(np.float32)} for _ in range(count)]


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def equality(found: Certificate) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {one.name: (one.bit_equal, one.layers) for one in found.instruction_sets}


def test_what_saturates_is_found_and_the_file_left_alone(dynamic: Path) -> None:
    before = dynamic.read_bytes()
    found = same_everywhere(dynamic, feeds_of(dynamic), narrow=False)
    assert equality(found) == {
        WITHOUT_VNNI: ("differs", ("large.product",)),
        WITH_VNNI: ("proven", ()),
        ARM: ("proven", ()),
    }
    large, small = found.layers
    # 5 inputs, 8 columns, 16 pairs; activations 230 to 255 times 240 exceed 32767 in each.
    assert (large.sums, large.saturated, large.outputs, large.wrong) == (640, 640, 40, 40)
    assert (large.largest_weight_sum, large.depth, large.columns) == (240, 32, 8)
    assert (small.saturated, small.wrong) == (0, 0)
    assert small.largest_weight_sum <= 128
    assert dynamic.read_bytes() == before
    assert found.model_sha256 == sha256_file(dynamic)


def test_it_is_narrowed_there_and_only_there(dynamic: Path) -> None:
    before, size = arrays_of(dynamic), dynamic.stat().st_size
    found = same_everywhere(dynamic, feeds_of(dynamic), narrow=True)
    after = arrays_of(dynamic)
    assert set(equality(found).values()) == {("proven", ())}
    assert [layer.narrowed for layer in found.layers] == [8, 0]
    assert [layer.saturated for layer in found.layers] == [0, 0]
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"large", "large.scale"}
    # 120 + 120 becomes 127 in a sum: 64 each, of a step 240 / 127 as wide.
    np.testing.assert_array_equal(after["large"], np.full_like(LARGE, 64))
    np.testing.assert_allclose(after["large.scale"], before["large.scale"] * (240 / 127), rtol=1e-6)
    assert dynamic.stat().st_size == size
    assert found.model_sha256 == sha256_file(dynamic)


def test_channels_and_biases_keep_their_meaning(static: Path) -> None:
    before = arrays_of(static)
    (unnarrowed, *_) = same_everywhere(static, feeds_of(static), narrow=False).layers
    assert unnarrowed.wrong > 0
    found = same_everywhere(static, feeds_of(static), narrow=True)
    after = arrays_of(static)
    assert {layer.node: layer.narrowed for layer in found.layers} == {"conv": 1, "gemm": 0}
    assert equality(found)[WITHOUT_VNNI] == ("proven", ())
    for name in ("w", "bias"):
        step = after[f"{name}.scale"].reshape(-1, *[1] * (before[name].ndim - 1))
        old = before[name] * before[f"{name}.scale"].reshape(step.shape)
        assert np.abs(after[name] * step - old).max() <= step.max() / 2
        np.testing.assert_array_equal(after[name][1], before[name][1])  # of the channel that cannot saturate
        assert after[f"{name}.scale"][1] == before[f"{name}.scale"][1]
    np.testing.assert_allclose(after["bias.scale"], after["w.scale"] / 255, rtol=1e-6)


def test_one_scale_for_all_channels_is_widened_for_all(dynamic: Path) -> None:
    model = onnx.load(dynamic)
    for tensor in model.graph.initializer:
        if tensor.name == "large.scale":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0.01), tensor.name))
        if tensor.name == "large":
            tensor.CopyFrom(numpy_helper.from_array(np.vstack([LARGE.T[:1], LARGE.T[1:] // 4]).T.copy(), tensor.name))
    onnx.save(model, dynamic)
    found = same_everywhere(dynamic, feeds_of(dynamic), narrow=True)
    after = arrays_of(dynamic)
    assert after["large.scale"] == np.float32(0.01 * (240 / 127))
    np.testing.assert_array_equal(after["large"][0], [64, *[round(30 * 127 / 240)] * 7])
    assert equality(found)[WITHOUT_VNNI] == ("proven", ())


def test_weights_that_serve_two_products_are_left_as_they_are(dynamic: Path) -> None:
    model = onnx.load(dynamic)
    model.graph.node.append(helper.make_node("MatMulInteger", ["x.quantized", "large"], ["twice"], name="second"))
    model.graph.output.append(helper.make_tensor_value_info("twice", TensorProto.INT32, ["batch", 8]))
    onnx.save(model, dynamic)
    before = dynamic.read_bytes()
    found = same_everywhere(dynamic, feeds_of(dynamic), narrow=True)
    assert equality(found)[WITHOUT_VNNI] == ("differs", ("large.product", "second"))
    assert dynamic.read_bytes() == before


def test_an_input_that_was_not_tried_may_saturate(dynamic: Path) -> None:
    dark = [{"x": np.concatenate([np.ones((1, 1)), np.zeros((1, 31))], axis=1).astype(np.float32)}]
    found = same_everywhere(dynamic, dark, narrow=True)
    assert equality(found)[WITHOUT_VNNI] == ("seen", ("large.product",))
    assert "on 1 inputs" in summary(found)[WITHOUT_VNNI]


def test_what_is_not_emulated_is_not_vouched_for(dynamic: Path) -> None:
    model = onnx.load(dynamic)
    model.graph.node.append(helper.make_node("ConvInteger", ["image", "kernel"], ["sums"], name="other"))
    found = find_products(Graph(model))
    assert ([product.name for product in found[0]], found[1]) == (["large.product", "small.product"], ["other"])
    claims = certificate("0" * 64, 1, (), ("other",))
    assert set(equality(claims).values()) == {("unknown", ("other",))}


@pytest.mark.parametrize(
    ("q_zero", "k_zero", "unexamined"),
    [
        (np.uint8(0), np.uint8(0), []),
        (np.uint8(0), np.int8(0), ["attention"]),
        (np.uint16(0), np.int8(0), []),  # in float
    ],
)
def test_activations_with_activations_are_exact_if_unsigned(q_zero: Any, k_zero: Any, unexamined: list[str]) -> None:
    nodes = []
    for value, offset in (("q", "q.zero"), ("k", "k.zero")):
        nodes.append(helper.make_node("QuantizeLinear", [value, "one", offset], [f"{value}.quantized"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{value}.quantized", "one", offset], [f"{value}.real"]))
    nodes.append(helper.make_node("MatMul", ["q.real", "k.real"], ["y"], name="attention"))
    arrays = {"one": np.float32(1), "q.zero": q_zero, "k.zero": k_zero}
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = Graph(helper.make_model(helper.make_graph(nodes, "attention", [], [], held)))
    assert find_products(graph) == ([], unexamined)


def test_integers_in_bodies_and_functions_are_not_vouched_for(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """Of the weights 127 that saturate, none is looked at there; a product of floats there is nothing to look at."""

    def body(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.INT32, None)
        return helper.make_graph(nodes, name, [], [out])

    integers = body("then", helper.make_node("MatMulInteger", ["x", "w"], ["a"], name="in a branch"))
    fused = [
        helper.make_node("DequantizeLinear", ["w", "one"], ["weights"]),
        helper.make_node("MatMul", ["real", "weights"], ["p"], name="between dequantizers"),
        helper.make_node("MatMul", ["p", "eye"], ["f"], name="float"),
        helper.make_node("Cast", ["f"], ["b"], to=TensorProto.INT32),
    ]
    inner = helper.make_node("If", ["yes"], ["c"], then_branch=integers, else_branch=body("else", *fused))
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one"], ["real"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=body("outer", inner), else_branch=integers),
    ]
    interface = (
        {"x": (TensorProto.UINT8, ["n", 4]), "yes": (TensorProto.BOOL, [])},
        {"y": (TensorProto.INT32, ["n", 4])},
    )
    arrays = {"w": np.full((4, 4), 127, np.int8), "one": np.float32(1), "eye": np.eye(4, dtype=np.float32)}
    path = make_onnx(tmp_path / "m.onnx", nodes, *interface, arrays)
    found = same_everywhere(path, [{"x": uint8(2, 4), "yes": np.array(True)}], narrow=True)
    names = ("in a branch", "between dequantizers", "in a branch")
    assert (found.layers, found.unexamined) == ((), names)
    assert {claim for claim, _ in equality(found).values()} == {"unknown"}

    model = onnx.load(path)
    product = helper.make_node("MatMul", ["a", "b"], ["c"], name="called")
    model.functions.append(helper.make_function("own", "Product", ["a", "b"], ["c"], [product], model.opset_import))
    assert find_products(Graph(model)) == ([], [*names, "called"])
    del model.graph.node[:]
    assert find_products(Graph(model)) == ([], []), "nothing gives it integers"


def test_two_lowest_weights_are_not_vouched_for_on_arm() -> None:
    fits = Layer("n", "MatMul", "w", 4, 1, 100, 1, 0, 0, 0, 0, 0)
    twice = Layer("n", "MatMul", "w", 4, 1, 100, 2, 0, 0, 0, 0, 0)
    assert equality(certificate("0" * 64, 1, (fits,), ()))[ARM] == ("proven", ())
    assert equality(certificate("0" * 64, 1, (twice,), ()))[ARM] == ("unknown", ("n",))


def test_a_certificate_is_read_as_it_was_written(dynamic: Path, tmp_path: Path) -> None:
    found = same_everywhere(dynamic, feeds_of(dynamic), narrow=False)
    path = tmp_path / "certificate.json"
    path.write_bytes(dump_certificate(found))
    assert read_certificate(path) == found
    path.write_bytes(dump_certificate(found).replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(BundleError, match="expected certificate format 1, got 2"):
        read_certificate(path)
    path.write_bytes(b"{}")
    with pytest.raises(BundleError, match="format_version: field required"):
        read_certificate(path)
    path.write_bytes(dump_certificate(found).replace(b"{", b'{"format_version": 2,', 1))
    with pytest.raises(BundleError, match="duplicate key 'format_version'"):
        read_certificate(path)
    os.truncate(path, 3 << 30)
    with pytest.raises(BundleError, match="expected at most 16,777,216 bytes"):
        read_certificate(path)


def test_the_same_inputs_give_the_same_bytes(dynamic: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    shutil.copyfile(dynamic, again)
    first, second = (same_everywhere(path, feeds_of(path), narrow=True) for path in (dynamic, again))
    assert dump_certificate(first) == dump_certificate(second)
    assert dynamic.read_bytes() == again.read_bytes()
