"""One way to a distillation loss and its gradients, alone in a process: `python -m bench._scaling_paths PATH SHAPE`.

For each line that it reads it makes a step and prints one JSON line: of the first, the memory that it took, of the
others, the time. Five of these take turns in `distill_scaling`.
"""

from __future__ import annotations

import ctypes
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import BenchmarkError
from compressor.kernels import LinearLayer, LossSettings, SparseTeacher, distillation_loss, linear_distillation_loss
from compressor.kernels.reference import distillation_rows
from compressor.kernels.settings import LossInputs

TEACHER_HIDDEN, TOP_K = 576, 64  # as wide as SmolLM-135M
TEMPERATURE, HARD_WEIGHT = 2.0, 0.5
SETTINGS = LossSettings(temperature=TEMPERATURE, hard_weight=HARD_WEIGHT)
CHECKED_ROWS = 136  # more than one chunk
LOSS_BUDGET, GRADIENT_BUDGET = 1e-5, 1e-5  # relative; of the largest gradient


@dataclass(frozen=True)
class Shape:
    """What the memory may grow with. `rows`: batch times sequence."""

    vocabulary: int
    rows: int
    hidden: int


@dataclass(frozen=True)
class Operands:
    """What is there before a step: the student's and the teacher's last layer, labels, or the teacher's top classes.

    hidden [N, H] and weight [V, H] want gradients; labels [N].
    """

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    teacher: LinearLayer | SparseTeacher

    def to_float64(self) -> Operands:
        """The same numbers, exactly."""
        known = self.teacher
        teacher: LinearLayer | SparseTeacher = (
            SparseTeacher(known.indices, known.values.double(), known.mode)
            if isinstance(known, SparseTeacher)
            else LinearLayer(known.hidden.double(), known.weight.double())
        )
        hidden, weight = (t.detach().double().requires_grad_() for t in (self.hidden, self.weight))
        return Operands(hidden, weight, self.labels, teacher)


Loss = Callable[[Operands], Tensor]


