"""How fast is the native distillation loss on the CPU, forward and gradient, beside PyTorch and beside memory itself?

First the native loss is held against float64. Then all alternatives take turns on the same tensors: eager PyTorch,
torch.compile, every instruction set of this processor, and a triad (one operation per element on the same bytes: read
two matrices, write a third). Times are of the processor, not of the clock on the wall; ratios are of times from the
same round.

PyTorch's default allocator returns large buffers to the system at once and gets them back page by page: at large widths
most of its time is page faults. So every case is measured twice, in processes of their own: `default`, and `tuned`,
where the C library is told to keep what is freed. The bars are on tuned times, one thread: they are about arithmetic.
`--quick` measures these alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor import native
from compressor.errors import BenchmarkError
from compressor.kernels import distillation_loss
from compressor.kernels.dispatch import OVERRIDE_VARIABLE

TEMPERATURE = 2.0
SHAPES = ((4096, 1000), (512, 30522), (256, 128256))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS, QUICK_ROUNDS = 9, 4
BARS = {"eager": 8.0, "compile": 5.0}  # times as fast as these, at least, and this much of the triad's bandwidth:
TRIAD_BAR = 0.70
CHECKED_ROWS = 16

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h

Step = Callable[[], object]


def _keep_freed_memory() -> None:
    """Raises BenchmarkError where the C library cannot be told."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)):
        raise BenchmarkError("the tuned allocator needs glibc's mallopt, which this C library lacks; use glibc")


def _eager_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """What a user writes: the mean over rows of T^2 KL(teacher || student), in float32."""
    log_student = F.log_softmax(student.float() / TEMPERATURE, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / TEMPERATURE, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2


def _native_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return distillation_loss(student, teacher, temperature=TEMPERATURE)


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def _check(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """The native loss's errors against float64: of the value, relative; of the gradient, relative to its largest."""
    part = (student[:CHECKED_ROWS], teacher[:CHECKED_ROWS])
    value, gradient = _gradient(_native_loss, *part)
    exact_student = part[0].double().requires_grad_()
    exact = distillation_loss(exact_student, part[1].double(), temperature=TEMPERATURE)
    (exact_gradient,) = torch.autograd.grad(exact, exact_student)
    errors = {
        "loss_error": float((value - exact).abs() / exact),
        "gradient_error": float((gradient - exact_gradient).abs().max() / exact_gradient.abs().max()),
    }
    budget = 1e-6 if student.dtype == torch.float32 else torch.finfo(student.dtype).eps
    if not (errors["loss_error"] < 1e-5 and errors["gradient_error"] < budget):
        raise BenchmarkError(f"the native loss must agree with float64 to {budget:.0e}, got {errors}; run the tests")
    return errors


def _under(name: str, step: Step) -> Step:
    """The step with one implementation forced."""

    def forced() -> object:
        os.environ[OVERRIDE_VARIABLE] = name
        try:
            return step()
        finally:
            del os.environ[OVERRIDE_VARIABLE]

    return forced


def _steps(student: Tensor, teacher: Tensor) -> dict[str, Step]:
    compiled = torch.compile(_eager_loss, dynamic=False)
    target = torch.empty_like(student)
    steps: dict[str, Step] = {
        "triad": lambda: torch.add(student, teacher, alpha=TEMPERATURE, out=target),
        "eager": lambda: _gradient(_eager_loss, student, teacher),
        "compile": lambda: _gradient(compiled, student, teacher),
    }
    *others, best = native.load().instruction_sets()
    for name in others:
        steps[f"cpu-{name}"] = _under(f"cpu-{name}", lambda: _gradient(_native_loss, student, teacher))
    steps[f"cpu-{best}"] = lambda: _gradient(_native_loss, student, teacher)  # which a call takes by itself
    return steps


def _measure(allocator: str, threads: int, dtype: str, height: int, width: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each implementation, with the median of its paired ratios to the others."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = ((torch.randn(height, width, generator=generator) * 3).to(DTYPES[dtype]) for _ in range(2))
    errors = _check(student, teacher)
    steps = _steps(student, teacher)
    spent_ms: dict[str, list[float]] = {name: [] for name in steps}
    wall_ms: dict[str, list[float]] = {name: [] for name in steps}
    for done in range(-2, rounds):  # two rounds warm up: the first compiles
        for name in sorted(steps, reverse=bool(done % 2)):
            wall, spent = time.perf_counter(), time.process_time()
            steps[name]()
            if done >= 0:
                spent_ms[name].append((time.process_time() - spent) * 1e3)
                wall_ms[name].append((time.perf_counter() - wall) * 1e3)
    rows = []
    for name, times in spent_ms.items():
        quarters = statistics.quantiles(times, n=4)
        row: dict[str, Any] = {
            "implementation": name,
            "dtype": dtype,
            "shape": f"{height}x{width}",
            "allocator": allocator,
            "threads": threads,
            "cpu_ms": statistics.median(times),
            "cpu_ms_min": min(times),
            "cpu_ms_quartiles": quarters[2] - quarters[0],
            "wall_ms": statistics.median(wall_ms[name]),
        }
        if name.startswith("cpu-"):
            for other in ("eager", "compile"):
                row[f"vs_{other}"] = statistics.median(o / t for o, t in zip(spent_ms[other], times, strict=True))
            row["of_triad"] = statistics.median(o / t for o, t in zip(spent_ms["triad"], times, strict=True))
            row |= errors
        rows.append(row)
    return rows


def _measure_apart(allocator: str, threads: int, quick: bool) -> list[dict[str, Any]]:
    """The rows of a process of its own, whose allocator and threads nothing has touched."""
    command = [sys.executable, "-m", __name__, allocator, str(threads), *(["--quick"] if quick else [])]
    # A thread that waits for work must not count as working.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        raise BenchmarkError(f"measuring {allocator} with {threads} threads failed: {ended.stderr.strip()[-500:]}")
    rows: list[dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    return rows


def _bars(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    best = f"cpu-{native.load().instruction_sets()[-1]}"
    bars = {}
    for row in rows:
        if (row["implementation"], row["dtype"], row["allocator"], row["threads"]) != (best, "float32", "tuned", 1):
            continue
        for other, bar in BARS.items():
            value = row[f"vs_{other}"]
            bars[f"vs_{other}_{row['shape']}"] = {"value": value, "bar": bar, "holds": value >= bar}
        bars[f"of_triad_{row['shape']}"] = {
            "value": row["of_triad"],
            "bar": TRIAD_BAR,
            "holds": row["of_triad"] >= TRIAD_BAR,
        }
    return bars


def run(quick: bool) -> dict[str, Any]:
    native.load()
    rows: list[dict[str, Any]] = []
    for allocator in ("tuned",) if quick else ("tuned", "default"):
        for threads in (1,) if quick else sorted({1, torch.get_num_threads()}):
            rows += _measure_apart(allocator, threads, quick)
    conditions = {"temperature": TEMPERATURE, "divergence": "forward_kl", "rounds": QUICK_ROUNDS if quick else ROUNDS}
    return {"conditions": conditions, "rows": rows, "bars": _bars(rows)}


def _main(allocator: str, threads: int, quick: bool) -> None:
    if allocator == "tuned":
        _keep_freed_memory()
    torch.set_num_threads(threads)
    rows = []
    for dtype in ("float32",) if quick else DTYPES:
        for height, width in SHAPES:
            rows += _measure(allocator, threads, dtype, height, width, QUICK_ROUNDS if quick else ROUNDS)
    print(json.dumps(rows))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), "--quick" in sys.argv)
