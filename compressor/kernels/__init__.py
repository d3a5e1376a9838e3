"""The distillation loss: one specification, and faster implementations of it that are chosen by the tensors."""

from compressor.kernels.dispatch import distillation_loss, selected_implementation

__all__ = ["distillation_loss", "selected_implementation"]
