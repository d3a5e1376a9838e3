"""Which implementation of the distillation loss runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from compressor.errors import MissingDependencyError, UsageError
from compressor.kernels import cpu, gpu
from compressor.kernels.settings import LossInputs, LossSettings

Implementation = Literal["reference", "cpu-baseline", "cpu-avx2", "cpu-avx512", "cpu-neon", "triton"]

OVERRIDE_VARIABLE = "COMPRESSOR_KERNEL"
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# What a machine has does not change while a compiled program runs.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def missing(implementation: Implementation) -> str | None:
    """Why an implementation cannot run on this machine, with the remedy; None where it can."""
    if implementation == "reference":
        return None
    if implementation == "triton":
        return gpu.missing()
    return cpu.missing(implementation.removeprefix("cpu-"))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _on_cpu() -> Implementation:
    return cpu.best() or "reference"


def selected_implementation(*logits: Tensor) -> Implementation:
    """The implementation that the loss takes for these logits (student's, teacher's, or both).

    float32, bfloat16 and float16 take the best instruction set of the CPU, or Triton on a CUDA device; where it is not
    built or not installed, and for every other dtype, the reference. The environment variable COMPRESSOR_KERNEL forces
    one. Raises MissingDependencyError when that one cannot run here, UsageError when it does not exist or does not
    take these tensors.
    """
    forced = os.environ.get(OVERRIDE_VARIABLE)
    if forced:
        return _forced(forced, logits)
    if any(t.dtype not in FUSED_DTYPES for t in logits):
        return "reference"
    if all(t.is_cuda for t in logits):
        return "triton" if missing("triton") is None else "reference"
    if all(t.device.type == "cpu" for t in logits):
        fastest: Implementation = _on_cpu()
        return fastest
    return "reference"


def _forced(name: str, logits: tuple[Tensor, ...]) -> Implementation:
    if name not in get_args(Implementation):
        choices = ", ".join(get_args(Implementation))
        raise UsageError(
            f"{OVERRIDE_VARIABLE} must be one of {choices}; got {name!r}; unset it to choose by the tensors"
        )
    implementation = cast(Implementation, name)
    if implementation == "reference":
        return implementation
    reason = missing(implementation)
    if reason:
        raise MissingDependencyError(f"{OVERRIDE_VARIABLE}={name}: {reason}, or unset it")
    devices = gpu.devices() if implementation == "triton" else ("cpu",)
    if any(t.dtype not in FUSED_DTYPES or t.device.type not in devices for t in logits):
        got = ", ".join(f"{t.dtype} on {t.device}" for t in logits)
        raise UsageError(
            f"{OVERRIDE_VARIABLE}={name} takes float32, bfloat16 or float16 logits on {' or '.join(devices)}, "
            f"got {got}; unset it"
        )
    return implementation


RowLosses = Callable[[LossInputs, LossSettings, Tensor | None, Tensor | None], Tensor]


def fused(implementation: Implementation) -> RowLosses:
    """The function of a fused implementation: (inputs, settings, gradient, gradient_scale) -> losses of the rows.

    It returns [N] float32 and, where `gradient` [N, V] is given, writes there d(row loss)/d(student logits), times
    `gradient_scale`, a scalar tensor, where that is given. `gradient` has the student's dtype or float32, and may be
    the student's own memory.
    """
    if implementation == "triton":
        return gpu.row_losses
    instruction_set = cast(cpu.InstructionSet, implementation.removeprefix("cpu-"))
    return partial(cpu.row_losses, instruction_set=instruction_set)
