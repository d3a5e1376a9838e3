"""`compressor quantize` on models of one's own: what is chosen, what is written, what is refused."""

from __future__ import annotations

import hashlib
import json
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
from run_folders import assert_one_clear_line
from shared_runs import Run

from compressor.locks import alone_in

WIDTH = 512
FLOAT = TensorProto.FLOAT


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, NDArray[Any]], width: int, out: int) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", out])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """Four products of 512 by 512: they stream weights, so fewer bytes are faster on any processor."""
    nodes, weights = [], {}
    for i in range(4):
        nodes.append(helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"a{i}"], name=f"product_{i}"))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"h{i + 1}" if i < 3 else "y"]))
        weights[f"w{i}"] = numbers(WIDTH, WIDTH) / np.float32(WIDTH**0.5)
    return save(tmp_path / "products.onnx", nodes, weights, WIDTH, WIDTH)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "examples.npz", x=numbers(64, WIDTH))
    return tmp_path / "examples.npz"


def test_the_fastest_that_agrees_is_written(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run("quantize", products, "--inputs", examples, "--out", out, "--json", "--set", "precisions=[weight-int8]")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found == json.loads((out / "quantization.json").read_text())
    (candidate,) = found["candidates"]
    certificate = out / "model.certificate.json"
    assert certificate.is_file() == (found["chosen"] != "float32")
    if certificate.is_file():
        sha256 = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
        assert json.loads(certificate.read_text())["model_sha256"] == sha256
    x = np.load(examples)["x"][:4]
    sessions = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in (products, out / "model.onnx")
    ]
    expected, got = (session.run(None, {"x": x})[0] for session in sessions)
    cosine = (expected * got).sum() / np.linalg.norm(expected) / np.linalg.norm(got)
    assert cosine > 0.999
    agreement = candidate["agreement"]
    assert agreement["value"] == pytest.approx(cosine, abs=1e-3)
    assert agreement["low"] < agreement["value"] < agreement["high"] <= 1
    if found["chosen"] == "float32":  # a processor on which this is no gain: then it says so, with where the time goes
        assert candidate["faster"]["low"] <= 1
        assert candidate["operators"][0]["operator"] == "MatMulNBits"
        assert (out / "model.onnx").read_bytes() == products.read_bytes()
    else:
        assert candidate["faster"]["low"] > 1
        assert (out / "model.onnx").stat().st_size == candidate["bytes"] < products.stat().st_size / 3


def test_inspect_tells_which_layers_err(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    """One weight is rounded by hand, so that its product alone errs."""
    model = onnx.load(products)
    (rounded,) = (tensor for tensor in model.graph.initializer if tensor.name == "w2")
    rounded.CopyFrom(numpy_helper.from_array(np.round(numpy_helper.to_array(rounded), 2), "w2"))
    onnx.save(model, tmp_path / "rounded.onnx")
    against = ("--against", products, "--inputs", examples)
    ended = run("inspect", tmp_path / "rounded.onnx", *against, "--json")
    assert ended.code == 0, ended.stderr
    errors = json.loads(ended.stdout)["errors"]
    assert [layer["node"] for layer in errors["layers"]] == ["product_2"]
    assert (errors["remedy"]["node"], errors["remedy"]["precision"]) == ("product_2", "float32")
    assert errors["remedy"]["then"]["snr_db"] is None
    assert 20 < errors["now"]["snr_db"] < 60
    shown = run("inspect", tmp_path / "rounded.onnx", *against).stdout
    assert "MatMul product_2: agreement 1.000000, +" in shown
    assert_one_clear_line(run("inspect", tmp_path / "rounded.onnx", "--against", products), 2)


def test_where_fewer_bits_are_slower_float32_is_kept_and_the_reason_told(run: Run, tmp_path: Path) -> None:
    """A product of 16 numbers: quantizing the activation takes longer than the product itself, everywhere."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="tiny")
    model = save(tmp_path / "tiny.onnx", [node], {"w": numbers(16, 512)}, 16, 512)
    np.savez(tmp_path / "x.npz", x=numbers(64, 16))
    out = tmp_path / "out"
    ended = run("quantize", model, "--inputs", tmp_path / "x.npz", "--out", out, "--set", "precisions=[static-int16]")
    assert ended.code == 0, ended.stderr
    assert (out / "model.onnx").read_bytes() == model.read_bytes()
    assert "float32: no candidate is shown to be faster here" in ended.stdout
    assert "of its time in" in ended.stdout


