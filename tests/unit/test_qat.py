"""Quantization-aware training: what the student computes in torch, its quantized file computes in onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from test_training import Plain
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.certificate import read_certificate
from compressor.distill import SignalReader, TrainingData, Workplace, train, write_outputs
from compressor.errors import QuantizationError
from compressor.export import export_onnx, rewrite_onnx
from compressor.metrics import mean_cosine
from compressor.preprocess import Feed
from compressor.progress import SILENT
from compressor.quantize.aware import fake_quantized
from compressor.quantize.blocks import from_blocks, to_blocks
from compressor.quantize.calibration import calibrate
from compressor.quantize.fake import InBlocks, activation_codes, rounded_activation
from compressor.quantize.float_model import load_float_model
from compressor.quantize.int8 import observed
from compressor.quantize.matching import match
from compressor.quantize.products import Graph, find_products
from compressor.quantize.sites import assign, find_sites
from compressor.quantize.target import Affine, Target
from compressor.quantize.thresholds import Range, ranges
from compressor.recipe_distill import ClassDistillation
from compressor.recipe_quantize import NodePrecision
from compressor.students.separable import SeparableCnn

MakeOnnx = Callable[..., Path]
FLOAT = TensorProto.FLOAT
# Values within [-1, 1] then have codes 0 to 128: products with int8 weights stay below 2^14, and no sum of two of them
# saturates in int16 on processors without VNNI.
WIDE: Range = (-1.0, 3.0)
WIDE_CODES = Affine(float(np.float32(4 / 255)), 64)


def target_of(
    path: Path,
    precision: NodePrecision,
    feeds: Sequence[Feed],
    *,
    known: Mapping[str, Range] | None = None,
    block: int = 32,
    same_everywhere: bool = False,
    **overrides: NodePrecision,
) -> Target:
    """In the extremes of these feeds, but where a range is `known`."""
    source = load_float_model(path)
    sites = find_sites(source)
    found = {
        **ranges(calibrate(source, feeds, observed(source, {site.node for site in sites})), "minmax"),
        **(known or {}),
    }
    return Target(source, sites, assign(sites, precision, overrides), block, found, same_everywhere)


def again(path: Path, first: Target) -> Target:
    """The same of a model that was trained on."""
    source = load_float_model(path)
    return Target(source, find_sites(source), first.chosen, first.block, first.ranges, first.same_everywhere)


def shipped(target: Target, folder: Path, feeds: Sequence[Feed]) -> onnx.ModelProto:
    target.ship(folder / "shipped.onnx", feeds)
    return onnx.load(folder / "shipped.onnx")


def run(model: onnx.ModelProto, feed: Feed, *, as_it_is: bool = False) -> dict[str, NDArray[Any]]:
    """The outputs by name; `as_it_is`: without onnxruntime's optimizations."""
    options = onnxruntime.SessionOptions()
    if as_it_is:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def codes_of(model: onnx.ModelProto, feed: Feed) -> dict[str, NDArray[np.uint8]]:
    """What every QuantizeLinear gives, by the name of the tensor that it quantizes."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    made = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return {made[name]: codes for name, codes in run(watched, feed, as_it_is=True).items()}


def numbers_in(model: onnx.ModelProto, node: str, position: int) -> NDArray[np.float32]:
    """What an operand of a node stands for: a weight, outputs first, or a bias, as onnxruntime dequantizes it."""
    graph = Graph(model)
    reader = next(one for one in graph.nodes if one.name == node)
    dequantizer = graph.dequantized(reader.input[position])
    assert dequantizer is not None
    made = helper.make_graph(
        [dequantizer],
        "numbers",
        [],
        [onnx.ValueInfoProto(name=dequantizer.output[0])],
        [graph.initializers[name] for name in dequantizer.input],
    )
    found = next(iter(run(helper.make_model(made, opset_imports=model.opset_import, ir_version=10), {}).values()))
    axis = next((entry.i for entry in dequantizer.attribute if entry.name == "axis"), 0)
    return np.moveaxis(found, axis, 0)


def draws(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed + sum(shape)).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    "affine",
    [Affine(0.5, 3), Affine(0.1, 0), Affine(float(np.float32(1 / 3)), 255), Affine(0.1, -3, (-128, 127))],
    ids=str,
)
def test_codes_of_activations_are_onnxruntimes(affine: Affine) -> None:
    """Halves among them, which both round to even, and values beyond the range."""
    halves = (np.arange(-600, 600, dtype=np.float32) / 2) * np.float32(affine.scale)
    values = np.concatenate([halves, draws(5000) * 300 * np.float32(affine.scale), [np.float32(1e30)]]).astype(
        np.float32
    )
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    arrays = {
        "scale": np.float32(affine.scale),
        "zero": np.array(affine.zero_point, np.int8 if affine.codes[0] else np.uint8),
    }
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, [None])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (expected,) = run(model, {"x": values}).values()
    got = activation_codes(torch.from_numpy(values), affine).clamp(*affine.codes)
    assert np.array_equal(got.numpy(), expected)
    rounded = rounded_activation(torch.from_numpy(values), affine).numpy()
    assert np.array_equal(rounded, (expected.astype(np.float32) - affine.zero_point) * np.float32(affine.scale))


def test_what_is_clipped_learns_nothing() -> None:
    values = torch.tensor([-2.0, -1.0, 0.3, 2.9, 3.0, 3.1], requires_grad=True)
    rounded_activation(values, WIDE_CODES).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("narrow", [False, True], ids=["", "narrow"])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv", "grouped", "depthwise"])
def test_int8_weights_and_biases_are_the_same_in_torch_and_in_the_file(
    make_onnx: MakeOnnx, tmp_path: Path, operator: str, narrow: bool
) -> None:
    """Bit for bit; rows of zeros among them, and one so small that its bias needs a larger scale."""
    draw = np.random.default_rng(0).standard_normal
    groups = {"grouped": 2, "depthwise": 6}.get(operator, 1)
    kind = operator if operator in ("MatMul", "Gemm") else "Conv"
    shape = (6, 7) if kind != "Conv" else (6, 6 // groups, 3, 2)
    weight, bias = (draw(size).astype(np.float32) for size in (shape, 6))
    weight[1], weight[2] = 0, weight[2] * 1e-8
    layer: nn.Module = (
        nn.Linear(7, 6, bias=kind == "Gemm") if kind != "Conv" else nn.Conv2d(6, 6, (3, 2), groups=groups)
    )
    layer.weight.data = torch.from_numpy(weight)  # type: ignore[operator]
    names = ["x", "w"] if kind == "MatMul" else ["x", "w", "bias"]
    if kind != "MatMul":
        layer.bias.data = torch.from_numpy(bias)  # type: ignore[operator]
    attributes = {"Gemm": {"transB": 1}, "Conv": {"group": groups}}.get(kind, {})
    node = helper.make_node(kind, names, ["y"], name="product", **attributes)
    x = draws(4, 7) if kind != "Conv" else draws(4, 6, 5, 5)
    arrays = {"w": weight.T.copy() if kind == "MatMul" else weight, "bias": bias}
    arrays = {name: arrays[name] for name in names[1:]}
    path = make_onnx(
        tmp_path / "m.onnx", [node], {"x": (FLOAT, [None, *x.shape[1:]])}, {"y": (FLOAT, [None] * x.ndim)}, arrays
    )
    target = target_of(path, "static-int8", [{"x": x}], same_everywhere=narrow)
    model = shipped(target, tmp_path, [{"x": x}])
    with fake_quantized(OneLayer(layer), target, {"x": x}):
        assert np.array_equal(layer.weight.detach().numpy(), numbers_in(model, "product", 1))
        if kind != "MatMul":
            assert np.array_equal(layer.bias.detach().numpy(), numbers_in(model, "product", 2))
    # By hand: the largest of a row is 127 steps, and a step errs by a half at most; narrow ones by two more.
    largest = np.abs(weight).reshape(6, -1).max(1)
    errors = np.abs(numbers_in(model, "product", 1) - weight).reshape(6, -1).max(1)
    most = 3 if narrow and operator != "depthwise" else 1
    assert (errors <= np.where(largest < 1e-6, 1e-6, most * largest / 254 * 1.001)).all()


def test_tables_are_the_same_in_torch_and_in_the_file(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    table = nn.Embedding(9, 5)
    weight = table.weight.detach().numpy()
    weight[3] = 40
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="table")
    path = make_onnx(
        tmp_path / "m.onnx", [node], {"x": (TensorProto.INT64, ["b"])}, {"y": (FLOAT, ["b", 5])}, {"w": weight}
    )
    x = np.arange(9)
    target = target_of(path, "static-int8", [{"x": x}])
    model = shipped(target, tmp_path, [{"x": x}])
    with fake_quantized(OneLayer(table), target, {"x": x}):
        assert np.array_equal(table.weight.detach().numpy(), numbers_in(model, "table", 0))
    assert np.abs(numbers_in(model, "table", 0) - weight).max() <= (weight.max() - weight.min()) / 510 * 1.001


def test_narrow_products_are_proven_equal_everywhere(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    layer = linear(64, 8, bias=True)
    x = draws(20, 64)
    path = product_graph(make_onnx, tmp_path / "m.onnx", "Gemm", layer)
    claims = {}
    for narrow in (False, True):
        target = target_of(path, "static-int8", [{"x": x}], same_everywhere=narrow)
        found = target.ship(tmp_path / "shipped.onnx", [{"x": x}])
        claims[narrow] = {one.name: one.bit_equal for one in found.instruction_sets}
        assert read_certificate(tmp_path / "shipped.certificate.json") == found
        assert bool(found.layers[0].narrowed) == narrow
    assert claims[False]["x86-64 without VNNI"] in ("seen", "differs")
    assert set(claims[True].values()) == {"proven"}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (6, 32), (5, 70), (300, 129)], ids=str)
def test_blocks_are_the_same_in_torch_and_in_the_file(shape: tuple[int, int], bits: int) -> None:
    weight = draws(*shape) ** 3
    weight[:, :16] = 0
    expected = from_blocks(to_blocks(weight, bits, 16), shape[1])
    assert np.array_equal(InBlocks(bits, 16)(torch.from_numpy(weight)).numpy(), expected)
    turned = InBlocks(bits, 16, turned=True)(torch.from_numpy(weight.T.copy())).numpy()
    assert np.array_equal(turned, expected.T)


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x),)


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.weight.data = torch.from_numpy(draws(outputs, inputs))
    if bias:
        layer.bias.data = torch.from_numpy(draws(outputs))
    return layer


def product_graph(make_onnx: MakeOnnx, path: Path, operator: str, layer: nn.Linear) -> Path:
    weight = layer.weight.detach().numpy()
    arrays = {"w": weight.T.copy() if operator == "MatMul" else weight}
    names = ["x", "w"]
    if layer.bias is not None:
        arrays["bias"] = layer.bias.detach().numpy()
        names += ["bias"] if operator == "Gemm" else []
    attributes = {"transB": 1} if operator == "Gemm" else {}
    last = "y" if operator == "Gemm" or layer.bias is None else "product"
    nodes = [helper.make_node(operator, names, [last], name="product", **attributes)]
    if last == "product":
        nodes.append(helper.make_node("Add", ["product", "bias"], ["y"]))
    return make_onnx(path, nodes, {"x": (FLOAT, ["b", len(weight[0])])}, {"y": (FLOAT, ["b", len(weight)])}, arrays)


def accumulated(codes: NDArray[np.uint8], zero_point: int, weights: NDArray[np.int8]) -> NDArray[np.int64]:
    product: NDArray[np.int64] = (codes.astype(np.int64) - zero_point) @ weights.astype(np.int64).T
    return product


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(1, 1, 1), (3, 5, 2), (64, 32, 4), (129, 17, 7)])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_a_product_is_that_of_integers(
    make_onnx: MakeOnnx, tmp_path: Path, operator: str, inputs: int, outputs: int, rows: int, bias: bool
) -> None:
    """Torch, and onnxruntime in integers, against sums in int64: codes equal, results up to float32's rounding."""
    layer = linear(inputs, outputs, bias=bias)
    x = draws(rows, inputs, seed=1)
    path = product_graph(make_onnx, tmp_path / "m.onnx", operator, layer)
    target = target_of(path, "static-int8", [{"x": x}], known={"x": WIDE})
    model = shipped(target, tmp_path, [{"x": x}])
    onnx.checker.check_model(model, full_check=True)
    with fake_quantized(OneLayer(layer), target, {"x": x}):
        got = layer(torch.from_numpy(x)).detach().numpy()
        weights = layer.weight.detach().numpy()

    affine = target.static["product"].reads
    assert affine == WIDE_CODES
    ((product,), _) = find_products(Graph(model))
    codes, scales = (Graph(model).array(name) for name in (product.weights, product.scale or ""))
    codes = np.moveaxis(codes, product.channel_axis, 0)
    assert np.array_equal(weights, codes.astype(np.float32) * scales[:, None])
    read = codes_of(model, {"x": x})["x"]
    assert read.max() <= 128
    sums, magnitudes = accumulated(read, affine.zero_point, codes), accumulated(np.abs(read - 64.0), 0, np.abs(codes))
    unit = np.float64(affine.scale) * scales
    expected = sums * unit
    if bias:
        added = layer.bias.detach().numpy()
        expected = expected + (added if operator == "MatMul" else np.rint(added / unit) * unit)
        magnitudes = magnitudes + np.abs(added / unit)
    # A float32 sum of n terms errs by n roundings of its magnitude at most; one in integers by those after the sum.
    rounding = np.finfo(np.float32).eps * magnitudes * unit
    assert (np.abs(got - expected) <= (inputs + 4) / 2 * rounding).all()
    (in_integers,) = run(model, {"x": x}).values()
    assert (np.abs(in_integers - expected) <= 2 * rounding).all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(4, 4, 3, 2, groups=4, bias=False),
        nn.Conv2d(6, 4, 1, groups=2),
        nn.Conv2d(1, 1, (2, 3), dilation=(1, 2)),
    ],
    ids=["plain", "depthwise", "grouped", "dilated"],
)
@pytest.mark.parametrize("onward", ["", "Relu"])
def test_a_convolution_rounds_its_output_where_nothing_further_on_does(
    make_onnx: MakeOnnx, tmp_path: Path, layer: nn.Conv2d, onward: str
) -> None:
    weight = torch.from_numpy(draws(*layer.weight.shape))
    layer.weight.data = weight
    arrays = {"w": weight.numpy(), **({} if layer.bias is None else {"bias": layer.bias.detach().numpy()})}
    padding = [int(p) for p in layer.padding]
    node = helper.make_node(
        "Conv", ["x", *arrays], ["y"], name="c", group=layer.groups, strides=list(layer.stride),
        dilations=list(layer.dilation), pads=padding * 2,
    )  # fmt: skip
    x = draws(2, layer.in_channels, 9, 11)
    last = helper.make_node(onward or "Identity", ["y"], ["z"])
    path = make_onnx(
        tmp_path / "m.onnx", [node, last], {"x": (FLOAT, list(x.shape))}, {"z": (FLOAT, [None] * 4)}, arrays
    )
    target = target_of(path, "static-int8", [{"x": x}], known={"x": WIDE})
    model = shipped(target, tmp_path, [{"x": x}])
    onnx.checker.check_model(model, full_check=True)
    with fake_quantized(OneLayer(layer), target, {"x": x}):
        got = layer(torch.from_numpy(x))
        got = (got.relu() if onward else got).detach().numpy()
    gives = target.static["c"].gives
    assert gives is not None
    assert (gives.zero_point == 0) == (onward == "Relu"), "clipping is what Relu does"
    step = gives.scale
    for as_it_is in (True, False):
        (theirs,) = run(model, {"x": x}, as_it_is=as_it_is).values()
        steps = np.rint((theirs - got) / step)
        np.testing.assert_allclose(theirs, got + steps * step, atol=1e-5 * step)
        # One step where a sum lies between two codes to the last bit.
        assert np.abs(steps).max() <= 1
        assert (steps != 0).mean() < 1e-3


