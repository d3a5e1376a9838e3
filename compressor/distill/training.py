"""The training loop: the student learns from recorded teacher outputs; the best checkpoint on held-out data is kept."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import LossPoint, ScorePoint, TrainingHistory
from compressor.distill.batches import epoch_batches, epoch_views
from compressor.distill.checkpoint import load_checkpoint, save_checkpoint
from compressor.distill.interrupt import deferred_interrupt
from compressor.distill.losses import label_agreement, loss_for, teacher_agreement
from compressor.distill.signals import outputs_of
from compressor.errors import TrainingError
from compressor.kernels import selected_implementation
from compressor.preprocess import Preprocessor, by_length
from compressor.progress import Bar, Progress
from compressor.recipe import ClassDistillation, Distillation
from compressor.tasks import Task

_CHECKPOINT_EVERY_S = 20.0
_LOSS_POINTS = 200


@dataclass(frozen=True)
class TrainingData:
    """Encoded training examples, the last `holdout` of them held out; teacher outputs float32 [views * rows, width]."""

    examples: list[NDArray[Any]]
    signals: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    holdout: int

    @property
    def rows(self) -> int:
        """Examples to train on."""
        return len(self.examples) - self.holdout


@dataclass
class _Progress:
    """What a checkpoint remembers beside weights and optimiser."""

    step: int = 0
    losses: list[list[float]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    best_score: float = -math.inf
    best_step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Full batches of an epoch."""
    return len(epoch_batches(np.zeros(rows, dtype=np.int64), batch_size, 0, 0))


