"""The training loop, on a linear student: where it stops does not change where it ends."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from tensorboardX.proto import event_pb2
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    ViTConfig,
    ViTModel,
)

from compressor.artifacts import TrainingHistory
from compressor.distill import SignalReader, TrainingData, Workplace, train, write_outputs
from compressor.distill.learner import still
from compressor.errors import TrainingError
from compressor.preprocess import Feed
from compressor.progress import SILENT, Bar, Progress
from compressor.recipe_distill import ClassDistillation
from compressor.store import CHECKPOINT

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

    views, loss = 1, None

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
    def bar(self, title: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:  # noqa: ARG002
        progress = self

        class Pressing:
            at = done

            def advance(self, amount: int = 1, note: str = "") -> None:  # noqa: ARG002
                self.at += amount
                if self.at == progress.step:
                    os.kill(os.getpid(), signal.SIGINT)

        yield Pressing()


def made() -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Examples, and what the teacher says of each."""
    draws = np.random.default_rng(0)
    examples = list(draws.standard_normal((ROWS + HELD_OUT, 6)).astype(np.float32))
    return examples, (np.stack(examples) @ draws.standard_normal((6, CLASSES))).astype(np.float32)


def data(folder: Path) -> TrainingData:
    examples, outputs = made()
    signals = SignalReader(write_outputs(outputs, folder, 0.0))
    return TrainingData(examples, signals, outputs.argmax(axis=1).astype(np.int64), HELD_OUT)


def learn(
    folder: Path,
    progress: Progress = SILENT,
    events: Path | None = None,
    *,
    task: Plain | None = None,
    module: Linear | None = None,
    **changes: Any,
) -> tuple[Linear, TrainingHistory]:
    folder.mkdir(exist_ok=True)
    module, plain = module or Linear(), task or Plain()
    values = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.05, **changes}
    history = train(
        module, plain, plain, data(folder), ClassDistillation(**values), Workplace(folder, progress, events)
    )  # type: ignore[arg-type]
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
    examples, outputs = made()
    held = torch.from_numpy(np.stack(examples[ROWS:]))
    with torch.no_grad():
        log_student = module(held)[0].double().log_softmax(-1)
    teacher = torch.from_numpy(outputs[ROWS:]).double().log_softmax(-1)
    divergence = (teacher.exp() * (teacher - log_student)).sum(-1).mean()
    assert -divergence == pytest.approx(best.score, rel=1e-4)


def test_patience_ends_early(tmp_path: Path) -> None:
    """With a learning rate that changes nothing the first score stays the best."""
    _, history = learn(tmp_path, epochs=9, learning_rate=1e-30, patience=2)
    assert [point.epoch for point in history.scores] == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step [2-8]: lower distill\.learning_rate"):
        learn(tmp_path, learning_rate=1e30, warmup=0.0)


class Own(Plain):
    """Whose loss is the user's own: as large as the answers squared, so that huge weights make it infinite."""

    @staticmethod
    def loss(student: Tensor, teacher: Tensor, _labels: Any) -> Tensor:  # type: ignore[override]
        return (student - teacher).square().mean()


def test_huge_weights_are_no_good_checkpoint(tmp_path: Path) -> None:
    """One step an epoch: the loss before it is finite, what it leaves is not. Also when the run is tried again."""
    for epochs in (1, 2):
        folder = tmp_path / str(epochs)
        for _ in range(2):
            with pytest.raises(TrainingError, match=r"held-out score is -inf after step 1: lower .* \(now 1e\+30\)$"):
                learn(folder, task=Own(), epochs=epochs, batch_size=ROWS, learning_rate=1e30, warmup=0.0)
        assert not (folder / CHECKPOINT).exists()


def test_a_weight_that_is_not_finite_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A hook spoils a gradient while the loss is finite, and Ctrl-C asks for a checkpoint right after that step."""
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, StopAt(2))
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match="a weight is not finite after step 3: lower"):
        learn(tmp_path, StopAt(3), module=Spoilt())
    assert (tmp_path / CHECKPOINT).read_bytes() == before


class Spoilt(Linear):
    """Whose gradients are infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.bias.register_hook(lambda gradient: gradient * float("inf"))


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    """A mean over the batch is the mean over its parts: the same steps, but for rounding."""
    whole, history = learn(tmp_path / "whole")
    parts, in_parts = learn(tmp_path / "parts", accumulate=2)
    torch.testing.assert_close(parts.layer.weight, whole.layer.weight, rtol=1e-4, atol=1e-5)
    assert [p.loss for p in in_parts.losses] == pytest.approx([p.loss for p in history.losses], rel=1e-4)