def test_no_candidate_that_departs_is_written(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--min-agreement", "0.99999999", "--set", "precisions=[weight-int4]")
    ended = run("quantize", products, "--inputs", examples, "--out", out, *flags)
    assert ended.code == 0, ended.stderr
    assert "float32: none agrees with it by" in ended.stdout
    assert (out / "model.onnx").read_bytes() == products.read_bytes()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": numbers(64, WIDTH)}, "the model's input 'x' is missing; the file has z"),
        ({"x": numbers(64, WIDTH).astype(np.float64)}, r"x: expected float32 [n, 512], got float64 [64, 512]"),
        ({"x": numbers(64)}, "x: expected float32 [n, 512], got float32 [64]"),
        ({"x": numbers(64, 8)}, "x: expected float32 [n, 512], got float32 [64, 8]"),
        ({"x": numbers(4, WIDTH)}, "expected 16 examples or more, got 4"),
    ],
)
def test_inputs_that_do_not_fit(
    run: Run, products: Path, tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str
) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    ended = run("quantize", products, "--inputs", tmp_path / "wrong.npz", "--out", tmp_path / "out")
    assert message in assert_one_clear_line(ended, 4)
    assert not (tmp_path / "out").exists()


def outside(model: Path, folder: Path) -> Path:
    """The model with its weights in another file."""
    folder.mkdir()
    onnx.save(onnx.load(model), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def test_weights_in_another_file_ship_within_the_model(
    run: Run, products: Path, examples: Path, tmp_path: Path
) -> None:
    """float32, since nothing agrees as asked: it must open without what it came with."""
    apart, out = outside(products, tmp_path / "apart"), tmp_path / "out"
    assert apart.stat().st_size < 10_000
    flags = ("--min-agreement", "0.99999999", "--set", "precisions=[weight-int4]", "--json")
    ended = run("quantize", apart, "--inputs", examples, "--out", out, *flags)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["chosen"], found["refused"]) == ("float32", [])
    assert sorted(path.name for path in out.glob("[!.]*")) == ["model.onnx", "quantization.json"]
    shutil.rmtree(apart.parent)
    x = np.load(examples)["x"][:4]
    expected, got = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path in (products, out / "model.onnx")
    )
    np.testing.assert_array_equal(got, expected)


def test_inspect_counts_weights_in_another_file_on_both_sides(
    run: Run, products: Path, examples: Path, tmp_path: Path
) -> None:
    apart = outside(products, tmp_path / "apart")
    ended = run("inspect", apart, "--against", products, "--inputs", examples, "--json")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    size = sum(path.stat().st_size for path in apart.parent.iterdir())
    assert found["bytes"] == found["errors"]["now"]["bytes"] == size
    assert found["errors"]["now"]["agreement"] == 1


