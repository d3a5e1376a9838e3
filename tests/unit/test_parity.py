"""Parity: what counts as equal, and what never does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.errors import ExportError
from compressor.export import export_onnx
from compressor.preprocess import Feed, whole_output
from compressor.verify.departure import first_module, first_node
from compressor.verify.parity import (
    Answer,
    Answers,
    Probe,
    answers,
    by_onnx,
    by_torch,
    by_torch_in_float64,
    by_torch_rounded_anew,
    compare,
    equal_floats,
    measured,
    probes_in_shapes,
    probes_of,
    require,
)

EXPECTED = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def off(amount: float, row: int = 2) -> NDArray[np.float32]:
    got = EXPECTED.copy()
    got[row, 1] += amount
    return got


def test_equal_outputs() -> None:
    parity = measured("a", "b", EXPECTED, EXPECTED, exact=True)
    assert parity.holds
    assert (parity.max_abs_error, parity.top1_agreement, parity.inputs) == (0, 1, 6)
    assert parity.mean_cosine == pytest.approx(1)
    assert require(parity) is parity


@pytest.mark.parametrize(("share", "holds"), [(0.9, True), (1.1, False), (-0.9, True), (-1.1, False)])
def test_the_bound_is_absolute_plus_relative(share: float, holds: bool) -> None:
    bound = 1e-5 + 1e-4 * abs(float(EXPECTED[2, 1]))
    parity = measured("a", "b", off(share * bound), EXPECTED, exact=True)
    assert parity.holds is holds
    assert parity.max_abs_error == pytest.approx(abs(share) * bound, rel=0.05)


def test_one_wrong_value_among_many_is_enough() -> None:
    many = np.ones((1000, 50), np.float32)
    got = many.copy()
    got[999, 49] = 1.001
    assert not measured("a", "b", got, many, exact=True).holds


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [True, False])
def test_what_is_not_finite_never_holds(exact: bool, value: float, both: bool) -> None:
    """Not even when both are wrong in the same way."""
    got = EXPECTED.copy()
    got[0, 0] = value
    parity = measured("a", "b", got, got if both else EXPECTED, exact=exact)
    assert not parity.holds
    assert np.isfinite([parity.max_abs_error, parity.mean_cosine]).all(), "result.json has no word for NaN"
    with pytest.raises(ExportError, match="a departs from b"):
        require(parity)


@pytest.mark.parametrize(("angle", "holds"), [(20, True), (30, False), (170, False)])
def test_int8_must_point_the_same_way(angle: float, holds: bool) -> None:
    """The cosine of 25.8 degrees is 0.9."""
    expected = np.tile(np.array([[1.0, 0.0]], np.float32), (5, 1))
    radians = np.deg2rad(angle)
    got = np.tile(np.array([[np.cos(radians), np.sin(radians)]], np.float32), (5, 1))
    parity = measured("a", "b", got, expected, exact=False)
    assert parity.holds is holds
    assert parity.mean_cosine == pytest.approx(np.cos(radians), abs=1e-6)


def test_agreement_of_the_largest() -> None:
    expected = np.eye(4, dtype=np.float32)
    got = expected[[0, 1, 2, 0]]
    assert measured("a", "b", got, expected, exact=False).top1_agreement == 0.75


@pytest.mark.parametrize(
    ("spoiled_row", "holds"), [([0.7, 0.7], True), ([0.0, 0.0], True), ([-0.1, 0.0], False), ([-1.0, 0.0], False)]
)
def test_one_answer_of_many_in_int8_must_not_be_off_by_its_length(spoiled_row: list[float], holds: bool) -> None:
    """A mean cosine of 0.98 is left, at worst."""
    nothing = np.empty((0, 2), np.float32)  # is compared of a text without words
    expected = [np.array([[1.0, 0.0]], np.float32)] * 99 + [np.array([[0.001, 0.0]], np.float32), nothing]
    got = [np.array([spoiled_row], np.float32), *expected[1:-2], np.array([[0.0, 0.5]], np.float32), nothing]
    probes = probes_in_shapes([{"ids": np.zeros((1, 1))}] * 101)
    found = compare("a", "b", (got, expected), probes, lambda _: "here", source=None)
    assert found.mean_cosine > 0.95
    assert (found.holds, found.departs_at) == (holds, None if holds else "here")


class Net(nn.Module):
    """ids -> a table, a product, a bend, a product, the mean: float32 [batch, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (self.second(torch.tanh(self.first(self.table(ids)))).mean(dim=1),)


class Ids:
    def encode(self, inputs: Any) -> list[NDArray[np.int64]]:
        return [np.array(ids, np.int64) for ids in inputs]

    def collate(self, examples: Any) -> Feed:
        return {"ids": np.stack(examples)}


INPUTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9]]
TWO_BY_FIVE: Feed = {"ids": np.arange(10).reshape(2, 5)}


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