def test_a_batch_that_cannot_be_parted_is_refused() -> None:
    for parts in (3, 4):
        with pytest.raises(ValidationError, match=f"divide batch_size, 4, into parts of two or more, got {parts}"):
            ClassDistillation(batch_size=4, accumulate=parts)


def test_half_a_precision_that_a_processor_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="float16 needs a GPU; set bfloat16 or float32"):
        learn(tmp_path, precision="float16")


class Hungry(Linear):
    """Whose memory is exhausted as torch's allocator says it, when so many rows come at once."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if len(x) == self.rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return super().forward(x)


@pytest.mark.parametrize(
    ("batch_size", "rows", "words"),
    [
        (4, 4, "out of memory at a batch of 4; try --set distill.batch_size=2"),
        (8, HELD_OUT, "out of memory at a batch of 8; try --set distill.batch_size=4"),
        (2, 2, "out of memory at a batch of 2; no smaller one can be had"),
    ],
    ids=["in training", "in judging", "at the least"],
)
def test_exhausted_memory_is_one_line(tmp_path: Path, batch_size: int, rows: int, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        learn(tmp_path, module=Hungry(rows), batch_size=batch_size)


@pytest.mark.parametrize("kind", ["bert", "llama", "vit", "modernbert"])
def test_a_still_student_answers_twice_the_same(kind: str) -> None:
    """In training mode, with dropout in every place that the family has one."""
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    rates = {"attention_dropout": 0.5, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    ids = {"input_ids": torch.arange(8)[None] + 4}
    torch.manual_seed(0)
    if kind == "bert":
        module, feed = BertModel(BertConfig(vocab_size=20, **tiny, **rates)), ids
    elif kind == "llama":
        module, feed = LlamaModel(LlamaConfig(vocab_size=20, **tiny, **rates)), ids
    elif kind == "vit":
        module = ViTModel(ViTConfig(image_size=8, patch_size=4, **tiny, **rates))
        feed = {"pixel_values": torch.ones(1, 3, 8, 8)}
    else:
        special = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
        more = {"mlp_dropout": 0.5, "embedding_dropout": 0.5}
        module, feed = ModernBertModel(ModernBertConfig(vocab_size=20, **tiny, **rates, **special, **more)), ids
    module.train()
    assert not torch.equal(module(**feed).last_hidden_state, module(**feed).last_hidden_state)
    still(module)
    assert torch.equal(module(**feed).last_hidden_state, module(**feed).last_hidden_state)


def test_half_precision_learns_nearly_the_same(tmp_path: Path) -> None:
    _, history = learn(tmp_path / "whole", epochs=10)
    _, half = learn(tmp_path / "half", epochs=10, precision="bfloat16")
    assert half.losses[-1].loss == pytest.approx(history.losses[-1].loss, rel=0.2)
    assert half.losses[-1].loss != history.losses[-1].loss


@pytest.mark.parametrize(
    "values",
    [{"temperature": 2.0}, {"cosine_weight": 1.0, "similarity_weight": 1.0, "contrastive_weight": 0.1}],
    ids=["classes", "embeddings"],
)
def test_two_processes_learn_what_one_learns(tmp_path: Path, values: dict[str, Any]) -> None:
    """By torchrun over gloo. The losses of embeddings look at the whole batch, of which each process has a half."""
    asked = {"epochs": 4, "batch_size": BATCH, "learning_rate": 0.05, **values}
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        script = Path(__file__).with_name("training_process.py")
        alone = [sys.executable] if processes == 1 else launch
        done = subprocess.run(
            [*alone, str(script), str(folder), json.dumps(asked)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads((folder / "found.json").read_text()))
    one, two = found
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(two["weight"], one["weight"], rtol=1e-3, atol=1e-5)


def events_in(folder: Path) -> dict[str, dict[int, float]]:
    """By name and step: what the protocol's own reader finds in the event files, the later file's word last."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_sees_every_step(tmp_path: Path) -> None:
    """Also of a training that was interrupted."""
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "run", StopAt(3), tmp_path / "events")
    _, history = learn(tmp_path / "run", events=tmp_path / "events")
    found = events_in(tmp_path / "events")
    assert sorted(found) == ["held_out/score", "train/learning_rate", "train/loss"]
    assert sorted(found["train/loss"]) == list(range(1, STEPS + 1))
    assert found["held_out/score"] == pytest.approx({point.step: point.score for point in history.scores})
    assert found["train/loss"] == pytest.approx({point.step: point.loss for point in history.losses})
