"""`compressor quantize` with a search: what binds it, what it keeps apart, what processes share."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compressor.artifacts import Interval
from compressor.errors import GateError
from compressor.progress import SILENT
from compressor.quantizing import Judged, Quantized, _choose, quantize_file
from compressor.recipe_file import quantization_from
from compressor.recipe_quantize import Search
from compressor.timings import Timing

WIDTH, DOTTED = 64, "/layer.1/MatMul"
# One trial, and no ranking before it.
AT_ONCE = ("search.hours=1e-9", "search.trials=1")


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def products(make_onnx: Callable[..., Path], tmp_path: Path) -> Path:
    """Three products of 64 by 64, 16 KB each."""
    nodes, weights = [], {}
    for i, name in enumerate(("first", DOTTED, "last")):
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"a{i}"], name=name))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"h{i + 1}"]))
        weights[f"w{i}"] = numbers(WIDTH, WIDTH + i)[:, :WIDTH] / np.float32(WIDTH**0.5)
    interface = {"h0": (TensorProto.FLOAT, ["n", WIDTH])}, {"h3": (TensorProto.FLOAT, ["n", WIDTH])}
    return make_onnx(tmp_path / "products.onnx", nodes, *interface, weights)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "examples.npz", h0=numbers(64, WIDTH))
    return tmp_path / "examples.npz"


def quantized(model: Path, inputs: Path, out: Path, *settings: str) -> Quantized:
    wanted = quantization_from(["precisions=[]", *settings])
    return quantize_file(model, inputs, wanted, out, SILENT, min_agreement=0.5, budget_s=0.5)


def trials_of(folder: Path) -> list[dict[str, Any]]:
    (search,) = folder.glob("search-*")
    return [json.loads(line)["chosen"] for line in (search / "trials.jsonl").read_text().splitlines() if line]


def test_what_is_overridden_is_so_in_every_trial_and_file(products: Path, examples: Path, tmp_path: Path) -> None:
    """A name with dots stands in braces."""
    out = tmp_path / "out"
    overrides = f"overrides={{first: float32, {DOTTED}: weight-int8}}"
    found = quantized(products, examples, out, "search.trials=4", overrides)
    trials = trials_of(out)
    assert {one["last"] for one in trials} > {"dynamic-int8"}, "what is not, varies"
    assert {(one["first"], one[DOTTED]) for one in trials} == {("float32", "weight-int8")}
    names = {tensor.name for tensor in onnx.load(out / "model.onnx").graph.initializer}
    assert "w0" in names
    assert ("w1" in names) == (found.chosen == "float32")


def test_other_examples_are_another_search(products: Path, examples: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, h0=np.load(examples)["h0"] * 2)
    out = tmp_path / "out"
    counts = []
    for inputs in (examples, other, examples):
        quantized(products, inputs, out, *AT_ONCE)
        counts.append(len(list(out.glob("search-*"))))
    assert counts == [1, 2, 2]


def test_where_nothing_keeps_to_the_limits_nothing_is_left(products: Path, examples: Path, tmp_path: Path) -> None:
    """Not float32, not a candidate that no search found, and not what was there before."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model.onnx", "model.certificate.json", "quantization.json"):
        (out / name).write_text("of an earlier run")
    with pytest.raises(GateError, match=r"^nothing ships: float32 weighs .*max_mb permits 0.001 MB[^\n]*$") as raised:
        quantized(products, examples, out, "search.max_mb=0.001", *AT_ONCE, "precisions=[weight-int8]")
    assert {name for name, _ in raised.value.objections} >= {"float32", "float32-weight-int8"}
    assert not list(out.glob("model*"))
    assert not (out / "quantization.json").exists()


def judged(name: str, size: int, ms: float, low: float, agreement: float = 1.0) -> Judged:
    agrees = Interval(1.0, agreement, 1.0)
    return Judged(name, "", size, agrees, ms, Interval(low + 0.1, low, low + 0.2), (), "")


FLOAT32 = judged("float32", 400, 2.0, 0.9)
SMALL, FAST = judged("small", 100, 1.5, 1.2), judged("fast", 200, 1.0, 1.9)
QUIET, BUSY = Timing(True, (), (), ()), Timing(False, ("busy",), (), ())


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({}, "small"),
        ({"max_ms": 1.2}, "fast"),
        ({"max_mb": 150e-6}, "small"),
        ({"max_mb": 150e-6, "max_ms": 1.2}, ""),
        ({"max_mb": 50e-6}, ""),
    ],
)
def test_what_ships_keeps_to_the_limits(limits: dict[str, float], chosen: str) -> None:
    """By hand: 400 bytes of float32 take 2 ms, `small` gains more than `fast`."""
    search = Search.model_validate(limits)
    if chosen:
        assert choose((SMALL, FAST), search)[0] == chosen
    else:
        with pytest.raises(GateError, match=r"float32 (weighs|takes) .*; small (weighs|takes) "):
            choose((SMALL, FAST), search)


def choose(candidates: tuple[Judged, ...], limits: Search | None, timing: Timing = QUIET) -> tuple[str, str]:
    return _choose(FLOAT32, candidates, 0.99, timing, limits)


def test_float32_ships_within_limits_that_no_candidate_keeps_to() -> None:
    large = judged("large", 500, 1.0, 1.9)
    assert choose((large,), Search.model_validate({"max_mb": 450e-6})) == (
        "float32",
        "large weighs 500 bytes; quantize.search.max_mb permits 0.00045 MB",
    )
    assert choose((large,), None)[0] == "large"


def test_what_agrees_by_chance_does_not_ship() -> None:
    """The lower bound of the agreement is below what is asked for."""
    found = choose((judged("doubtful", 100, 1.0, 1.9, agreement=0.98),), None)
    assert found[0] == "float32"
    assert "none agrees with it by 0.99 beyond doubt; the closest, doubtful, by 1.0000 [0.9800, 1.0000]" in found[1]


def test_what_an_invalid_timing_decides_says_so() -> None:
    for candidates in ((SMALL,), (judged("slow", 100, 3.0, 0.5),), ()):
        assert choose(candidates, None, BUSY)[1].endswith("; the timing is INVALID: busy")
        assert "INVALID" not in choose(candidates, None)[1]


def test_runs_share_a_study(products: Path, examples: Path, tmp_path: Path) -> None:
    study, outs = tmp_path / "study", [tmp_path / "one", tmp_path / "two"]
    settings = ("search.trials=5", f"search.study={study}")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(quantized, products, examples, out, *settings) for out in outs]
        found = [run.result(timeout=300) for run in runs]
    for one, out in zip(found, outs, strict=True):
        assert json.loads((out / "quantization.json").read_text()) == json.loads(json.dumps(asdict(one)))
        assert not list(out.glob("search-*"))
    keys = [json.dumps(one, sort_keys=True) for one in trials_of(study)]
    assert 1 < len(keys) == len(set(keys))
