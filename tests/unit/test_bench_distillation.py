"""`python -m bench distillation`: its statistics, its loop, what it learns from labels, and its bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench import distillation
from bench._agreement import engine_against_loop
from bench._methods import HARD, OURS, Method
from bench._seeds import difference, over_seeds
from bench._sentence_labels import label_loss, triplet_batches, triplets
from bench._training import Objective, Pupil, by_loop
from compressor.distill import Inputs, SignalReader, TrainingData, answers_at, record_signals, write_outputs
from compressor.preprocess import Feed
from compressor.progress import SILENT
from compressor.recipe_distill import ClassDistillation

ROWS, HELD_OUT, WIDTH, CLASSES = 40, 8, 6, 3
SETTINGS = ClassDistillation(epochs=3, batch_size=4, learning_rate=0.05, hard_weight=0.0, temperature=2.0)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x),)


class Mirrored:
    """A task of two views, the second one negated, and its preprocessor."""

    views, loss, per_token = 2, None, False

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        return -example if index else example

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        return {"x": np.stack(examples)}


@pytest.fixture
def pupil(tmp_path: Path) -> Callable[[], Pupil]:
    draws = np.random.default_rng(0)
    examples = list(draws.normal(size=(ROWS, WIDTH)).astype(np.float32))
    said = draws.normal(size=(2 * ROWS, CLASSES)).astype(np.float32)
    signals = SignalReader(write_outputs(said, tmp_path, 0.0))
    labels = draws.integers(0, CLASSES, ROWS)

    def make() -> Pupil:
        torch.manual_seed(5)
        data = TrainingData(examples, signals, labels, HELD_OUT)
        return Pupil(Linear(), Mirrored(), Mirrored(), data)  # type: ignore[arg-type]

    return make


class Letters(nn.Module):
    """Of each token the logits of CLASSES, from the token and the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(WIDTH, 4), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        read = self.table(x)
        return (self.layer(torch.cat([read, read.roll(1, dims=1)], dim=-1)),)


class Tagged:
    """A task that answers every second token of texts of one length, and its preprocessor."""

    views, loss, per_token = 1, None, True

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        assert index == 0
        return example

    def positions(self, example: NDArray[Any]) -> NDArray[np.int64]:
        return np.arange(0, len(example), 2)

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        return {"x": np.stack(examples)}


@pytest.fixture
def tagger(tmp_path: Path) -> Callable[[], Pupil]:
    draws, task = np.random.default_rng(0), Tagged()
    examples = list(draws.integers(0, WIDTH, (ROWS, 5)))
    said = torch.from_numpy(draws.normal(size=(WIDTH, CLASSES)).astype(np.float32))
    ask = answers_at(lambda batch: said[torch.from_numpy(np.stack(batch))], task.positions, SETTINGS, None)
    signals = SignalReader(record_signals(ask, Inputs(examples, 1, task.view), tmp_path, SILENT, 8))
    labels, positions = list(draws.integers(0, CLASSES, (ROWS, 3))), [task.positions(one) for one in examples]

    def make() -> Pupil:
        torch.manual_seed(5)
        data = TrainingData(examples, signals, labels, HELD_OUT, positions)
        return Pupil(Letters(), task, task, data)  # type: ignore[arg-type]

    return make


def divergence(student: Tensor, teacher: Tensor, _: Tensor | None, temperature: float = 2.0) -> Tensor:
    p = (teacher / temperature).softmax(-1)
    terms = p * (p.log() - (student / temperature).log_softmax(-1))
    return temperature**2 * terms.sum(-1).mean()


def test_the_loop_ends_where_the_engine_ends(pupil: Callable[[], Pupil]) -> None:
    losses, answers = engine_against_loop(pupil, SETTINGS, divergence)
    assert losses < 1e-5
    assert answers < 1e-4


@pytest.mark.parametrize("hard_weight", [0.0, 1.0])
def test_the_loop_ends_where_the_engine_ends_of_tokens(tagger: Callable[[], Pupil], hard_weight: float) -> None:
    settings = SETTINGS.model_copy(update={"hard_weight": hard_weight})
    losses, answers = engine_against_loop(
        tagger, settings, divergence if hard_weight == 0 else lambda s, _, y: nn.functional.cross_entropy(s, y)
    )
    assert losses < 1e-5
    assert answers < 1e-4


def test_another_loss_is_seen(pupil: Callable[[], Pupil]) -> None:
    losses, answers = engine_against_loop(pupil, SETTINGS, lambda s, t, y: divergence(s, t, y, temperature=8.0))
    assert losses > 1e-2
    assert answers > 1e-2


