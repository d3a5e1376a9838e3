"""The training loop, on a linear student: where it stops does not change where it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TrainingHistory
from compressor.distill import TrainingData, train
from compressor.errors import TrainingError
from compressor.preprocess import Feed
from compressor.progress import SILENT, Bar, Progress
from compressor.recipe import ClassDistillation

EPOCHS, BATCH, ROWS, HELD_OUT, CLASSES = 2, 4, 18, 4, 3
STEPS = EPOCHS * (ROWS // BATCH)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x),)


class Plain:
    """What the loop asks of a task and of a preprocessor."""

    views = 1

    def view(self, example: NDArray[Any], _index: int) -> NDArray[Any]:
        return example

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        return {"x": np.stack(examples)}


class StopAt(Progress):
    """Presses Ctrl-C when step number `step` has been taken."""

    def __init__(self, step: int) -> None:
        super().__init__(quiet=True)
        self.step = step

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it") -> Iterator[Bar]:  # noqa: ARG002
        progress = self

        class Pressing:
            done = 0

            def advance(self, amount: int = 1, note: str = "") -> None:  # noqa: ARG002
                self.done += amount
                if self.done == progress.step and amount:
                    os.kill(os.getpid(), signal.SIGINT)

        yield Pressing()


def data() -> TrainingData:
    draws = np.random.default_rng(0)
    examples = list(draws.standard_normal((ROWS + HELD_OUT, 6)).astype(np.float32))
    signals = (np.stack(examples) @ draws.standard_normal((6, CLASSES))).astype(np.float32)
    return TrainingData(examples, signals, signals.argmax(axis=1).astype(np.int64), HELD_OUT)


def learn(folder: Path, progress: Progress = SILENT, **changes: Any) -> tuple[Linear, TrainingHistory]:
    folder.mkdir(exist_ok=True)
    module, plain = Linear(), Plain()
    values = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.05, **changes}
    history = train(module, plain, plain, data(), ClassDistillation(**values), folder, progress)  # type: ignore[arg-type]
    return module, history


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_an_interrupted_run_ends_where_the_whole_one_does(tmp_path: Path, step: int) -> None:
    """Every step, the last of an epoch and the very last among them: the held-out scores must not be lost either."""
    whole, history = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", StopAt(step))
    resumed, continued = learn(tmp_path / "cut")
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert (continued.losses, continued.scores) == (history.losses, history.scores)
    assert (continued.steps, continued.best_step) == (STEPS, history.best_step)


def test_the_student_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    _, history = learn(tmp_path, epochs=30)
    assert history.losses[-1].loss < history.losses[0].loss / 2
    assert history.scores[-1].score > history.scores[0].score


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    """The score of what is left must be the best score, computed here again."""
    module, history = learn(tmp_path, epochs=6)
    best = max(history.scores, key=lambda point: point.score)
    assert history.best_step == best.step
    held = torch.from_numpy(np.stack(data().examples[ROWS:]))
    with torch.no_grad():
        log_student = module(held)[0].double().log_softmax(-1)
    teacher = torch.from_numpy(data().signals[ROWS:]).double().log_softmax(-1)
    divergence = (teacher.exp() * (teacher - log_student)).sum(-1).mean()
    assert -divergence == pytest.approx(best.score, rel=1e-4)


def test_patience_ends_early(tmp_path: Path) -> None:
    """With a learning rate that changes nothing the first score stays the best."""
    _, history = learn(tmp_path, epochs=9, learning_rate=1e-30, patience=2)
    assert [point.epoch for point in history.scores] == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step [2-8]: lower distill\.learning_rate"):
        learn(tmp_path, learning_rate=1e30, warmup=0.0)
