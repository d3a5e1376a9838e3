"""How much processor time does the native distillation loss save against plain PyTorch, on one thread?

First both are held against float64; then they take turns, forward and backward, and each turn is one paired sample.
PyTorch's default allocator gives large buffers back to the system at once and spends most of its time on page faults;
the allocator is told to keep them, which favours PyTorch, so that the ratio is about the arithmetic.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compressor import native
from compressor.errors import BenchmarkError
from compressor.kernels import cpu, reference

TEMPERATURE, HARD_WEIGHT = 2.0, 0.5
SHAPES = ((4096, 1000), (512, 30522))
QUICK_SHAPES = ((512, 1000), (32, 30522))
ROUNDS, QUICK_ROUNDS = 15, 5
BAR = 1.2  # times PyTorch's speed, at least
CHECKED_ROWS = 64

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h

Rows = Callable[[Tensor, Tensor, Tensor | None, float, float], Tensor]


def _keep_freed_memory() -> bool:
    """Whether the C library could be told; other than glibc cannot."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def _value_and_gradient(rows: Rows, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    loss = rows(student, teacher, labels, TEMPERATURE, HARD_WEIGHT)
    loss.mean().backward()  # type: ignore[no-untyped-call]  # untyped in torch
    assert student.grad is not None
    return loss.detach(), student.grad * len(loss)


def _check_equal(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, float]:
    """The largest errors of the native loss (relative) and gradient (absolute) against float64."""
    case = (student[:CHECKED_ROWS].contiguous(), teacher[:CHECKED_ROWS].contiguous(), labels[:CHECKED_ROWS])
    loss, gradient = _value_and_gradient(cpu.distillation_rows, *case)
    exact_loss, exact_gradient = _value_and_gradient(
        reference.distillation_rows, case[0].double(), case[1].double(), case[2]
    )
    errors = {
        "loss_relative_error": float(((loss - exact_loss) / exact_loss).abs().max()),
        "gradient_error": float((gradient - exact_gradient).abs().max()),
    }
    if errors["loss_relative_error"] > 1e-5 or errors["gradient_error"] > 1e-5:
        raise BenchmarkError(f"the native loss must agree with float64 within 1e-5, got {errors}; run the tests")
    return errors


def _cpu_ms(rows: Rows, student: Tensor, teacher: Tensor, labels: Tensor) -> float:
    start = time.process_time()
    _value_and_gradient(rows, student, teacher, labels)
    return (time.process_time() - start) * 1e3


def _measure(height: int, width: int, rounds: int) -> tuple[list[dict[str, Any]], float]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(height, width, generator=generator) * 3
    teacher = torch.randn(height, width, generator=generator) * 3
    labels = torch.randint(0, width, (height,), generator=generator)
    errors = _check_equal(student, teacher, labels)
    implementations: dict[str, Rows] = {"reference": reference.distillation_rows, "cpu": cpu.distillation_rows}
    times_ms: dict[str, list[float]] = {name: [] for name in implementations}
    for done in range(-1, rounds):  # the first round warms up
        for name in sorted(implementations, reverse=bool(done % 2)):
            spent_ms = _cpu_ms(implementations[name], student, teacher, labels)
            if done >= 0:
                times_ms[name].append(spent_ms)
    ratios = [slow / fast for slow, fast in zip(times_ms["reference"], times_ms["cpu"], strict=True)]
    rows = []
    for name, spent in times_ms.items():
        quarters = statistics.quantiles(spent, n=4)
        rows.append(
            {
                "implementation": name,
                "shape": f"{height}x{width}",
                "cpu_ms_median": statistics.median(spent),
                "cpu_ms_quartile_range": quarters[2] - quarters[0],
                "rounds": rounds,
                **(errors if name == "cpu" else {}),
            }
        )
    return rows, statistics.median(ratios)


def run(quick: bool) -> dict[str, Any]:
    native.load()
    kept = _keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    bars = {}
    try:
        for height, width in QUICK_SHAPES if quick else SHAPES:
            measured, ratio = _measure(height, width, QUICK_ROUNDS if quick else ROUNDS)
            rows += measured
            bars[f"times_faster_{height}x{width}"] = {"value": ratio, "bar": BAR, "holds": ratio >= BAR}
    finally:
        torch.set_num_threads(threads)
    conditions = {"threads": 1, "dtype": "float32", "temperature": TEMPERATURE, "hard_weight": HARD_WEIGHT}
    return {"conditions": {**conditions, "freed_memory_kept": kept}, "rows": rows, "bars": bars}
