"""The distillation loss in Triton, as the rest of the package sees it. Triton is imported where it is needed first."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from compressor.kernels.settings import LossInputs, LossSettings


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing() -> str | None:
    """Why Triton cannot run here, with the remedy; None where it can: a CUDA device, or TRITON_INTERPRET=1."""
    if find_spec("triton") is None:
        return "Triton is not installed; run: pip install triton"
    if not torch.cuda.is_available() and not _interpreted():
        return "Triton needs a CUDA device, or TRITON_INTERPRET=1"
    return None


def devices() -> tuple[str, ...]:
    """The types of device whose tensors the kernels take: cuda; under TRITON_INTERPRET=1 also cpu."""
    return ("cuda", "cpu") if _interpreted() else ("cuda",)


def row_losses(
    inputs: LossInputs, settings: LossSettings, gradient: Tensor | None, gradient_scale: Tensor | None
) -> Tensor:
    """The losses of the rows [N] float32; see `dispatch.fused`."""
    from compressor.kernels import triton_launch

    return triton_launch.row_losses(inputs, settings, gradient, gradient_scale)


def scaled(gradient: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
    """The gradient [N, V] times a scalar or [N] on the device, without waiting for the device."""
    from compressor.kernels import triton_launch

    return triton_launch.scaled(gradient, upstream, in_place)
