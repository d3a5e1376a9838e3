"""The training loop: the student learns from recorded teacher outputs; the best checkpoint on held-out data is kept."""

from __future__ import annotations

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import LossPoint, ScorePoint, TrainingHistory
from compressor.distill.batches import epoch_batches, epoch_views, learning_rate_share
from compressor.distill.checkpoint import load_checkpoint, random_states, save_checkpoint, set_random_states
from compressor.distill.interrupt import Interruption, deferred_interrupt
from compressor.distill.learner import Learner, still
from compressor.distill.lessons import Lessons
from compressor.distill.memory import memory_for
from compressor.distill.tracking import Tracking, tracking
from compressor.distill.training_inputs import TrainingData, Workplace
from compressor.errors import TrainingError
from compressor.kernels import selected_implementation
from compressor.preprocess import Preprocessor
from compressor.progress import Bar, Progress
from compressor.recipe_distill import AnswerDistillation, ClassDistillation, Distillation
from compressor.tasks import Task

_CHECKPOINT_EVERY_S = 20.0
_LOSS_POINTS = 200
_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


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


class _Training:
    """One run of the loop over one student. Lives only inside `train`."""

    def __init__(
        self, module: nn.Module, task: Task, preprocessor: Preprocessor, data: TrainingData, settings: Distillation
    ) -> None:
        self.task, self.preprocessor, self.data, self.settings = task, preprocessor, data, settings
        self.accelerator = _accelerator(settings)
        self._check_split()
        still(module)
        widths = {pair: data.signals.tap_width(pair.teacher) for pair in data.signals.taps}
        feed = preprocessor.collate(data.examples[:1])
        self.student, self.learner = module, Learner(module, data.signals.width, widths, feed)
        optimizer = torch.optim.AdamW(
            self.learner.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(self.learner, optimizer)
        self.lessons = Lessons(task, preprocessor, data, settings, self.learner, self.wrapped)
        self.lengths = np.array([len(example) for example in data.examples[: data.rows]], dtype=np.int64)
        self.per_epoch = len(epoch_batches(self.lengths, settings.batch_size, settings.seed, 0))
        self.total = self.per_epoch * settings.epochs
        self.at = _Progress()
        self.best: dict[str, Tensor] = {}
        self.tracking = Tracking()

    def _check_split(self) -> None:
        parts = self.accelerator.num_processes * self.settings.accumulate
        if self.settings.batch_size % parts or self.settings.batch_size // parts < 2:
            raise TrainingError(
                f"distill.batch_size: expected {parts} equal parts ({self.accelerator.num_processes} processes times"
                f" accumulate {self.settings.accumulate}) of two examples or more, got {self.settings.batch_size}"
            )

    def run(self, place: Workplace) -> None:
        """From the last checkpoint, where there is one, to the end, or to the epoch that patience ends with."""
        checkpoint, progress = place.checkpoint, place.progress
        self._resume(checkpoint, progress)
        tracked = tracking(place if self.accelerator.is_main_process else None, self.at.step + 1)
        bars = progress.bar("distil", self.total, "step", done=self.at.step)
        saved = time.monotonic()
        with tracked as self.tracking, bars as bar, deferred_interrupt() as interruption:
            while self.at.step < self.total and not self._out_of_patience():
                started = time.monotonic()
                epoch = self.at.step // self.per_epoch
                batches = epoch_batches(self.lengths, self.settings.batch_size, self.settings.seed, epoch)
                views = epoch_views(self.data.rows, self.task.views, self.settings.seed, epoch)
                for batch in batches[self.at.step % self.per_epoch :]:
                    stop = self._step(batch, views[batch], bar, interruption)
                    if self.at.step % self.per_epoch == 0:
                        break  # judged before it is saved: a checkpoint between the two would lose the score
                    now = time.monotonic()
                    if stop or now - saved > _CHECKPOINT_EVERY_S:
                        self.at.seconds, started, saved = self.at.seconds + now - started, now, now
                        self._save(checkpoint)
                    if stop:
                        raise KeyboardInterrupt
                self._end_epoch(epoch + 1, progress)
                self.at.seconds += time.monotonic() - started
                self._save(checkpoint)
                if stop:
                    raise KeyboardInterrupt

    def _step(self, batch: NDArray[np.int64], views: NDArray[np.int64], bar: Bar, interruption: Interruption) -> bool:
        """One step over this process's share of the batch. Whether any process was asked to stop."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_share(
                self.at.step, self.total, self.settings.warmup
            )
        self.wrapped.train()
        self.optimizer.zero_grad()
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        parts = self.settings.accumulate
        total = 0.0
        for part in range(parts):
            rows, shown = batch[mine][part::parts], views[mine][part::parts]
            with memory_for(len(batch)), self._synchronised(part == parts - 1):
                # Of a mean over answers each part has its share, also where it has more of them than others.
                share = self.data.answered(rows) * self.accelerator.num_processes / max(1, self.data.answered(batch))
                loss = self.lessons.loss(rows, shown, self.at.step, self.total) * share
                total += float(loss.detach())
                self.accelerator.backward(loss)  # also of a loss that is not finite: other processes wait for it
        value, stop = self._agreed(total, interruption.requested)
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value} at step {self.at.step + 1}")
        with memory_for(len(batch)):  # the first step makes the optimiser's state
            self.optimizer.step()
        self._count(value)
        self.tracking.scalars(
            self.at.step, train__loss=value, train__learning_rate=self.optimizer.param_groups[0]["lr"]
        )
        bar.advance(note=f"loss {value:.4f}")
        return stop or (self.accelerator.num_processes == 1 and interruption.requested)

    def _synchronised(self, last: bool) -> Any:
        """Gradients are exchanged with the last part of a batch only."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def _agreed(self, loss: float, stop: bool) -> tuple[float, bool]:
        """The mean loss of all processes, and whether any is to stop: they must leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return loss, stop
        both = torch.tensor([loss, float(stop)], device=self.accelerator.device, dtype=torch.float64)
        mean_loss, any_stop = self.accelerator.reduce(both, reduction="sum").tolist()
        return mean_loss / self.accelerator.num_processes, any_stop > 0

    def _count(self, loss: float) -> None:
        self.at.step += 1
        self.at.loss_sum, self.at.loss_count = self.at.loss_sum + loss, self.at.loss_count + 1
        if self.at.step % max(1, self.total // _LOSS_POINTS) == 0:
            self.at.losses.append([self.at.step, self.at.loss_sum / self.at.loss_count])
            self.at.loss_sum, self.at.loss_count = 0.0, 0

    def _end_epoch(self, epoch: int, progress: Progress) -> None:
        score = self._held_out_score()
        if not math.isfinite(score):
            raise self._diverged(f"the held-out score is {score} after step {self.at.step}")
        self.at.scores.append([self.at.step, epoch, score])
        self.tracking.scalars(self.at.step, held_out__score=score)
        if score > self.at.best_score:
            self.at.best_score, self.at.best_step = score, self.at.step
            self.best = copy.deepcopy(self.student.state_dict())
        progress.log(f"  epoch {epoch} of {self.settings.epochs}: held-out score {score:.4f}")

    def _held_out_score(self) -> float:
        """Every process computes it, and all believe the first: they must agree on which weights are the best."""
        self.learner.eval()
        with memory_for(self.settings.batch_size):
            score = self.lessons.held_out_score()
        if self.accelerator.num_processes > 1:
            shared = torch.tensor(score, device=self.accelerator.device, dtype=torch.float64)
            torch.distributed.broadcast(shared, 0)
            score = float(shared)
        return score

    def _diverged(self, what: str) -> TrainingError:
        kept = "; the last good checkpoint is kept" if self.at.scores else ""  # there is one after each epoch
        return TrainingError(f"{what}: lower distill.learning_rate (now {self.settings.learning_rate}){kept}")

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return (
            patience is not None
            and self.at.step - self.at.best_step >= patience * self.per_epoch > 0
            and bool(self.at.scores)
        )

    def _save(self, path: Path) -> None:
        """Of weights that a run can go on from. Raises TrainingError for others, and leaves the last checkpoint."""
        if not self.accelerator.is_main_process:
            return
        if not all(bool(weight.isfinite().all()) for weight in self.learner.parameters()):
            raise self._diverged(f"a weight is not finite after step {self.at.step}")
        scaler = self.accelerator.scaler
        save_checkpoint(
            path,
            {
                "learner": self.learner.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random": random_states(),
                "best": self.best,
                "at": asdict(self.at),
            },
        )
        self.tracking.flush()

    def _resume(self, path: Path, progress: Progress) -> None:
        state = load_checkpoint(path)
        if state is None:
            return
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        set_random_states(state["random"])
        self.best = state["best"]
        self.at = _Progress(**state["at"])
        progress.log(f"  continues at step {self.at.step} of {self.total}")


def train(
    module: nn.Module,
    task: Task,
    preprocessor: Preprocessor,
    data: TrainingData,
    settings: Distillation,
    place: Workplace,
) -> TrainingHistory:
    """Trains the deployable `module` in place and leaves it with the weights that scored best on held-out data.

    AdamW with a linear warm-up and a linear decay to zero. A checkpoint is replaced every few seconds; where one
    exists, training continues from it. Called in every process of a distributed run, with the same arguments,
    each takes its share of every batch. Raises TrainingError when the loss, a weight or the held-out score is not
    finite, or memory runs out.
    """
    torch.manual_seed(settings.seed)
    run = _Training(module, task, preprocessor, data, settings)
    try:
        run.run(place)
    finally:
        run.learner.close()
    module.load_state_dict(run.best)
    kernel = (
        selected_implementation(next(module.parameters()).new_zeros(1, 2))  # where and in what its logits are
        if isinstance(settings, ClassDistillation | AnswerDistillation)
        else "torch"
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


def check_precision(settings: Distillation) -> None:
    """Raises TrainingError for half a precision that this machine has no arithmetic for: it would train in float32."""
    if settings.precision == "float16" and not torch.cuda.is_available():
        raise TrainingError("distill.precision: float16 needs a GPU; set bfloat16 or float32")


def _accelerator(settings: Distillation) -> Accelerator:
    # A transformer may have parts, such as a pooler, that no loss reaches.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    on_cpu = not torch.cuda.is_available()
    check_precision(settings)
    AcceleratorState._reset_state()  # or a second training in this process could not have another precision
    return Accelerator(cpu=on_cpu, mixed_precision=_MIXED[settings.precision], kwargs_handlers=[unused])
