"""Which Triton kernel a call takes, with which tile, and what it is given.

Nothing here waits for the device but the choice among tiles: that is timed, once for every kind of call, on a part of
the first call's rows that is large enough for it to matter, and into memory of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import triton
import triton.testing
from torch import Tensor

from compressor.kernels import triton_ops, triton_sparse, triton_split
from compressor.kernels.settings import LossInputs, LossSettings, SparseTeacher
from compressor.kernels.triton_arguments import UNIT, Known, arguments

RESIDENT_WIDTH = 8192  # the widest row that a program holds in registers
MOST_PARTS = 64
TUNED_FROM = 2**26  # logits of a call; a smaller one is over before a better tile could tell
TUNING_ROWS = 8  # for each multiprocessor
MOST_ENTRIES = 1024  # of a sparse teacher's row, at a time

# How many warps may share a tile of so many columns, the default first; none spills more than a number of the row.
RESIDENT: dict[int, tuple[int, ...]] = {
    64: (1,),
    128: (1,),
    256: (1,),
    512: (1, 2),
    1024: (2, 4),
    2048: (4, 8),
    4096: (8, 16),
    8192: (16, 32),
}
LOOPED: tuple[tuple[int, int], ...] = ((4096, 8), (2048, 4), (2048, 8), (8192, 16))
SCALED = (4096, 8)  # columns, warps
SCALED_WIDTH = 2**17  # of the rows that a tensor of odd width is cut into to be scaled


class Plan(NamedTuple):
    """A kernel and its tile."""

    kernel: Literal["resident", "looped", "split"]
    block: int  # columns
    warps: int
    parts: int = 1  # programs a row, of the kernel that splits it


def candidates(rows: int, width: int, multiprocessors: int) -> list[Plan]:
    """The plans for a dense teacher, the default first."""
    looped = [Plan("looped", block, warps) for block, warps in LOOPED if block < width]
    if width <= RESIDENT_WIDTH:
        block = max(min(RESIDENT), triton.next_power_of_2(width))
        return [*(Plan("resident", block, warps) for warps in RESIDENT[block]), *looped]
    if rows >= 2 * multiprocessors:
        return looped
    block, warps = LOOPED[0]
    parts = min(triton.cdiv(width, block), triton.cdiv(4 * multiprocessors, rows), MOST_PARTS)
    return [Plan("split", block, warps, parts)]


def row_losses(
    inputs: LossInputs,
    settings: LossSettings,
    gradient: Tensor | None,
    gradient_scale: Tensor | None,
    plan: Plan | None = None,
) -> Tensor:
    """See `dispatch.fused`. `plan` is the choice of a test or a measurement, else the best known one is taken."""
    rows, _ = inputs.student.shape
    loss = torch.empty(rows, dtype=torch.float32, device=inputs.student.device)
    if not rows:
        return loss
    inputs = _readable(inputs)
    written = gradient if gradient is None or _unit_columns(gradient) else torch.empty_like(gradient).contiguous()
    settings = settings.at_the_ends()
    with torch.cuda.device_of(loss):  # type: ignore[no-untyped-call]
        _run(plan or _plan(inputs, settings, written), inputs, settings, written, gradient_scale, loss)
    if gradient is not None and written is not None and written is not gradient:
        gradient.copy_(written)
    return loss


def scaled(gradient: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
    """The gradient [N, V] times upstream, a scalar or [N] of any stride; computed in float32, rounded once."""
    if not _unit_columns(gradient):
        product = (gradient.float() * (upstream.unsqueeze(1) if upstream.ndim else upstream)).to(gradient.dtype)
        return gradient.copy_(product) if in_place else product
    target = gradient if in_place else torch.empty_like(gradient, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(gradient):  # type: ignore[no-untyped-call]
        if upstream.ndim == 0 and gradient.shape[1] % UNIT and gradient.is_contiguous():
            whole = gradient.numel() // SCALED_WIDTH * SCALED_WIDTH
            source_line, target_line = gradient.view(-1), target.view(-1)
            _scale(source_line[:whole].view(-1, SCALED_WIDTH), target_line[:whole].view(-1, SCALED_WIDTH), upstream)
            _scale(source_line[whole:].view(1, -1), target_line[whole:].view(1, -1), upstream)
        else:
            _scale(gradient, target, upstream)
    return target


def _scale(source: Tensor, target: Tensor, upstream: Tensor) -> None:
    rows, width = source.shape
    if not source.numel():
        return
    block, warps = SCALED
    counts = (width, source.stride(0), target.stride(0))
    unit = _unit(*counts)
    parts = min(triton.cdiv(width, block), triton.cdiv(4 * _multiprocessors(source.device), rows))
    factor_stride = upstream.stride(0) if upstream.ndim else 0
    triton_ops.scale[(rows, parts)](
        source,
        target,
        upstream,
        factor_stride,
        *(count // unit for count in counts),
        in_place=source.data_ptr() == target.data_ptr(),
        unit=unit,
        block=block,
        num_warps=warps,
    )


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _unit_columns(rows: Tensor) -> bool:
    """Whether the columns of a row lie side by side."""
    return rows.shape[1] == 1 or rows.stride(1) == 1


def _unit(*counts: int) -> int:
    return 1 if any(count % UNIT for count in counts) else UNIT


def _readable(inputs: LossInputs) -> LossInputs:
    """The inputs with the columns of a row side by side; copied only where they are not."""
    teacher = inputs.teacher
    if isinstance(teacher, Tensor) and not _unit_columns(teacher):
        teacher = teacher.contiguous()
    student = inputs.student if _unit_columns(inputs.student) else inputs.student.contiguous()
    return replace(inputs, student=student, teacher=teacher)


def _run(
    plan: Plan,
    inputs: LossInputs,
    settings: LossSettings,
    gradient: Tensor | None,
    gradient_scale: Tensor | None,
    loss: Tensor,
) -> None:
    tensors, numbers, variant = arguments(
        inputs, settings, gradient, gradient_scale, loss, plan.block, plan.kernel == "resident"
    )
    rows = len(loss)
    if isinstance(inputs.teacher, SparseTeacher) and variant.divergence != "none":
        teacher = inputs.teacher
        known = Known(
            teacher.indices,
            teacher.values,
            torch.empty_like(teacher.values, dtype=torch.float32),
            teacher.indices.shape[1],
        )
        chunk = min(MOST_ENTRIES, triton.next_power_of_2(max(known.entries, 16)))
        triton_sparse.sparse[(rows,)](tensors, numbers, known, teacher.mode, chunk, variant, num_warps=plan.warps)
    elif plan.kernel == "split":
        blocks = triton.cdiv(inputs.student.shape[1] + UNIT - 1, plan.block)  # one more where rows start between units
        workspace = torch.empty((rows, plan.parts, triton_split.RECORD.value), dtype=torch.float32, device=loss.device)
        split = (tensors, numbers, workspace, plan.parts, triton.cdiv(blocks, plan.parts))
        padded = triton.next_power_of_2(plan.parts)
        triton_split.split_statistics[(rows, plan.parts)](*split, variant, num_warps=plan.warps)
        if variant.divergence in ("jsd", "total_variation"):
            triton_split.split_values[(rows, plan.parts)](*split, padded, variant, num_warps=plan.warps)
        last_parts = 1 if gradient is None else plan.parts
        triton_split.split_gradient[(rows, last_parts)](*split, padded, variant, num_warps=plan.warps)
    else:
        kernel = triton_ops.resident if plan.kernel == "resident" else triton_ops.looped
        kernel[(rows,)](tensors, numbers, variant, num_warps=plan.warps)


_tuned: dict[tuple[object, ...], Plan] = {}


def _plan(inputs: LossInputs, settings: LossSettings, gradient: Tensor | None) -> Plan:
    student, teacher = inputs.student, inputs.teacher
    if isinstance(teacher, SparseTeacher):
        return Plan("looped", *LOOPED[0])
    rows, width = student.shape
    plans = candidates(rows, width, _multiprocessors(student.device))
    if not student.is_cuda or student.numel() < TUNED_FROM or torch.cuda.is_current_stream_capturing():
        return plans[0]
    key = (
        plans[0].kernel,
        triton.next_power_of_2(width),
        student.dtype,
        teacher.dtype,
        settings.divergence,
        settings.hard_weight > 0,
        gradient is None,
        student.device,
    )
    if key not in _tuned:
        _tuned[key] = min(plans, key=lambda plan: _milliseconds(plan, inputs, settings, gradient))
    return _tuned[key]


def _milliseconds(plan: Plan, inputs: LossInputs, settings: LossSettings, gradient: Tensor | None) -> float:
    """How long the plan takes on the first rows; nothing of the call is written."""
    rows = TUNING_ROWS * _multiprocessors(inputs.student.device)
    assert isinstance(inputs.teacher, Tensor)
    some = LossInputs(
        inputs.student[:rows],
        inputs.teacher[:rows],
        None if inputs.labels is None else inputs.labels[:rows],
        None if inputs.row_weights is None else inputs.row_weights[:rows],
        inputs.class_weights,
    )
    loss = torch.empty(len(some.student), dtype=torch.float32, device=some.student.device)
    room = (
        None
        if gradient is None
        else torch.empty_strided(some.student.shape, gradient.stride(), dtype=gradient.dtype, device=gradient.device)
    )
    return float(
        triton.testing.do_bench(
            lambda: _run(plan, some, settings, room, None, loss), warmup=5, rep=25, return_mode="median"
        )
    )