def test_what_fits_into_no_file_is_refused_at_once(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    apart = outside(products, tmp_path / "apart")
    model = onnx.load(apart, load_external_data=False)
    huge = model.graph.initializer.add(name="huge", data_type=FLOAT, dims=[600_000_000])
    huge.data_location = TensorProto.EXTERNAL
    huge.external_data.add(key="location", value="huge.data")
    onnx.save(model, apart)
    with (apart.parent / "huge.data").open("wb") as file:
        file.truncate(2_400_000_000)  # no block of it is ever written
    ended = run("quantize", apart, "--inputs", examples, "--out", tmp_path / "out")
    assert "at most 2,147,483,647 fit into one ONNX file" in assert_one_clear_line(ended, 9)
    assert not (tmp_path / "out").exists()


def test_every_output_is_judged(run: Run, tmp_path: Path) -> None:
    """Of the second product one channel, which nothing feeds, takes all codes: that output is lost in int8."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="first"),
        helper.make_node("Slice", ["x", "begin", "end", "axis"], ["part"]),
        helper.make_node("MatMul", ["part", "v"], ["z"], name="second"),
    ]
    narrow = numbers(64, 32) / np.float32(1000)
    narrow[0] = 100
    weights = {
        "w": numbers(WIDTH, 256),
        "v": narrow,
        "begin": np.array([0]),
        "end": np.array([64]),
        "axis": np.array([1]),
    }
    model = onnx.load(save(tmp_path / "two.onnx", nodes, weights, WIDTH, 256))
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, ["n", 32]))
    onnx.save(model, tmp_path / "two.onnx")
    x = numbers(64, WIDTH)
    x[:, 0] = 0
    np.savez(tmp_path / "x.npz", x=x)
    flags = ("--set", "precisions=[dynamic-int8]", "--set", "migrate=off", "--json")
    ended = run("quantize", tmp_path / "two.onnx", "--inputs", tmp_path / "x.npz", "--out", tmp_path / "out", *flags)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["chosen"] == "float32"
    assert found["candidates"][0]["agreement"]["high"] < 0.5
    assert "none agrees with it" in found["reason"]


def test_outputs_whose_first_axis_is_no_batch(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    model = onnx.load(products)
    model.graph.node.append(helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0))
    model.graph.node.append(helper.make_node("Transpose", ["y"], ["across"], perm=[1, 0]))
    model.graph.output.insert(0, helper.make_tensor_value_info("total", FLOAT, []))
    model.graph.output.insert(0, helper.make_tensor_value_info("across", FLOAT, [WIDTH, "n"]))
    onnx.save(model, tmp_path / "odd.onnx")
    flags = ("--set", "precisions=[weight-int8]", "--json")
    ended = run("quantize", tmp_path / "odd.onnx", "--inputs", examples, "--out", tmp_path / "out", *flags)
    assert ended.code == 0, ended.stderr
    assert 0.999 < json.loads(ended.stdout)["candidates"][0]["agreement"]["low"] < 1
    ended = run("inspect", tmp_path / "odd.onnx", "--against", tmp_path / "odd.onnx", "--inputs", examples, "--json")
    assert json.loads(ended.stdout)["errors"]["now"]["agreement"] == 1


def test_weights_that_are_inputs_too_are_none(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    """As files of version 3 have them, and later ones may."""
    model = onnx.load(products)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    onnx.save(model, tmp_path / "all.onnx")
    flags = ("--set", "precisions=[weight-int8]", "--min-agreement", "0.9", "--json")
    ended = run("quantize", tmp_path / "all.onnx", "--inputs", examples, "--out", tmp_path / "out", *flags)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["refused"] == []
    if found["chosen"] != "float32":
        session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == ["x"]


def test_interfaces_that_cannot_be_served_are_refused_before_any_work(
    run: Run, products: Path, examples: Path, tmp_path: Path
) -> None:
    def refused(change: Callable[[onnx.GraphProto], None], code: int) -> str:
        model = onnx.load(products)
        change(model.graph)
        onnx.save(model, tmp_path / "other.onnx")
        ended = run("quantize", tmp_path / "other.onnx", "--inputs", examples, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return assert_one_clear_line(ended, code)

    def in_fours(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4

    def double(graph: onnx.GraphProto) -> None:
        graph.input[0].CopyFrom(helper.make_tensor_value_info("d", TensorProto.DOUBLE, ["n", WIDTH]))
        graph.node.insert(0, helper.make_node("Cast", ["d"], ["x"], to=FLOAT))

    def sequence(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("SplitToSequence", ["y"], ["parts"], axis=1))
        graph.output.append(helper.make_tensor_sequence_value_info("parts", FLOAT, None))

    assert f"x float32 [4, {WIDTH}] takes 4 examples at a time" in refused(in_fours, 9)
    assert "its input d float64 [n, 512] cannot be timed; expected float32" in refused(double, 9)
    assert "its output parts is no tensor but a sequence" in refused(sequence, 9)


def test_where_no_folder_can_be_is_told_before_any_work(run: Run, products: Path, examples: Path) -> None:
    for out, told in (
        (examples, "expected a folder, found a file"),
        (Path("/proc/out"), "no folder can be made there"),
    ):
        ended = run("quantize", products, "--inputs", examples, "--out", out, "--set", "precisions=[static-int8]")
        assert f"{out}: {told}; choose another with --out" in assert_one_clear_line(ended, 13)
        assert ended.stdout == ""


def test_held_out_examples_that_cannot_be_compared(run: Run, products: Path, tmp_path: Path) -> None:
    """The last 16 of 64 are held out, of which one has a NaN; then float32's own answers have one."""
    x = numbers(64, WIDTH)
    np.savez(tmp_path / "good.npz", x=x)
    x[60, 3] = np.nan
    np.savez(tmp_path / "bad.npz", x=x)
    flags = ("--out", tmp_path / "out", "--set", "precisions=[weight-int8]", "--json")
    line = assert_one_clear_line(run("quantize", products, "--inputs", tmp_path / "bad.npz", *flags), 9)
    assert "1 of 16 held-out examples have NaN, or NaN or infinity in what float32 answers" in line
    assert "the first of them example 60; leave such examples out, or raise quantize.max_bad_batches above 0" in line
    permitted = ("--set", "max_bad_batches=0.1")
    ended = run("quantize", products, "--inputs", tmp_path / "bad.npz", *flags, *permitted)
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["candidates"][0]["agreement"]["low"] > 0.99
    model = onnx.load(products)
    model.graph.node[-1].output[0] = "h4"
    model.graph.node.append(helper.make_node("Log", ["h4"], ["y"]))
    onnx.save(model, tmp_path / "log.onnx")
    line = assert_one_clear_line(run("quantize", tmp_path / "log.onnx", "--inputs", tmp_path / "good.npz", *flags), 9)
    assert "16 of 16 held-out examples have NaN, or NaN or infinity in what float32 answers" in line


def test_what_opens_but_does_not_run_is_refused(run: Run, tmp_path: Path) -> None:
    """GroupNormalization changed its scales with opset 21, which static-int16 needs: a candidate of it is refused, and
    a remedy in it is none."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a0"], name="first"),
        helper.make_node("Reshape", ["a0", "image"], ["r"]),
        helper.make_node("GroupNormalization", ["r", "scale", "bias"], ["n"], num_groups=4),
        helper.make_node("Reshape", ["n", "rows"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["y"], name="second"),
    ]
    weights = {
        "w0": numbers(256, 256) / np.float32(16),
        "w1": numbers(256, 255, 1)[:, :, 0] / np.float32(16),
        "image": np.array([-1, 16, 4, 4]),
        "rows": np.array([-1, 256]),
        "scale": np.ones(4, np.float32),
        "bias": np.zeros(4, np.float32),
    }
    model = onnx.load(save(tmp_path / "m.onnx", nodes, weights, 256, 255))
    model.opset_import[0].version = 18
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=numbers(64, 256))
    out, flags = tmp_path / "out", ("--set", "precisions=[static-int8, static-int16]", "--json")
    ended = run("quantize", tmp_path / "m.onnx", "--inputs", tmp_path / "x.npz", "--out", out, *flags)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert [one["name"] for one in found["candidates"]] == ["float32-int8"]
    (refused,) = found["refused"]
    assert refused["name"] == "float32-static-int16"
    assert refused["reason"].startswith("onnxruntime fails to run the model: ")
    (attributed,) = found["attributions"]
    assert {layer["node"] for layer in attributed["layers"]} == {"first", "second"}


def test_what_is_read_is_never_written_over(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    """The model under the name of what is written, its weights' file, the examples; by way of a link too."""
    src, linked = tmp_path / "src", tmp_path / "linked"
    src.mkdir()
    shutil.copy(products, src / "model.onnx")
    shutil.copy(examples, src / "quantization.json")
    linked.symlink_to(src)
    apart = tmp_path / "apart"
    apart.mkdir()
    model = onnx.load(products)
    onnx.save(model, apart / "m.onnx", save_as_external_data=True, location="model.onnx", size_threshold=0)
    before = {path: path.read_bytes() for folder in (src, apart) for path in folder.iterdir()}
    for model_path, inputs, out in (
        (src / "model.onnx", examples, src),
        (src / "model.onnx", examples, linked),
        (products, src / "quantization.json", src),
        (apart / "m.onnx", examples, apart),
    ):
        for settings in (("precisions=[weight-int8]",), ("precisions=[]", "search.max_mb=0.001", "search.trials=1")):
            flags = [flag for one in settings for flag in ("--set", one)]
            line = assert_one_clear_line(run("quantize", model_path, "--inputs", inputs, "--out", out, *flags), 2)
            assert "would be lost; choose another with --out" in line
        assert {path: path.read_bytes() for folder in (src, apart) for path in folder.iterdir()} == before


def test_inspect_against_another_model(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    model = onnx.load(products)
    model.graph.input[0].name = model.graph.node[0].input[0] = "other"
    onnx.save(model, tmp_path / "inputs.onnx")
    ended = run("inspect", tmp_path / "inputs.onnx", "--against", products, "--inputs", examples)
    assert "expected the inputs of" in (line := assert_one_clear_line(ended, 2))
    assert "x float32 [n, 512]; got other float32 [n, 512]" in line
    model = onnx.load(products)
    model.graph.output.append(helper.make_tensor_value_info("a0", FLOAT, ["n", WIDTH]))
    onnx.save(model, tmp_path / "outputs.onnx")
    ended = run("inspect", tmp_path / "outputs.onnx", "--against", products, "--inputs", examples)
    assert "expected the outputs of" in assert_one_clear_line(ended, 2)


def test_settings_and_names_that_mean_nothing(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    def refused(*flags: str) -> str:
        ended = run("quantize", products, "--inputs", examples, "--out", tmp_path / "out", *flags)
        assert not (tmp_path / "out").exists()
        return ended.stderr

    assert "unknown key precision; did you mean precisions?" in refused("--set", "precision=[weight-int4]")
    assert "did you mean product_0?" in refused("--set", "overrides={product0: float32}")
    assert "static-int7" in refused("--set", "overrides={product_0: static-int7}")
    assert "unknown key search.max_gb; did you mean max_mb?" in refused("--set", "search.max_gb=1")
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    ended = run("quantize", tmp_path / "garbage.onnx", "--inputs", examples, "--out", tmp_path / "out")
    assert "garbage.onnx: expected an ONNX model" in ended.stderr
    newer = onnx.load(products)
    newer.ir_version = 99
    onnx.save(newer, tmp_path / "newer.onnx")
    ended = run("quantize", tmp_path / "newer.onnx", "--inputs", examples, "--out", tmp_path / "out")
    assert "newer.onnx: onnxruntime does not open it" in ended.stderr


def test_a_search_finds_a_mixture_and_goes_on(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--set", "precisions=[dynamic-int8]", "--set", "search.trials=3", "--json")
    ended = run("quantize", products, "--inputs", examples, "--out", out, *flags)
    assert ended.code == 0, ended.stderr
    (kept,) = out.glob("search-*")
    trials = [line for line in (kept / "trials.jsonl").read_text().splitlines() if line]
    assert 1 <= len(trials) <= 3
    assert len({json.dumps(json.loads(line)["chosen"], sort_keys=True) for line in trials}) == len(trials)
    assert len([line for line in (kept / "sensitivity.jsonl").read_text().splitlines() if line]) == 4
    again = run("quantize", products, "--inputs", examples, "--out", out, *flags)
    assert again.code == 0, again.stderr
    assert [line for line in (kept / "trials.jsonl").read_text().splitlines() if line] == trials


@pytest.mark.parametrize("agreement", ["1.5", "-0.1", "nan"])
def test_an_agreement_that_none_can_have(
    run: Run, products: Path, examples: Path, tmp_path: Path, agreement: str
) -> None:
    flags = ("--out", tmp_path / "out", f"--min-agreement={agreement}")
    line = assert_one_clear_line(run("quantize", products, "--inputs", examples, *flags), 2)
    assert f"--min-agreement: expected a number from 0 to 1, got {agreement}" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_is_at_work_in(run: Run, products: Path, examples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with alone_in(out):
        line = assert_one_clear_line(run("quantize", products, "--inputs", examples, "--out", out), 13)
    assert "another compressor is at work in it" in line