def test_the_loop_keeps_the_epoch_that_is_best_on_held_out_rows(pupil: Callable[[], Pupil]) -> None:
    one = pupil()
    weight = one.module.layer.weight
    assert isinstance(weight, Tensor)
    judged: list[Tensor] = []

    def loss(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if len(student) == HELD_OUT:  # twice a batch
            judged.append(weight.detach().clone())
            return torch.tensor([2.0, 1.0, 3.0][len(judged) - 1])
        return divergence(student, teacher, labels)

    curve = by_loop(one, SETTINGS, Objective(loss))
    assert len(curve) == SETTINGS.epochs * (ROWS - HELD_OUT) // SETTINGS.batch_size
    assert len(judged) == SETTINGS.epochs
    assert torch.equal(weight, judged[1])
    assert not torch.equal(weight, judged[2])


def test_batches_of_its_own_are_what_it_trains_on(pupil: Callable[[], Pupil]) -> None:
    seen: list[int] = []

    def loss(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        seen.extend(labels.tolist())
        return divergence(student, teacher, labels)

    chosen = [np.array([3, 1, 2]), np.array([0, 7, 5])]
    one = pupil()
    by_loop(one, SETTINGS.model_copy(update={"epochs": 1}), Objective(loss, lambda _: chosen))
    assert one.data.labels is not None
    assert seen == one.data.labels[[3, 1, 2, 0, 7, 5]].tolist()


def test_the_interval_of_three_seeds() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    half = 4.302653 / 3**0.5  # t(0.975, 2) of the tables, and a standard deviation of 1
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-6)
    assert not found.above(0.0)
    assert found.above(-1.0)
    assert found.reaches(4.0)
    assert not found.reaches(5.0)


def test_a_single_seed_has_no_interval() -> None:
    found = over_seeds([0.5])
    assert (found.mean, found.low, found.high) == (0.5, None, None)
    assert not found.above(0.0)
    assert found.reaches(0.5)
    assert not found.reaches(0.6)


def test_a_difference_is_that_of_equal_seeds() -> None:
    found = difference([0.9, 0.5, 0.7], [0.8, 0.4, 0.6])  # far apart among seeds, always 0.1 better
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_triplets_are_of_one_premise() -> None:
    pairs = [("a", "b", "yes"), ("a", "c", "no"), ("a", "d", "maybe"), ("e", "f", "yes"), ("a", "x", "no")]
    rows = {name: number for number, name in enumerate("abcdef")}  # x is held out
    assert triplets(pairs, rows, "yes", "no").tolist() == [[0, 1, 2]]
    assert triplets(pairs[3:], rows, "yes", "no").shape == (0, 3)


def test_batches_of_triplets_show_all_before_any_twice() -> None:
    rows = np.arange(15).reshape(5, 3)
    batches = triplet_batches(rows, 8, 5, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [6] * 5
    premises = [row for batch in batches for row in batch[:2]]
    assert sorted(premises[:5]) == sorted(premises[5:]) == [0, 3, 6, 9, 12]
    assert all((batch.reshape(3, 2).T % 3 == [0, 1, 2]).all() for batch in batches)


def test_the_loss_of_labels_by_hand() -> None:
    angles = np.array([0.0, 1.0, 0.2, 1.3, 2.0, 0.1])  # two premises, two entailed, two contradicting
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    scores = np.exp(np.cos(angles[:2, None] - angles[None, 2:]) / 0.05)
    wanted = -np.log(scores[[0, 1], [0, 1]] / scores.sum(1)).mean()
    found = label_loss(torch.from_numpy(vectors), torch.empty(0), None)
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_bars() -> None:
    ways = [
        Method(name, {}, lambda _: nn.Identity(), peer=name in ("near", "far")) for name in (HARD, OURS, "near", "far")
    ]
    scores = {HARD: [0.5, 0.6, 0.7], OURS: [0.6, 0.7, 0.81], "near": [0.61, 0.7, 0.8], "far": [0.4, 0.4, 0.4]}
    bars, beyond = distillation._bars("made", ways, scores)
    assert beyond
    assert bars["made_ours_over_hard_labels"]["holds"]
    assert bars["made_ours_over_best_peer"]["peer"] == "near"
    assert bars["made_ours_over_best_peer"]["holds"]

    scores["near"] = [0.7, 0.8, 0.91]  # always better by the same
    bars, _ = distillation._bars("made", ways, scores)
    assert not bars["made_ours_over_best_peer"]["holds"]
