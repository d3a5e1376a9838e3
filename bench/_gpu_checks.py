"""Whether the Triton kernels agree with float64 on this GPU: each check a name, so that processes can share them out.

Nearly all of the time goes into compiling, hence the processes; they share Triton's cache.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from compressor.errors import BenchmarkError
from compressor.kernels import distillation_loss, gpu, reference
from compressor.kernels.settings import LossInputs, LossSettings, SparseTeacher

WORKERS = 8
DIVERGENCES = {"forward_kl": 0.5, "reverse_kl": 0.5, "jsd": 0.3, "total_variation": 0.5}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2**-21, torch.bfloat16: 2**-8, torch.float16: 2**-10}
FLOOR = 4e-6
SHAPES = ((64, 1000), (40, 4096), (300, 8200), (300, 50257), (5, 128256))  # resident twice, looped twice, split


def _logits(rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return (torch.randn(rows, width, generator=generator, device="cuda") * 3).to(dtype)


def _inputs(rows: int, width: int, dtype: torch.dtype, teacher_width: int | None = None) -> LossInputs:
    labels = torch.randint(0, width, (rows,), generator=torch.Generator().manual_seed(2)).cuda()
    labels[1] = -100
    teacher = _logits(rows, teacher_width or width, dtype, 1)
    return LossInputs(_logits(rows, width, dtype, 0), teacher, labels)


def _known(mode: str, rows: int, width: int, entries: int = 50) -> SparseTeacher:
    classes = torch.stack([torch.randperm(width)[:entries] for _ in range(rows)]).cuda()
    values = torch.randn(rows, entries, device="cuda")
    if mode == "ghost":
        values = values.log_softmax(dim=1) - 0.2
    if mode == "sampled":
        classes[:, 1::2] = classes[:, ::2]
        values = torch.full_like(values, -torch.tensor(float(entries)).log().item())
    classes[0, 3] = -1
    return SparseTeacher(classes, values, mode)  # type: ignore[arg-type]


def _exact(inputs: LossInputs, settings: LossSettings, upstream: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    teacher = inputs.teacher
    given: Tensor | SparseTeacher = (
        replace(teacher, values=teacher.values.to(dtype)) if isinstance(teacher, SparseTeacher) else teacher.to(dtype)
    )
    student = inputs.student.detach().to(dtype).requires_grad_()
    loss = reference.distillation_rows(replace(inputs, student=student, teacher=given), settings)
    (gradient,) = torch.autograd.grad(loss, student, upstream.to(dtype))
    return loss.detach(), gradient


def _agree(inputs: LossInputs, settings: LossSettings) -> None:
    """The public function, forward and backward, with a gradient from above that differs by row."""
    student = inputs.student.detach().requires_grad_()
    upstream = torch.linspace(0.5, 2, len(student), device="cuda")
    asked = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    found = distillation_loss(
        student,
        inputs.teacher,
        inputs.labels,
        row_weights=inputs.row_weights,
        class_weights=inputs.class_weights,
        reduction="none",
        **asked,
    )
    (gradient,) = torch.autograd.grad(found, student, upstream)
    exact = _exact(inputs, settings, upstream, torch.float64)
    plain = _exact(inputs, settings, upstream, torch.float32)
    for what, got, true, usual in zip(("loss", "gradient"), (found, gradient), exact, plain, strict=True):
        allowed = 2 * (usual - true).abs().max() + FLOOR + 2 * ROUNDING[got.dtype] * true.abs()
        if not bool(((got.double() - true).abs() <= allowed).all()):
            worst = float((got.double() - true).abs().max())
            raise BenchmarkError(f"the {what} is off by {worst:.2e}, more than {float(allowed.max()):.2e}")
    if inputs.labels is not None and bool(gradient[inputs.labels == settings.ignore_index].any()):
        raise BenchmarkError("an ignored row has a gradient")


def _in_place(rows: int, width: int) -> None:
    inputs = _inputs(rows, width, torch.bfloat16)
    settings = LossSettings(2.0, "jsd", hard_weight=0.5)
    apart = torch.empty_like(inputs.student)
    losses = gpu.row_losses(inputs, settings, apart, None)
    again = gpu.row_losses(inputs, settings, inputs.student, None)
    if not torch.equal(apart, inputs.student) or not torch.equal(losses, again):
        raise BenchmarkError("in place, loss or gradient come out differently")


def _ignored(rows: int, width: int) -> None:
    inputs = _inputs(rows, width, torch.bfloat16)
    assert isinstance(inputs.teacher, Tensor)
    inputs.student[1] = inputs.teacher[1] = float("nan")
    gradient = torch.full_like(inputs.student, 7.0)
    losses = gpu.row_losses(inputs, LossSettings(2.0, hard_weight=0.5), gradient, None)
    if float(losses[1]) != 0 or bool(gradient[1].any()) or bool(losses.isnan().any()):
        raise BenchmarkError("an ignored row of NaN was read")


def _scaled(width: int) -> None:
    for upstream in (torch.tensor(0.3, device="cuda"), torch.rand(9, device="cuda"), torch.ones((), device="cuda")):
        for in_place in (False, True):
            gradient = _logits(9, width, torch.bfloat16, 0)
            exact = gradient.double() * (upstream.unsqueeze(1) if upstream.ndim else upstream)
            found = gpu.scaled(gradient, upstream, in_place)
            if not bool(((found.double() - exact).abs() <= ROUNDING[torch.bfloat16] * exact.abs()).all()):
                raise BenchmarkError("a scaled gradient is off")


def _no_waiting(rows: int, width: int) -> None:
    inputs = _inputs(rows, width, torch.bfloat16)
    student = inputs.student.requires_grad_()
    teachers = (inputs.teacher, _known("zero", rows, width), _known("ghost", rows, width))
    for mode in ("default", "error"):  # the first round compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for teacher in teachers:
                loss = distillation_loss(student, teacher, inputs.labels, temperature=2.0, hard_weight=0.5)
                torch.autograd.grad(loss, student)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _dense(rows: int, width: int, dtype: torch.dtype, settings: LossSettings, teacher_width: int | None = None) -> None:
    _agree(_inputs(rows, width, dtype, teacher_width), settings)


def _weighted(rows: int, width: int) -> None:
    some = {"row_weights": torch.rand(rows, device="cuda"), "class_weights": torch.rand(width, device="cuda")}
    settings = LossSettings(3.0, hard_weight=0.4, label_smoothing=0.1, student_scale=0.7, teacher_scale=1.2)
    _agree(replace(_inputs(rows, width, torch.bfloat16), **some), settings)


def _sparse(rows: int, width: int, mode: str) -> None:
    inputs = replace(_inputs(rows, width, torch.bfloat16), teacher=_known(mode, rows, width))
    _agree(inputs, LossSettings(2.0, hard_weight=0.4))


def checks() -> dict[str, Callable[[], None]]:
    """Every check by its name."""
    found: dict[str, Callable[[], None]] = {}
    for (rows, width), hard in itertools.product(SHAPES, (0.0, 0.4)):
        for (name, beta), dtype in itertools.product(DIVERGENCES.items(), DTYPES):
            settings = LossSettings(2.0, name, beta, hard)  # type: ignore[arg-type]
            found[f"{name} {dtype} {rows}x{width} hard {hard}"] = partial(_dense, rows, width, dtype, settings)
    for rows, width in SHAPES:
        shape = f"{rows}x{width}"
        for vocabulary, more in itertools.product(("truncate", "mask"), (-72, 72)):
            settings = LossSettings(2.0, hard_weight=0.4, vocabulary=vocabulary)  # type: ignore[arg-type]
            other = partial(_dense, rows, width, torch.bfloat16, settings, width + more)
            found[f"{vocabulary} {shape}, teacher {more:+}"] = other
        for mode in ("zero", "ghost", "sampled"):
            found[f"sparse {mode} {shape}"] = partial(_sparse, rows, width, mode)
        found[f"weights and smoothing {shape}"] = partial(_weighted, rows, width)
        found[f"in place {shape}"] = partial(_in_place, rows, width)
        found[f"ignored rows {shape}"] = partial(_ignored, rows, width)
        found[f"no waiting {shape}"] = partial(_no_waiting, rows, width)
    for width in (1, 4096, 50257):
        found[f"scaled {width}"] = partial(_scaled, width)
    return found


def _failures(names: list[str]) -> list[str]:
    known = checks()
    found = []
    for name in names:
        try:
            known[name]()
        except Exception as error:  # whatever it is, the others are still worth knowing
            found.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    return found


def failures() -> tuple[int, list[str]]:
    """How many checks there are, and what the failed ones said."""
    names = list(checks())
    workers = min(WORKERS, len(os.sched_getaffinity(0)))
    shares = [names[start::workers] for start in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return len(names), [failure for share in pool.map(_failures, shares) for failure in share]
