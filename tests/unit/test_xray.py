"""Every byte of a model file has a place, and what could be saved is named."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import save_onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor.__main__ import main
from compressor.errors import BundleError
from compressor.inspection import inspect_path, inspection_lines
from compressor.quantize.float_model import load_float_model
from compressor.quantize.sites import applies, assign, find_sites
from compressor.quantize.weight_only import quantize_weights
from compressor.xray import by_role, xray

MakeOnnx = Callable[..., Path]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


NODES = [
    helper.make_node("Gather", ["table", "ids"], ["h"], name="embed"),
    helper.make_node("MatMul", ["h", "w"], ["a"], name="up"),
    helper.make_node("Add", ["a", "bias"], ["b"], name="shift"),
    helper.make_node("MatMul", ["b", "head"], ["y"], name="head"),
]
INTERFACE = {"ids": (INT64, ["n"])}, {"y": (FLOAT, ["n", 200])}


@pytest.fixture
def model(make_onnx: MakeOnnx, tmp_path: Path) -> Path:
    """A table that the head holds once more, transposed."""
    table = numbers(200, 32)
    arrays = {"table": table, "w": numbers(32, 32), "bias": numbers(32), "head": table.T.copy(), "stray": numbers(500)}
    return make_onnx(tmp_path / "m.onnx", NODES, *INTERFACE, arrays)


def test_the_bytes_add_up_and_nothing_much_is_left_unnamed(model: Path) -> None:
    found = xray(model)
    assert sum(found.parts.values()) == found.bytes == model.stat().st_size
    assert 0 <= found.parts["framing"] < 64
    assert found.parts["embedding tables, float"] == pytest.approx(200 * 32 * 4, abs=40)
    assert found.parts["linear weights, float"] == pytest.approx(32 * 32 * 4, abs=40)
    assert found.parts["repeated tensors"] == pytest.approx(200 * 32 * 4, abs=40)
    assert found.parts["tensors that nothing reads"] == pytest.approx(500 * 4, abs=40)
    assert found.parts["biases and constants"] == pytest.approx(32 * 4, abs=40)


def test_remedies_are_named_largest_first(model: Path) -> None:
    words = [remedy.words for remedy in xray(model).remedies]
    assert words == [
        "storing head once: it holds the numbers of table",
        "weight-int8 for Gather embed: table is float32",
        "weight-int8 for MatMul up: w is float32",
        "leaving out stray",
    ]


def test_no_remedy_is_named_that_cannot_be(tmp_path: Path) -> None:
    """Each that is named is one that the quantizer has for that node, and none is left out."""
    nodes = [
        helper.make_node("Gather", ["uneven", "ids"], ["h"], name="uneven"),
        helper.make_node("Gemm", ["h", "w"], ["a"], name="alpha", alpha=0.5),
        helper.make_node("Gemm", ["a", "v", "bias"], ["b"], name="beta", beta=0.5),
        helper.make_node("MatMul", ["b", "plain"], ["c"], name="plain"),
        helper.make_node("MatMul", ["c", "cube"], ["d"], name="cube"),
        helper.make_node("Attention", ["d", "qkv", "bias3"], ["y"], name="fused", domain="com.microsoft", num_heads=2),
    ]
    shapes = {"uneven": (300, 30), "w": (30, 64), "v": (64, 80), "plain": (80, 64), "cube": (1, 64, 64)}
    shapes |= {"qkv": (64, 192), "bias": (80,), "bias3": (192,)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", INT64, ["n"])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(numbers(*shape), name) for name, shape in shapes.items()],
    )
    path = tmp_path / "m.onnx"
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    words = [remedy.words.replace(":", "").split() for remedy in xray(path).remedies]
    named = {node: precision for precision, _, _, node, *_ in words}
    assert named == {"uneven": "dynamic-int8", "alpha": "static-int8", "plain": "weight-int8"}
    sites = {site.node: site for site in find_sites(load_float_model(path))}
    assert all(applies(precision, sites[node]) for node, precision in named.items())  # type: ignore[arg-type]


def test_a_remedy_saves_what_is_told(model: Path) -> None:
    words = {remedy.words: remedy.saves_bytes for remedy in xray(model).remedies}

    def size(**overrides: str) -> int:
        graph = load_float_model(model)
        sites = find_sites(graph)
        quantize_weights(graph, sites, assign(sites, "float32", overrides), 32)  # type: ignore[arg-type]
        return int(graph.ByteSize())

    told = words["weight-int8 for Gather embed: table is float32"]
    assert told == pytest.approx(size() - size(embed="weight-int8"), abs=400)
    assert told < 200 * 32 * 3 - 800


def test_in_blocks(model: Path, tmp_path: Path) -> None:
    graph = load_float_model(model)
    sites = find_sites(graph)
    quantize_weights(graph, sites, assign(sites, "weight-int4", {"up": "weight-int8"}), 32)
    onnx.save(graph, tmp_path / "q.onnx")
    found = xray(tmp_path / "q.onnx")
    assert sum(found.parts.values()) == (tmp_path / "q.onnx").stat().st_size
    assert found.parts["embedding tables, 4 bits in blocks"] == pytest.approx(200 * 16, abs=60)
    assert found.parts["linear weights, 8 bits in blocks"] == pytest.approx(32 * 32, abs=60)
    # Scales of four bytes for 200 rows, twice, and for 32; with zero points of one.
    assert found.parts["scales and zero points"] == pytest.approx((2 * 200 + 32) * 5, abs=400)
    assert by_role(found)["graph"] > found.parts["nodes"] > 0


def test_of_external_data_the_bytes_are_counted_too(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "apart"
    folder.mkdir()
    onnx.save(onnx.load(model), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    found = xray(folder / "m.onnx")
    assert found.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert sum(found.parts.values()) == found.bytes
    assert found.parts["embedding tables, float"] >= 200 * 32 * 4


def test_what_is_printed_of_external_data_adds_up(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "apart"
    folder.mkdir()
    onnx.save(onnx.load(model), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    facts = inspect_path(folder / "m.onnx")
    assert facts["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    shares = [float(share) for line in inspection_lines(facts) for share in re.findall(r"([0-9.]+)%", line)]
    assert len(shares) == len(facts["bytes_by_part"])
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_a_region_that_two_tensors_share_is_counted_once_and_what_no_tensor_has_too(tmp_path: Path) -> None:
    """Offsets without lengths, as the format permits, and 500 bytes behind the last tensor."""
    arrays = {"a": numbers(32, 32), "b": numbers(32, 32), "c": numbers(32, 32) * 2}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["i"]),
        helper.make_node("MatMul", ["i", "c"], ["y"]),
    ]
    path = save_onnx(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 32])}, {"y": (FLOAT, ["n", 32])}, arrays)
    graph = onnx.load(path)
    for tensor, offset in zip(graph.graph.initializer, (0, 0, 4096), strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="m.data")
        tensor.external_data.add(key="offset", value=str(offset))
    onnx.save(graph, path)
    (tmp_path / "m.data").write_bytes(arrays["a"].tobytes() + arrays["c"].tobytes() + bytes(500))
    found = xray(path)
    assert found.bytes == path.stat().st_size + 2 * 4096 + 500
    assert sum(found.parts.values()) == found.bytes
    assert found.parts["external data of no tensor"] == 500
    assert found.parts["linear weights, float"] == pytest.approx(2 * 4096, abs=120)
    assert [tensor.repeats for tensor in found.tensors] == [None, "a", None]


def test_constants_are_tensors_wherever_they_lie(tmp_path: Path) -> None:
    """In a Constant node; in a branch, where weights stay float32; behind a function's parameter, and within it."""
    weights = {name: numpy_helper.from_array(numbers(64, 64 + place), name) for place, name in enumerate("abcd")}
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"{name}y"], name=f"of_{name}")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}y", FLOAT, None)],
            [weights[name]],
        )
        for name in "bc"
    ]
    inside = helper.make_node("Constant", [], ["held"], value=weights["d"])
    body = [
        helper.make_node("MatMul", ["p", "q"], ["r"], name="given"),
        inside,
        helper.make_node("MatMul", ["p", "held"], ["s"], name="own"),
    ]
    function = helper.make_function("mine", "Two", ["p", "q"], ["r", "s"], body, [helper.make_opsetid("", 20)])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=weights["a"]),
        helper.make_node("MatMul", ["x", "a"], ["y"], name="of_a"),
        helper.make_node("If", ["which"], ["z"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Two", ["x", "e"], ["v", "w"], domain="mine", name="call"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", FLOAT, ["n", 64]),
            helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in "yzvw"],
        [numpy_helper.from_array(numbers(64, 68), "e")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10), path)
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = xray(path)
    assert {tensor.name: tensor.readers for tensor in found.tensors} == {
        "e": ("Two call",),
        "a": ("MatMul of_a",),
        "b": ("MatMul of_b",),
        "c": ("MatMul of_c",),
        "mine.Two/held": ("MatMul own",),
    }
    assert found.parts["linear weights, float"] == pytest.approx(4 * 64 * (64 + 65 + 66 + 67 + 68), abs=120)
    assert sum(found.parts.values()) == found.bytes == path.stat().st_size
    assert 0 < found.parts["nodes"] < 600
    assert 0 <= found.parts["framing"] < 100
    told = " ".join(remedy.words for remedy in found.remedies)
    assert len(found.remedies) == 3
    assert "of_b" not in told
    assert "of_c" not in told


def test_metadata_is_a_part(model: Path, tmp_path: Path) -> None:
    told = onnx.load(model)
    told.metadata_props.add(key="history", value="x" * 5000)
    onnx.save(told, tmp_path / "told.onnx")
    found = xray(tmp_path / "told.onnx")
    assert found.parts["metadata"] == 5007
    assert any(remedy.words == "leaving out the metadata" for remedy in found.remedies)


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x0a\xff\xff\xff")
    with pytest.raises(BundleError, match="expected an ONNX model"):
        xray(tmp_path / "m.onnx")


def test_names_do_not_drive_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither where the facts are printed nor in an error."""
    name = "w\x1b]0;owned\x07\x1b[2J\n\x9b31m"
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), name)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.split("\n"))
    assert "w?]0;owned??[2J??31m, read by" in said
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../outside")
    model.graph.initializer[0].CopyFrom(weight)
    path.write_bytes(model.SerializeToString())
    assert main(["inspect", str(path)]) == 11
    said = capsys.readouterr().err
    assert said.rstrip("\n").isprintable()
    assert "tensor w?]0;owned??[2J" in said


def test_a_pipe_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 2
    assert "expected an .onnx file or a bundle folder, found a pipe or a device" in capsys.readouterr().err