class _Training:
    """One run of the loop over one student. Lives only inside `train`."""

    def __init__(
        self, module: nn.Module, task: Task, preprocessor: Preprocessor, data: TrainingData, settings: Distillation
    ) -> None:
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # the targets are exact: noise on the student's side only slows it down
        self.task, self.preprocessor, self.data, self.settings = task, preprocessor, data, settings
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.raw = module
        self.loss = loss_for(settings)
        self.lengths = np.array([len(example) for example in data.examples[: data.rows]], dtype=np.int64)
        self.per_epoch = len(epoch_batches(self.lengths, settings.batch_size, settings.seed, 0))
        self.total = self.per_epoch * settings.epochs
        self.at = _Progress()
        self.best: dict[str, Tensor] = {}

    def run(self, checkpoint: Path, progress: Progress) -> None:
        self._resume(checkpoint, progress)
        saved = time.monotonic()
        with progress.bar("distil", self.total, "step") as bar, deferred_interrupt() as interruption:
            bar.advance(self.at.step)
            while self.at.step < self.total and not self._out_of_patience():
                started = time.monotonic()
                epoch = self.at.step // self.per_epoch
                batches = epoch_batches(self.lengths, self.settings.batch_size, self.settings.seed, epoch)
                views = epoch_views(self.data.rows, self.task.views, self.settings.seed, epoch)
                for batch in batches[self.at.step % self.per_epoch :]:
                    with _memory_for(len(batch)):
                        self._step(batch, views[batch], bar)
                    if self.at.step % self.per_epoch == 0:
                        break  # judged before it is saved: a checkpoint between the two would lose the score
                    now = time.monotonic()
                    if interruption.requested or now - saved > _CHECKPOINT_EVERY_S:
                        self.at.seconds, started, saved = self.at.seconds + now - started, now, now
                        self._save(checkpoint)
                    if interruption.requested:
                        raise KeyboardInterrupt
                self._end_epoch(epoch + 1, progress)
                self.at.seconds += time.monotonic() - started
                self._save(checkpoint)
                if interruption.requested:
                    raise KeyboardInterrupt

    def _step(self, batch: NDArray[np.int64], views: NDArray[np.int64], bar: Bar) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * _schedule(self.at.step, self.total, self.settings.warmup)
        self.module.train()
        student = self._outputs(batch, views)
        teacher = torch.from_numpy(self.data.signals[views * len(self.data.examples) + batch]).to(student.device)
        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels[batch]).to(student.device)
        loss = self.loss(student, teacher, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            kept = "; the last good checkpoint is kept" if self.at.scores else ""  # there is one after each epoch
            raise TrainingError(
                f"the loss is {value} at step {self.at.step + 1}: lower distill.learning_rate"
                f" (now {self.settings.learning_rate}){kept}"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.at.step += 1
        self.at.loss_sum, self.at.loss_count = self.at.loss_sum + value, self.at.loss_count + 1
        if self.at.step % max(1, self.total // _LOSS_POINTS) == 0:
            self.at.losses.append([self.at.step, self.at.loss_sum / self.at.loss_count])
            self.at.loss_sum, self.at.loss_count = 0.0, 0
        bar.advance(note=f"loss {value:.4f}")

    def _outputs(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        shown = [self.task.view(self.data.examples[i], int(view)) for i, view in zip(rows, views, strict=True)]
        return outputs_of(self.module, self.preprocessor.collate(shown))

    def _end_epoch(self, epoch: int, progress: Progress) -> None:
        score = self._held_out_score()
        self.at.scores.append([self.at.step, epoch, score])
        if score > self.at.best_score:
            self.at.best_score, self.at.best_step = score, self.at.step
            self.best = copy.deepcopy(self.raw.state_dict())
        progress.log(f"  epoch {epoch} of {self.settings.epochs}: held-out score {score:.4f}")

    def _held_out_score(self) -> float:
        first = self.data.rows
        held = self.data.examples[first:]
        outputs: list[Tensor] = [torch.empty(0)] * len(held)
        self.module.eval()
        with torch.inference_mode():
            for batch in by_length([len(example) for example in held], 64):
                rows = self._outputs(batch + first, np.zeros(len(batch), dtype=np.int64)).cpu()
                for i, row in zip(batch, rows, strict=True):
                    outputs[i] = row
        student = torch.stack(outputs)
        if isinstance(self.settings, ClassDistillation) and self.settings.hard_weight == 1.0:
            assert self.data.labels is not None
            return label_agreement(student, torch.from_numpy(self.data.labels[first:]))
        teacher = torch.from_numpy(np.array(self.data.signals[first : len(self.data.examples)]))
        return teacher_agreement(student, teacher, self.settings)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return (
            patience is not None
            and self.at.step - self.at.best_step >= patience * self.per_epoch > 0
            and bool(self.at.scores)
        )

    def _save(self, path: Path) -> None:
        save_checkpoint(
            path,
            {
                "module": self.raw.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "best": self.best,
                "at": asdict(self.at),
            },
        )

    def _resume(self, path: Path, progress: Progress) -> None:
        state = load_checkpoint(path)
        if state is None:
            return
        self.raw.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.best = state["best"]
        self.at = _Progress(**state["at"])
        progress.log(f"  continues at step {self.at.step} of {self.total}")


def train(
    module: nn.Module,
    task: Task,
    preprocessor: Preprocessor,
    data: TrainingData,
    settings: Distillation,
    folder: Path,
    progress: Progress,
) -> TrainingHistory:
    """Trains the deployable `module` in place and leaves it with the weights that scored best on held-out data.

    AdamW with a linear warm-up and a linear decay to zero. A checkpoint in `folder` is replaced every few seconds;
    where one exists, training continues from it. Raises TrainingError when the loss is not finite or memory runs out.
    """
    torch.manual_seed(settings.seed)
    run = _Training(module, task, preprocessor, data, settings)
    run.run(folder / "checkpoint.pt", progress)
    module.load_state_dict(run.best)
    kernel = (
        selected_implementation(next(module.parameters()).new_zeros(1, 2))  # where and in what its logits are
        if isinstance(settings, ClassDistillation)
        else "torch (embedding loss)"
    )
    module.cpu().eval()
    return TrainingHistory(
        steps=run.at.step,
        seconds=round(run.at.seconds, 3),
        best_step=run.at.best_step,
        loss_kernel=kernel,
        losses=tuple(LossPoint(int(step), loss) for step, loss in run.at.losses),
        scores=tuple(ScorePoint(int(step), int(epoch), score) for step, epoch, score in run.at.scores),
    )


@contextmanager
def _memory_for(batch_size: int) -> Iterator[None]:
    """Turns an exhausted memory into the batch size to try. On the CPU torch raises a plain RuntimeError for it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(
            words in str(error) for words in ("can't allocate memory", "out of memory")
        ):
            raise
        raise TrainingError(
            f"out of memory at a batch of {batch_size}; try --set distill.batch_size={max(2, batch_size // 2)}"
        ) from None


def _schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then linear decay to zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (total - step) / max(1, total - rising))
