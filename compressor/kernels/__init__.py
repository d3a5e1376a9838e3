"""The distillation loss: one specification, and faster implementations of it that are chosen by the tensors."""

from compressor.kernels.dispatch import selected_implementation
from compressor.kernels.linear import LinearTeacher, linear_distillation_loss
from compressor.kernels.loss import distillation_loss
from compressor.kernels.settings import LossSettings, SparseTeacher

__all__ = [
    "LinearTeacher",
    "LossSettings",
    "SparseTeacher",
    "distillation_loss",
    "linear_distillation_loss",
    "selected_implementation",
]