def made(shape: Shape, sparse: bool) -> Operands:
    """Seeded; logits have a standard deviation of 3. Made in place, so that nothing else is left in memory."""
    generator = torch.Generator().manual_seed(0)

    def normal(height: int, width: int, deviation: float) -> Tensor:
        return torch.empty(height, width).normal_(0, deviation, generator=generator)

    rows, vocabulary = shape.rows, shape.vocabulary
    hidden = normal(rows, shape.hidden, 1.0).requires_grad_()
    weight = normal(vocabulary, shape.hidden, 3 / math.sqrt(shape.hidden)).requires_grad_()
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    if not sparse:
        theirs = normal(vocabulary, TEACHER_HIDDEN, 3 / math.sqrt(TEACHER_HIDDEN))
        return Operands(hidden, weight, labels, LinearLayer(normal(rows, TEACHER_HIDDEN, 1.0), theirs))
    # Distinct within a row: equal distances from a random class. They hold nine tenths of the teacher's mass.
    first = torch.randint(vocabulary, (rows, 1), generator=generator)
    indices = (first + torch.arange(TOP_K) * (vocabulary // TOP_K)) % vocabulary
    values = F.log_softmax(normal(rows, TOP_K, 3 / TEMPERATURE), dim=-1) + math.log(0.9)
    return Operands(hidden, weight, labels, SparseTeacher(indices, values, "ghost"))


def _teacher_logits(at: Operands) -> Tensor:
    assert isinstance(at.teacher, LinearLayer)
    return F.linear(at.teacher.hidden, at.teacher.weight)


def _torch_dense(at: Operands) -> Tensor:
    """What a user writes."""
    student = F.linear(at.hidden, at.weight)
    log_q = F.log_softmax(student / TEMPERATURE, dim=-1)
    log_p = F.log_softmax(_teacher_logits(at) / TEMPERATURE, dim=-1)
    soft = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - HARD_WEIGHT) * soft + HARD_WEIGHT * F.cross_entropy(student, at.labels)


def _dense(at: Operands) -> Tensor:
    teacher = at.teacher if isinstance(at.teacher, SparseTeacher) else _teacher_logits(at)
    student = F.linear(at.hidden, at.weight)
    return distillation_loss(student, teacher, at.labels, temperature=TEMPERATURE, hard_weight=HARD_WEIGHT)


def _linear(at: Operands) -> Tensor:
    loss: Tensor = linear_distillation_loss(at.hidden, at.weight, at.teacher, at.labels, settings=SETTINGS)
    return loss


def _reference(at: Operands) -> Tensor:
    teacher = at.teacher if isinstance(at.teacher, SparseTeacher) else _teacher_logits(at)
    return distillation_rows(LossInputs(F.linear(at.hidden, at.weight), teacher, at.labels), SETTINGS).mean()


@dataclass(frozen=True)
class Way:
    """A loss, and whether the teacher is known at its top classes alone."""

    loss: Loss
    sparse: bool


WAYS = {
    "torch dense": Way(_torch_dense, False),
    "dense": Way(_dense, False),
    "linear": Way(_linear, False),
    "dense top-k": Way(_dense, True),
    "linear top-k": Way(_linear, True),
}


def step(loss: Loss, at: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and backward: the loss, and the gradients of hidden states and weight."""
    value = loss(at)
    hidden, weight = torch.autograd.grad(value, (at.hidden, at.weight))
    return value.detach(), hidden, weight


def check(way: Way, vocabulary: int, hidden: int) -> tuple[float, float]:
    """The errors against float64 at this width: of the loss, relative; of the gradients, relative to their largest.

    Raises BenchmarkError when one is above its budget.
    """
    at = made(Shape(vocabulary, CHECKED_ROWS, hidden), way.sparse)
    exact = step(_reference, at.to_float64())
    found = step(way.loss, at)
    loss_error = float((found[0] - exact[0]).abs() / exact[0])
    gradient_error = max(
        float((mine - true).abs().max() / true.abs().max()) for mine, true in zip(found[1:], exact[1:], strict=True)
    )
    if not (loss_error <= LOSS_BUDGET and gradient_error <= GRADIENT_BUDGET):
        raise BenchmarkError(
            f"loss and gradients must agree with float64 within {LOSS_BUDGET:g} and {GRADIENT_BUDGET:g}, got"
            f" {loss_error:.1e} and {gradient_error:.1e}; run the tests"
        )
    return loss_error, gradient_error


def memory_mib(name: str) -> float:
    """VmRSS (resident now) or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


def level_mib() -> float:
    """What is resident now; the peak starts anew from it. Raises BenchmarkError where the system cannot do that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # or memory that the C library keeps would be used again unseen
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM
    except OSError as error:
        raise BenchmarkError(f"/proc/self/clear_refs cannot be written ({error}); memory needs Linux's") from None
    return memory_mib("VmRSS")


def _weighed(way: Way, at: Operands) -> dict[str, float]:
    """What is resident before a step, and how far above that the step goes."""
    level = level_mib()
    step(way.loss, at)
    return {"level_mib": level, "peak_mib": memory_mib("VmHWM") - level}


def _timed(way: Way, at: Operands) -> dict[str, float]:
    """Milliseconds of one step: on the wall, in this program, and in the system, which is mostly page faults."""
    before, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    step(way.loss, at)
    wall_s, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "ms": wall_s * 1e3,
        "user_ms": (after.ru_utime - before.ru_utime) * 1e3,
        "system_ms": (after.ru_stime - before.ru_stime) * 1e3,
    }


def _main(name: str, shape: Shape) -> None:
    way = WAYS[name]
    step(way.loss, made(Shape(512, CHECKED_ROWS, 64), way.sparse))  # whatever is loaded at first use
    at = made(shape, way.sparse)
    for number, _ in enumerate(sys.stdin):
        print(json.dumps(_timed(way, at) if number else _weighed(way, at)), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], Shape(*(int(size) for size in sys.argv[2].split("x"))))