@pytest.fixture(scope="module")
def exported(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids, out = TensorSpec("ids", "int64", ("batch", "n")), TensorSpec("out", "float32", ("batch", 4))
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    return export_onnx(net, "net", [ids], [out], [TWO_BY_FIVE], 20, path).path


def spoiled(source: Path, weight: str, path: Path) -> Path:
    """The same graph with one number of the weight of that shape doubled."""
    model = onnx.load(source)
    tensor = next(one for one in model.graph.initializer if list(one.dims) == json.loads(weight))
    numbers = onnx.numpy_helper.to_array(tensor).copy()
    numbers[-1] *= 2
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    onnx.save(model, path)
    return path


def probes() -> tuple[Probe, ...]:
    return (*probes_of(Ids(), INPUTS, whole_output), *probes_in_shapes([TWO_BY_FIVE]))


def given(model: Answer, reference: Answer) -> tuple[Answers, Answers]:
    return answers(model, probes()), answers(reference, probes())


def test_a_graph_is_compared_on_inputs_and_in_shapes(net: Net, exported: Path) -> None:
    def never(_: Feed) -> str:
        raise AssertionError("nothing departs")

    class Uncopied(Net):
        def __deepcopy__(self, _: Any) -> Net:
            raise AssertionError("the answers are equal: no other precision is asked")

    found = compare("net", "torch", given(by_onnx(exported), by_torch(net)), probes(), never, source=Uncopied())
    assert (found.holds, found.inputs, found.shapes, found.departs_at) == (True, 5, 4, None)


def test_outputs_are_the_model_s_own(net: Net, exported: Path) -> None:
    for answer in (by_torch(net), by_onnx(exported)):
        with torch.inference_mode():
            expected = net(torch.from_numpy(TWO_BY_FIVE["ids"]))[0].numpy()
        np.testing.assert_allclose(answer(TWO_BY_FIVE), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("weight", "module"), [("[50, 8]", "table"), ("[8, 8]", "first"), ("[8, 4]", "second")])
def test_the_first_module_that_departs(net: Net, exported: Path, tmp_path: Path, weight: str, module: str) -> None:
    model = spoiled(exported, weight, tmp_path / "spoiled.onnx")
    feed: Feed = {"ids": np.array([[49, 3]])}
    assert first_module(net, exported, feed, equal_floats) is None
    assert first_module(net, model, feed, equal_floats) == module


@pytest.mark.parametrize(("weight", "operator"), [("[50, 8]", "Gather"), ("[8, 8]", "MatMul"), ("[8, 4]", "MatMul")])
def test_the_first_node_that_departs(exported: Path, tmp_path: Path, weight: str, operator: str) -> None:
    model = spoiled(exported, weight, tmp_path / "spoiled.onnx")
    feed: Feed = {"ids": np.array([[49, 3]])}
    assert first_node(exported, exported, feed, equal_floats) is None
    found = first_node(model, exported, feed, equal_floats)
    assert found is not None
    assert found.startswith(operator)
    departing = next(node for node in onnx.load(model).graph.node if found == f"{node.op_type} {node.name}")
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load(model).graph.initializer}
    assert any(shapes.get(name) == json.loads(weight) for name in departing.input)


