"""Problems for `distill_loss_check`, csrc/tests, and what the float64 reference says to its answers."""

from __future__ import annotations

import itertools
import math
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from compressor.kernels import reference
from compressor.kernels.settings import LossInputs, LossSettings, SparseTeacher

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "total_variation")
SPARSE_MODES = ("zero", "ghost", "sampled")
WIDTHS = (1, 2, 7, 33, 1031, 2500)  # the blocks of the kernel have 1024 columns
HARD_PARTS = ((0.0, 2.0), (0.25, 1.0), (0.25, 2.0), (0.25, 3.0), (1.0, 2.0))  # weight, temperature
PLACEMENTS = ("none", "apart", "in place")
ROWS = 4
IGNORED = -7

LOSS_TOLERANCE = 3e-6  # of 1 + |loss|
GRADIENT_TOLERANCE = 2e-6  # of the row's scale
UNWRITTEN = 0xA5


@dataclass(frozen=True)
class Problem:
    """One call. The matrices' rows may lie apart; what is between them is NaN."""

    inputs: LossInputs
    settings: LossSettings
    placement: str
    gradient_stride: int
    gradient_scale: float
    threads: int

    def __str__(self) -> str:
        teacher = self.inputs.teacher
        sparse = isinstance(teacher, SparseTeacher)
        known = f"{teacher.mode} {list(teacher.indices.shape)}" if sparse else _layout(teacher)
        given = [name for name in ("labels", "row_weights", "class_weights") if getattr(self.inputs, name) is not None]
        student, scale = _layout(self.inputs.student), self.gradient_scale
        return f"{student} <- {known}, {given}, gradient {self.placement} * {scale}, {self.settings}"


def _layout(matrix: Tensor) -> str:
    return f"{str(matrix.dtype).removeprefix('torch.')} {list(matrix.shape)} stride {matrix.stride(0)}"


def grid() -> list[Problem]:
    """Every dtype, divergence or sparse mode, hard part and width; the rest is drawn, the same every time."""
    kinds = (*DIVERGENCES, *SPARSE_MODES)
    cases = itertools.product(DTYPES, kinds, HARD_PARTS, WIDTHS)
    return [_draw(random.Random(seed), *case) for seed, case in enumerate(cases)]