class TwoLayers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.first, self.second = layers

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


def test_merged_products_are_several_modules(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    first, second = linear(8, 3, bias=False), linear(8, 5, bias=False)
    merged = np.concatenate([first.weight.detach().numpy(), second.weight.detach().numpy()])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="both")]
    path = make_onnx(
        tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["b", 8])}, {"y": (FLOAT, ["b", 8])}, {"w": merged.T.copy()}
    )
    module, x = TwoLayers(first, second), draws(4, 8)
    for precision in ("static-int8", "weight-int4"):
        target = target_of(path, precision, [{"x": x}], known={"x": WIDE}, block=16)
        with fake_quantized(module, target, {"x": x}) as found:
            got = torch.cat(module(torch.from_numpy(x)), 1).detach().numpy()
        assert [one.names for one in found] == [("first", "second")]
        model = target.written
        for node in model.graph.node:  # 4 is to round the activation too
            kept = [entry for entry in node.attribute if entry.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(kept)
        (theirs,) = run(model, {"x": x}).values()
        np.testing.assert_allclose(theirs, got, atol=1e-6)


def test_afterwards_the_module_is_as_it_was(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    layer = linear(6, 4, bias=True)
    module, before = OneLayer(layer), dict(layer.named_parameters())
    x = torch.from_numpy(draws(2, 6))
    path = product_graph(make_onnx, tmp_path / "m.onnx", "Gemm", layer)
    target = target_of(path, "static-int8", [{"x": x.numpy()}])
    expected = module(x)[0]
    with fake_quantized(module, target, {"x": x.numpy()}):
        assert not torch.equal(module(x)[0], expected)
    assert type(layer) is nn.Linear
    assert all(after is before[name] for name, after in layer.named_parameters())
    assert torch.equal(module(x)[0], expected)


def test_a_node_that_is_no_module_is_named(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    layer, other = linear(6, 4, bias=False), linear(6, 4, bias=False)
    target = target_of(
        product_graph(make_onnx, tmp_path / "m.onnx", "MatMul", layer), "static-int8", [{"x": draws(2, 6)}]
    )
    other.weight.data += 0.01
    with pytest.raises(
        QuantizationError, match=r"product \(MatMul with 6 x 4 weights\): no module .*{product: float32}"
    ):
        match(OneLayer(other), target, {"x": draws(2, 6)})
    left = target_of(tmp_path / "m.onnx", "static-int8", [{"x": draws(2, 6)}], product="float32")
    assert match(OneLayer(other), left, {"x": draws(2, 6)}) == ()


def test_equal_weights_cannot_be_told_apart(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    first, second = linear(6, 4, bias=False), linear(6, 4, bias=False)
    target = target_of(
        product_graph(make_onnx, tmp_path / "m.onnx", "MatMul", first), "static-int8", [{"x": draws(2, 6)}]
    )
    with pytest.raises(QuantizationError, match="first and second have equal weights"):
        match(TwoLayers(first, second), target, {"x": draws(2, 6)})


def test_a_module_that_rounds_in_two_ways_is_named(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    layer = linear(6, 6, bias=False)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="once"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="twice"),
    ]
    arrays = {"w": layer.weight.detach().numpy().T.copy()}
    path = make_onnx(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["b", 6])}, {"y": (FLOAT, ["b", 6])}, arrays)
    with pytest.raises(QuantizationError, match="layer: is both once and twice"):
        match(OneLayer(layer), target_of(path, "static-int8", [{"x": draws(2, 6)}]), {"x": draws(2, 6)})
    assert len(match(OneLayer(layer), target_of(path, "weight-int8", [{"x": draws(2, 6)}]), {"x": draws(2, 6)})) == 2


def test_what_cannot_be_trained_in_is_refused(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    layer = linear(6, 4, bias=False)
    path = product_graph(make_onnx, tmp_path / "m.onnx", "MatMul", layer)
    with pytest.raises(QuantizationError, match="product: no student is trained in float16"):
        target_of(path, "static-int8", [{"x": draws(2, 6)}], product="float16")


def test_rounding_that_no_module_does_is_refused(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """A ReLU that is rounded for a sigmoid, and is not part of the convolution, whose output others read too."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="first"),
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w"], ["z"], name="second"),
        helper.make_node("Sigmoid", ["r"], ["s"], name="sigmoid"),
        helper.make_node("Tanh", ["y"], ["t"], name="tanh"),
    ]
    outputs = {name: (FLOAT, [None] * 4) for name in "zst"}
    path = make_onnx(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["b", 2, 4, 4])}, outputs, {"w": draws(2, 2, 1, 1)})
    target = target_of(path, "static-int8", [{"x": draws(3, 2, 4, 4)}])
    with pytest.raises(QuantizationError, match=r"first: what comes of it is rounded for sigmoid.*{first: float32}"):
        target.static  # noqa: B018


class Tied(nn.Module):
    """A decoder in small: what it reads tokens from, it compares its output with."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 16), nn.Linear(16, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.table(ids))
        return logits


def test_a_table_that_a_product_shares_is_trained_in_blocks(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """int8 of it is in blocks, rounded alike for both, and what they learn is one weight still."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"], name="embedding"),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["y"], name="head"),
    ]
    module, feed = Tied(), {"ids": np.arange(9)}
    interface = {"ids": (TensorProto.INT64, ["b"])}, {"y": (FLOAT, ["b", 9])}

    def file(name: str) -> Path:
        return make_onnx(tmp_path / name, nodes, *interface, {"table": module.table.weight.detach().numpy()})

    target = target_of(file("before.onnx"), "static-int8", [feed])
    assert target.chosen == {"embedding": "weight-int8", "head": "weight-int8"}
    assert not target.static
    with fake_quantized(module, target, feed):
        before = module.table.weight.detach().clone()
        module(torch.arange(9)).square().sum().backward()
        torch.optim.SGD(module.parameters(), lr=0.01).step()
        assert torch.equal(module.table.weight, module.head.weight)
        assert not torch.equal(module.table.weight, before)
        rows, logits = module.table.weight.detach().numpy(), module(torch.arange(9)).detach().numpy()
    assert module.head.weight is module.table.weight
    written = again(file("after.onnx"), target).written
    written.graph.output.append(onnx.ValueInfoProto(name="h"))
    answers = run(written, feed)
    assert np.array_equal(answers["h"], rows)
    # onnxruntime rounds what the head reads as well.
    assert np.linalg.norm(answers["y"] - logits) < 0.02 * np.linalg.norm(logits)


class Encoder(nn.Module):
    """The mean of a transformer's last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return (hidden.mean(1),)


def texts(vocabulary: int, shapes: Sequence[tuple[int, int]]) -> list[Feed]:
    draw = np.random.default_rng(0)
    return [
        {"input_ids": draw.integers(0, vocabulary, shape), "attention_mask": np.ones(shape, np.int64)}
        for shape in shapes
    ]


def exported(module: nn.Module, feeds: list[Feed], path: Path, width: int) -> Path:
    """A module with inputs of a dynamic batch, of text also a dynamic length, as ONNX that quantizers take."""
    inputs = [
        TensorSpec(name, str(array.dtype), ("batch", "sequence") if array.ndim == 2 else ("batch", *array.shape[1:]))
        for name, array in feeds[0].items()
    ]
    outputs = [TensorSpec("answer", "float32", ("batch", width))]
    plain = export_onnx(module, "student", inputs, outputs, feeds, 20, path)
    folder = path.with_suffix("")
    folder.mkdir()
    rewritten = rewrite_onnx(plain, feeds, folder)
    return rewritten.open_path or rewritten.path


def trained_a_little(module: nn.Module) -> None:
    """Every weight moves, as by a few steps of a training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * parameter.abs().mean() * 0.1


def steps_apart(
    module: nn.Module, target: Target, feed: Feed, model: onnx.ModelProto
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.int64]]]:
    """What the fake-quantised module answers; and by which it differs from the model, in steps, of what every product
    or convolution reads.
    """
    theirs, graph = codes_of(model, feed), Graph(model)
    nodes = {node.name: node for node in graph.nodes}
    read: dict[str, tuple[Affine, Tensor]] = {}
    with fake_quantized(module, target, feed) as found:
        for one in found:
            if one.site.operator != "Gather":
                numbers = graph.dequantized(nodes[one.site.node].input[0])
                assert numbers is not None
                name, affine = graph.producers[numbers.input[0]].input[0], target.static[one.site.node].reads
                one.layers[0].module.register_forward_pre_hook(
                    lambda _, inputs, name=name, affine=affine: read.__setitem__(name, (affine, inputs[0]))
                )
        with torch.inference_mode():
            answer = module(**{name: torch.from_numpy(array) for name, array in feed.items()})[0].numpy()
    apart = {}
    for name, (affine, numbers) in read.items():
        mine = np.rint(numbers.numpy().astype(np.float64) / affine.scale) + affine.zero_point
        apart[name] = mine.astype(np.int64) - theirs[name]
    return answer, apart


def assert_same_codes(apart: Mapping[str, NDArray[np.int64]]) -> None:
    """Equal, but for a step where a number lies between two codes and a sum in another order decides."""
    assert all(np.abs(steps).max() <= 1 for steps in apart.values())
    assert sum(int((steps != 0).sum()) for steps in apart.values()) <= 1e-4 * sum(map(np.size, apart.values()))


@pytest.mark.parametrize("narrow", [False, True], ids=["", "narrow"])
def test_a_transformer_is_its_quantized_graph(
    vocabulary: list[str], tmp_path: Path, bert: nn.Module, narrow: bool
) -> None:
    """Every code in it; also of the weights that training has left, in the graph that these are exported to."""
    module = Encoder(copy.deepcopy(bert))
    feeds = texts(len(vocabulary), [(1, 5), (2, 9), (3, 16)])
    first = target_of(
        exported(module, feeds, tmp_path / "first.onnx", 32), "static-int8", feeds, same_everywhere=narrow
    )
    with fake_quantized(module, first, feeds[0]) as found:
        assert (
            len(found) == len(first.sites) == 2 + 4 * 4
        )  # positions have the segment, one product is query, key and value
        trained_a_little(module)
    second = again(exported(module, feeds, tmp_path / "second.onnx", 32), first)
    assert (second.sites, second.static) == (first.sites, first.static)
    assert all(one.narrow == (narrow and one.reads is not None) for one in second.static.values())
    model = shipped(second, tmp_path, feeds)
    answer, apart = steps_apart(module, second, feeds[2], model)
    assert len(apart) == 4 * 4  # one for query, key and value
    assert_same_codes(apart)
    (theirs,) = run(model, feeds[2], as_it_is=True).values()
    assert mean_cosine(answer, theirs) > 0.99999
    if narrow:  # else onnxruntime's integer kernels saturate on some processors
        (fused,) = run(model, feeds[2]).values()
        assert np.linalg.norm(fused - answer) < 1e-4 * np.linalg.norm(answer)
    plain = module(**{name: torch.from_numpy(array) for name, array in feeds[2].items()})[0].detach().numpy()
    assert mean_cosine(answer, theirs) > mean_cosine(plain, theirs), "the rounding is what makes them equal"


def test_normalizations_are_folded_for_good(tmp_path: Path) -> None:
    """The exporter folds them into convolutions, and rounds what comes out; so does the student."""
    torch.manual_seed(0)
    module = SeparableCnn(1, 3, [4, 8], [2])
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features) * 0.1
            part.running_var = torch.rand(part.num_features) + 0.5
            part.weight.data.uniform_(0.5, 2)
            part.bias.data.normal_(0, 0.1)
    student, feeds = Images(module.eval()), [{"image": draws(n, 1, 8, 8)} for n in (1, 2, 5)]
    before = student(torch.from_numpy(feeds[2]["image"]))[0]
    first = target_of(exported(student, feeds, tmp_path / "first.onnx", 3), "static-int8", feeds, same_everywhere=True)
    with fake_quantized(student, first, feeds[0]) as found:
        assert [one.site.operator for one in found] == ["Conv", "Conv", "Conv", "Gemm"]
        student.train()
        student(torch.from_numpy(feeds[2]["image"]))  # statistics stay
    after = student.eval()(torch.from_numpy(feeds[2]["image"]))[0]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)

    with fake_quantized(student, first, feeds[0]):
        trained_a_little(student)
    second = again(exported(student, feeds, tmp_path / "second.onnx", 3), first)
    assert np.array_equal(second.weight(second.sites[0]), module.features[0].weight.detach().numpy())
    model = shipped(second, tmp_path, feeds)
    answer, apart = steps_apart(student, second, feeds[2], model)
    assert_same_codes(apart)
    (theirs,) = run(model, feeds[2], as_it_is=True).values()
    np.testing.assert_allclose(answer, theirs, atol=1e-5)


class Images(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.module(image),)


WIDTH, HIDDEN, CLASSES, ROWS, HELD_OUT = 32, 256, 4, 1344, 64


def learnt() -> OneLayer:
    """A distilled student whose weights round badly: in every block one is far larger than the others."""
    first, second = linear(WIDTH, HIDDEN, bias=False), linear(HIDDEN, CLASSES, bias=False)
    with torch.no_grad():
        for layer, size in ((first, 0.05), (second, 0.2)):
            layer.weight *= size
            layer.weight[:, ::16] *= 12
    return OneLayer(nn.Sequential(first, nn.Tanh(), second))


def layers_graph(make_onnx: MakeOnnx, path: Path, module: OneLayer) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["y"], name="second"),
    ]
    weights = {f"w{i}": module.layer[i].weight.detach().numpy().T.copy() for i in (0, 2)}  # type: ignore[index]
    return make_onnx(path, nodes, {"x": (FLOAT, ["b", WIDTH])}, {"y": (FLOAT, ["b", CLASSES])}, weights)


@pytest.mark.parametrize(("precision", "rate"), [("weight-int4", 5e-3), ("static-int8", 3e-2)])
def test_training_regains_what_rounding_loses(
    make_onnx: MakeOnnx, tmp_path: Path, precision: NodePrecision, rate: float
) -> None:
    """The student agrees with its teacher in float32, and much less in four bits, or in a range that is far too wide;
    trained so for 420 steps on what the teacher says, on no label, it regains more than half.
    """
    student, plain = learnt(), Plain()
    teacher = copy.deepcopy(student)
    examples, fresh = draws(ROWS + HELD_OUT, WIDTH), draws(2000, WIDTH, seed=1)
    answers = {"all": teacher(torch.from_numpy(examples))[0], "fresh": teacher(torch.from_numpy(fresh))[0].argmax(1)}
    known = {"t": (-1.0, 60.0)} if precision == "static-int8" else {}
    path = layers_graph(make_onnx, tmp_path / "first.onnx", student)
    first = target_of(path, precision, [{"x": examples}], known=known, block=16, same_everywhere=True)

    def agreement(target: Target) -> float:
        (got,) = run(shipped(target, tmp_path, [{"x": examples}]), {"x": fresh}).values()
        return float((got.argmax(1) == answers["fresh"].numpy()).mean())

    before = agreement(first)
    signals = SignalReader(write_outputs(answers["all"].detach().numpy(), tmp_path, 0.0))
    data = TrainingData(list(examples), signals, None, HELD_OUT)
    settings = ClassDistillation(epochs=20, batch_size=64, learning_rate=rate, hard_weight=0.0, temperature=1.0)
    with fake_quantized(student, first, {"x": examples[:2]}):
        train(student, plain, plain, data, settings, Workplace(tmp_path, SILENT))  # type: ignore[arg-type]
    after = agreement(again(layers_graph(make_onnx, tmp_path / "second.onnx", student), first))
    assert before < 0.9
    assert 1 - after < (1 - before) / 2, (before, after)
