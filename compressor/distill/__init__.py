"""Distillation: record what the teacher answers, then train the student on it."""

from __future__ import annotations

from compressor.distill.signals import outputs_of, read_signals, record_signals
from compressor.distill.training import TrainingData, steps_per_epoch, train

__all__ = ["TrainingData", "outputs_of", "read_signals", "record_signals", "steps_per_epoch", "train"]
