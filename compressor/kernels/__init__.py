"""The distillation loss: one specification, and faster implementations of it that are chosen by the tensors."""

from compressor.kernels.dispatch import selected_implementation
from compressor.kernels.linear import LinearLayer, linear_distillation_loss
from compressor.kernels.loss import distillation_loss
from compressor.kernels.settings import LossSettings, SparseTeacher

__all__ = [
    "LinearLayer",
    "LossSettings",
    "SparseTeacher",
    "distillation_loss",
    "linear_distillation_loss",
    "selected_implementation",
]
