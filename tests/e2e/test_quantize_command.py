"""`compressor quantize` on models of one's own: what is chosen, what is written, what is refused."""

from __future__ import annotations

import hashlib
import json
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
    assert candidate["agreement"] == pytest.approx(cosine, abs=1e-3)
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