def large(dtype: torch.dtype) -> Problem:
    """So large that it is worth threads, and that the gradient is written past the caches."""
    problem = _draw(random.Random(0), dtype, "forward_kl", HARD_PARTS[2], 2500, rows=3600 // dtype.itemsize)
    return replace(problem, placement="apart", threads=3)


def _draw(
    chance: random.Random, dtype: torch.dtype, kind: str, hard_part: tuple[float, float], width: int, rows: int = ROWS
) -> Problem:
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    sparse = kind in SPARSE_MODES
    hard_weight, temperature = hard_part
    settings = LossSettings(
        temperature=temperature,
        divergence="forward_kl" if sparse else kind,
        beta=chance.choice((0.125, 0.5, 0.75)),
        hard_weight=hard_weight,
        student_scale=chance.choice((1.0, 0.5)),
        teacher_scale=chance.choice((1.0, 1.5)),
        times_temperature_squared=chance.random() < 0.5,
        label_smoothing=chance.choice((0.0, 0.125)),
        ignore_index=IGNORED,
        vocabulary="error" if sparse else chance.choice(("error", "truncate", "mask")),
    )
    student = _logits(chance, generator, rows, width)
    teacher_width = width
    if settings.vocabulary != "error":
        fewer = 0 if (kind, settings.vocabulary) == ("reverse_kl", "mask") else width // 3
        teacher_width += chance.choice((-fewer, 5))
    teacher = _logits(chance, generator, rows, teacher_width)
    labels = torch.randint(0, width, (rows,), generator=generator)

    # Without mass: always in the teacher, and in the student too where that leaves the loss finite.
    if chance.random() < 0.4:
        empty = torch.rand(width, generator=generator) < 0.2
        empty[0] = False
        labels[empty[labels]] = 0
        finite = (hard_weight == 0 or settings.label_smoothing == 0) and not (kind == "ghost" and width < 40)
        in_student = finite and (kind == "reverse_kl" or chance.random() < 0.5)
        if in_student:
            student[:, empty] = -math.inf
        if in_student or kind != "reverse_kl":
            teacher[:, : min(width, teacher_width)][:, empty[:teacher_width]] = -math.inf

    row_weights = torch.rand(rows, generator=generator) + 0.5
    class_weights = torch.rand(width, generator=generator) * 2
    class_weights[width // 2] = 0.0
    given = hard_weight > 0 or chance.random() < 0.5
    known = _known(chance, generator, teacher, kind, settings) if sparse else None
    if given:
        labels[1], student[1], teacher[1] = IGNORED, math.nan, math.nan  # an ignored row is not read
    student = _spread(student.to(dtype), chance)
    inputs = LossInputs(
        student,
        known or _spread(teacher.to(chance.choice(DTYPES)), chance),
        labels if given else None,
        row_weights if chance.random() < 0.5 else None,
        class_weights if chance.random() < 0.5 else None,
    )
    placement = chance.choice(PLACEMENTS)
    gradient_stride = student.stride(0) if placement == "in place" else width + chance.choice((0, 1, 6))
    return Problem(inputs, settings, placement, gradient_stride, gradient_scale=chance.choice((1.0, 0.5)), threads=1)


def _logits(chance: random.Random, generator: torch.Generator, rows: int, width: int) -> Tensor:
    logits = torch.randn(rows, width, generator=generator) * 3
    if chance.random() < 0.3:
        logits += 100.0
    if chance.random() < 0.3:  # what comes later is far above what came first
        logits += torch.linspace(0.0, chance.choice((40.0, -40.0)), width)
    return logits


def _spread(matrix: Tensor, chance: random.Random) -> Tensor:
    rows, width = matrix.shape
    memory = torch.full((rows, width + chance.choice((0, 1, 6))), math.nan, dtype=matrix.dtype)
    memory[:, :width] = matrix
    return memory[:, :width]


def _known(
    chance: random.Random, generator: torch.Generator, logits: Tensor, mode: str, settings: LossSettings
) -> SparseTeacher:
    rows, width = logits.shape
    count = chance.choice((1, min(3, width), min(40, width)))
    log_p = torch.log_softmax(logits * settings.teacher_scale / settings.temperature, dim=1)
    if mode == "sampled":
        indices = torch.multinomial(log_p.exp(), count, replacement=True, generator=generator)
        values = torch.full((rows, count), -math.log(count))
    else:
        values, indices = (logits if mode == "zero" else log_p).topk(count, dim=1)
    if count > 1:
        indices[0, -1] = -1  # padding
    return SparseTeacher(indices.contiguous(), values.contiguous(), mode)


def unusual() -> list[Problem]:
    """The middle one of three rows has a logit that is NaN or infinite."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for divergence, column, value in itertools.product(DIVERGENCES, (0, 5, 1030), (math.nan, math.inf, -math.inf)):
        for dtype, spoilt in itertools.product(DTYPES, (0, 1)):
            both = torch.randn(2, 3, 1031, generator=generator)
            both[spoilt, 1, column] = value
            student, teacher = both.to(dtype)
            labels, settings = torch.full((3,), 7), LossSettings(2.0, divergence, hard_weight=0.25)
            found.append(Problem(LossInputs(student, teacher, labels), settings, "apart", 1031, 1.0, 1))
    return found


def tiny() -> Problem:
    """Logits that are the subnormal numbers of float16, and a scale that makes them count."""
    student = (torch.arange(-1023, 1024) * 2.0**-24).to(torch.float16).view(1, -1)
    settings = LossSettings(1.0, student_scale=2.0**14, teacher_scale=2.0**15)
    return Problem(LossInputs(student, student.flip(1)), settings, "apart", 2047, 1.0, 1)


def rounding(dtype: torch.dtype) -> tuple[Problem, Tensor]:
    """A problem whose gradient, before it is rounded to bfloat16 or float16, is known exactly; and that gradient.

    Of two equal logits with a label the gradient is -1/2, 1/2 times the row's weight. Every half between two neighbours
    of the type is there, and what is just below and above it; of float16 what is too large as well.
    """
    # The instruction for bfloat16 takes subnormal numbers for 0.
    least, beyond = {torch.bfloat16: (2.0**-126, 2.0**126), torch.float16: (0.0, 2.0**16)}[dtype]
    known = torch.arange(0x7F80, dtype=torch.int16).view(dtype).float()
    known = torch.cat((known[(known >= least) & (known < beyond)], torch.tensor([beyond])))
    half_way = (known[1:] + known[:-1]) / 2
    x = torch.cat(
        (half_way, half_way.nextafter(known[1:]), half_way.nextafter(known[:-1]), known, torch.tensor([1e30]))
    )
    logits, labels = torch.zeros(len(x), 2, dtype=dtype), torch.zeros(len(x), dtype=torch.int64)
    inputs = LossInputs(logits, logits, labels, row_weights=2 * x)
    problem = Problem(inputs, LossSettings(1.0, hard_weight=1.0), "apart", 2, 1.0, 1)
    return problem, torch.stack((-x, x), dim=1)


def write(problems: list[Problem], path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("=q", len(problems)))
        for problem in problems:
            file.write(_header(problem))
            teacher = problem.inputs.teacher
            dense, sparse = (None, teacher) if isinstance(teacher, SparseTeacher) else (teacher, None)
            for array in (
                problem.inputs.student,
                dense,
                problem.inputs.labels,
                problem.inputs.row_weights,
                problem.inputs.class_weights,
                sparse and sparse.indices,
                sparse and sparse.values,
            ):
                raw = b"" if array is None else _memory(array)
                file.write(struct.pack("=q", len(raw)) + raw)


def _header(problem: Problem) -> bytes:
    inputs, settings = problem.inputs, problem.settings
    rows, width = inputs.student.shape
    soft_width = teacher_width = width
    known = teacher_stride = teacher_type = mode = 0
    if isinstance(inputs.teacher, SparseTeacher):
        known, mode = inputs.teacher.indices.shape[1], SPARSE_MODES.index(inputs.teacher.mode)
    else:
        teacher_stride, teacher_type = inputs.teacher.stride(0), DTYPES.index(inputs.teacher.dtype)
        teacher_width = min(width, inputs.teacher.shape[1])
        soft_width = teacher_width if settings.vocabulary == "truncate" else width
    return struct.pack(
        "=15q8d",
        *(rows, width, soft_width, teacher_width, known, settings.ignore_index, problem.threads),
        *(inputs.student.stride(0), teacher_stride, problem.gradient_stride),
        *(DTYPES.index(inputs.student.dtype), teacher_type, DIVERGENCES.index(settings.divergence), mode),
        PLACEMENTS.index(problem.placement),
        *(settings.beta, settings.temperature, settings.student_scale, settings.teacher_scale),
        *(settings.soft_weight, settings.hard_weight, settings.label_smoothing, problem.gradient_scale),
    )


def _memory(array: Tensor) -> bytes:
    """From the first element to the last, with what lies between the rows."""
    rows = len(array)
    extent = (rows - 1) * array.stride(0) + array[0].numel()
    return array.as_strided((extent,), (1,)).view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class Answer:
    loss: Tensor  # [rows] float32
    gradient: Tensor | None  # [rows, width], rows gradient_stride apart
    between: bytes  # what lies between the gradient's rows


def answers(problems: list[Problem], path: Path) -> list[Answer]:
    raw = path.read_bytes()
    found, start = [], 0
    for problem in problems:
        rows, width = problem.inputs.student.shape
        dtype, stride = problem.inputs.student.dtype, problem.gradient_stride
        loss = torch.frombuffer(bytearray(raw[start : start + 4 * rows]), dtype=torch.float32)
        start += 4 * rows
        gradient, between = None, b""
        if problem.placement != "none":
            extent = (rows - 1) * stride + width
            memory = torch.frombuffer(bytearray(raw[start : start + extent * dtype.itemsize]), dtype=dtype)
            start += extent * dtype.itemsize
            gradient = memory.as_strided((rows, width), (stride, 1))
            gaps = memory[: (rows - 1) * stride].view(rows - 1, stride)[:, width:].contiguous()
            between = gaps.view(torch.uint8).numpy().tobytes()
        found.append(Answer(loss, gradient, between))
    assert start == len(raw)
    return found


def solve(program: list[str], instruction_set: str, problems: list[Problem], folder: Path) -> list[Answer]:
    """What the program, the words of a command, answers."""
    asked, answered = folder / "problems", folder / "results"
    write(problems, asked)
    ended = subprocess.run([*program, instruction_set, asked, answered], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"exit status {ended.returncode}\n{ended.stderr}"
    return answers(problems, answered)


@dataclass(frozen=True)
class Expected:
    loss: Tensor  # [rows] float64
    gradient: Tensor  # [rows, width] float64
    scale: Tensor  # [rows, 1], of what the gradient is a difference of


def expected(problem: Problem) -> Expected:
    """By the reference in float64 and autograd."""
    inputs, settings = problem.inputs, problem.settings
    student, teacher = inputs.student.double().requires_grad_(), inputs.teacher
    wide = replace(inputs, student=student, teacher=teacher if isinstance(teacher, SparseTeacher) else teacher.double())
    loss = reference.distillation_rows(wide, settings)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    gradient *= problem.gradient_scale
    logits = student.detach() * settings.student_scale
    mass = torch.maximum(logits.softmax(1), (logits / settings.temperature).softmax(1)).amax(1, keepdim=True)
    # What the masses are multiplied by before they are taken from each other.
    factor = torch.full_like(mass, settings.soft_weight / settings.temperature + settings.hard_weight)
    if settings.divergence in ("reverse_kl", "jsd"):  # logarithms, as large as the loss
        factor += loss.detach().abs()[:, None]
    differences = problem.gradient_scale * settings.student_scale * factor * mass.nan_to_num()  # NaN: an ignored row
    scale = gradient.abs().amax(1, keepdim=True) + differences
    return Expected(loss.detach(), gradient, scale)


def faults(problem: Problem, want: Expected, got: Answer) -> Iterator[str]:
    """What is wrong with an answer, a line each. NaN and infinity must be where they are expected; the gradient of such
    a row may be anything."""
    close = torch.isclose(got.loss.double(), want.loss, rtol=LOSS_TOLERANCE, atol=LOSS_TOLERANCE, equal_nan=True)
    if not bool(close.all()):
        yield f"loss: {got.loss.tolist()}, expected {want.loss.tolist()}: {problem}"
    if got.gradient is None:
        return
    # As rounded from something within the tolerance.
    dtype, slack = got.gradient.dtype, GRADIENT_TOLERANCE * want.scale
    fits = ((want.gradient - slack).to(dtype) <= got.gradient) & (got.gradient <= (want.gradient + slack).to(dtype))
    wrong = ~fits & want.loss.isfinite()[:, None]
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        pair = f"{got.gradient[row, column].item()}, expected {want.gradient[row, column].item()}"
        yield f"gradient of {int(wrong.sum())} columns, first [{row}, {column}]: {pair}: {problem}"
    empty = {UNWRITTEN} if problem.placement == "apart" else set(_memory(torch.full((1,), math.nan, dtype=dtype)))
    if not set(got.between) <= empty:
        yield f"written between the rows: {problem}"