def test_what_departs_is_said_with_the_layer(net: Net, exported: Path, tmp_path: Path) -> None:
    model = spoiled(exported, "[8, 8]", tmp_path / "spoiled.onnx")
    found = compare(
        "net",
        "torch",
        given(by_onnx(model), by_torch(net)),
        probes(),
        lambda feed: first_module(net, model, feed, equal_floats),
        source=net,
    )
    assert (found.holds, found.departs_at) == (False, "first")
    with pytest.raises(ExportError, match=r"net departs from torch: .*; the first layer that departs is first$"):
        require(found)


def rounded(answer: Answer, step: float) -> Answer:
    return lambda feed: (np.round(answer(feed).astype(np.float64) / step) * step).astype(np.float32)


@pytest.mark.parametrize(("step", "holds"), [(0.003, True), (0.02, False)])
def test_rounding_as_coarse_as_the_reference_s_is_permitted(net: Net, exported: Path, step: float, holds: bool) -> None:
    """A reference that is up to 0.0005 from the truth permits four times that."""
    coarse = given(rounded(by_onnx(exported), step), rounded(by_torch(net), 0.001))
    found = compare("net", "torch", coarse, probes(), lambda _: "here", source=net)
    assert found.holds is holds
    assert found.departs_at == (None if holds else "here")
    assert "4 times what rounding does" in found.bound


class Steep(nn.Module):
    """2e4 (a w_1 - b w_2), which is nothing but rounding where both are alike: float32 [batch, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1 / 3, 1 / 3]))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        product = x * self.weights
        return (2e4 * (product[:, :1] - product[:, 1:]),)


@pytest.mark.parametrize(("off_by", "holds"), [(0.002, True), (0.1, False)])
def test_a_reference_that_was_right_by_luck_does_not_forbid_rounding(off_by: float, holds: bool) -> None:
    """The reference is exact; a weight's neighbour moves the answer by 2e4 / 2 ** 25, 0.0006."""
    source = Steep().eval()
    probe = probes_in_shapes([{"x": np.ones((1, 2), np.float32)}])
    exact = answers(by_torch(source), probe)
    assert exact[0] == answers(by_torch_in_float64(source), probe)[0] == 0
    found = compare("a", "b", ([exact[0] + np.float32(off_by)], exact), probe, lambda _: "here", source=source)
    assert found.holds is holds


def test_weights_rounded_anew_are_neighbours(net: Net) -> None:
    before = [weight.clone() for weight in net.parameters()]
    first, same, other = (by_torch_rounded_anew(net, seed)(TWO_BY_FIVE) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    np.testing.assert_allclose(first, by_torch(net)(TWO_BY_FIVE), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(weight, kept) for weight, kept in zip(net.parameters(), before, strict=True))


class Masked(nn.Module):
    """x w + the mask where a switch is on: float32 [batch, 2]. Nothing stands above the largest float."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 1 / 3]))
        self.mask = nn.Parameter(torch.full((64,), torch.finfo(torch.float32).max))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.weight + (0 * self.mask).sum(),)


def test_what_cannot_be_rounded_otherwise_is_left_alone() -> None:
    source, probe = Masked().eval(), probes_in_shapes([{"x": np.ones((1, 2), np.float32)}])
    for seed in range(4):
        (found,) = by_torch_rounded_anew(source, seed)({"x": np.ones((1, 2), np.float32)})
        assert found[0] == 0
        np.testing.assert_allclose(found[1], 1 / 3, rtol=1e-6)
    expected = answers(by_torch(source), probe)
    found = compare("a", "b", ([expected[0] * np.float32(0.3)], expected), probe, lambda _: "here", source=source)
    assert not found.holds
