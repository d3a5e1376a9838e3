"""What the distillation loss is asked for: its settings, its tensors, and a teacher known only at a few classes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "total_variation"]
Reduction = Literal["none", "sum", "mean"]
Vocabulary = Literal["error", "truncate", "mask"]
SparseMode = Literal["zero", "ghost", "sampled"]

_DIVERGENCES, _VOCABULARIES = get_args(Divergence), get_args(Vocabulary)

IGNORE_INDEX = -100
RESIDUAL_FLOOR = 1e-6  # less mass than this outside the known classes is a rounding error of their sum: none


@dataclass(frozen=True)
class LossSettings:
    """The scalars of `distillation_loss`, which documents them. Raises ValueError when one does not fit."""

    temperature: float
    divergence: Divergence = "forward_kl"
    beta: float = 0.5
    hard_weight: float = 0.0
    student_scale: float = 1.0
    teacher_scale: float = 1.0
    times_temperature_squared: bool = True
    label_smoothing: float = 0.0
    ignore_index: int = IGNORE_INDEX
    vocabulary: Vocabulary = "error"

    def __post_init__(self) -> None:
        for name in ("temperature", "student_scale", "teacher_scale"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value}")
        for name in ("beta", "hard_weight", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in 0..1, got {value}")
        for name, choices in (("divergence", _DIVERGENCES), ("vocabulary", _VOCABULARIES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")

    @property
    def soft_weight(self) -> float:
        """What the divergence is multiplied by."""
        return (1 - self.hard_weight) * (self.temperature**2 if self.times_temperature_squared else 1.0)

    def at_the_ends(self) -> LossSettings:
        """The same loss, with jsd at beta 0 and 1 named as what it is there: forward and reverse KL."""
        if self.divergence != "jsd" or self.beta not in (0, 1):
            return self
        return replace(self, divergence="forward_kl" if self.beta == 0 else "reverse_kl")


@dataclass(frozen=True)
class SparseTeacher:
    """A teacher known at K classes a row: from a cache, from an API's top log-probabilities, or drawn at random.

    Args:
        indices: [N, K] int64, classes in 0..V-1. A negative index is padding: the entry is not there.
        values: [N, K], floating, what `mode` says.
        mode:
            zero: the teacher has no mass elsewhere. Values are its logits or log-probabilities (only their differences
                count), divided by the temperature here. Indices of a row are distinct.
            ghost: what is missing from 1 is one more outcome, compared with all the mass that the student puts
                elsewhere. Values are log-probabilities of softmax(teacher / T), at this temperature: T is not applied
                again. Indices of a row are distinct.
            sampled: an unbiased estimate of the teacher. Values are the logarithms of the draws' weights: -log K for
                draws from softmax(teacher / T) itself, else log(p / (K * proposal)). An index may occur more than
                once. The loss is the cross-entropy to the estimate: KL without the teacher's entropy, which draws do
                not tell; the gradient is that of KL in expectation (Anshumann et al., "Sparse Logit Sampling", 2025).
    """

    indices: Tensor
    values: Tensor
    mode: SparseMode

    def __post_init__(self) -> None:
        if self.mode not in get_args(SparseMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(SparseMode))}; got {self.mode!r}")
        if self.indices.ndim != 2 or self.indices.shape != self.values.shape or self.indices.shape[1] == 0:
            raise ValueError(
                "indices and values must both be [N, K] with K >= 1, "
                f"got {list(self.indices.shape)} and {list(self.values.shape)}"
            )
        if self.indices.dtype != torch.int64 or not self.values.is_floating_point():
            raise ValueError(
                f"indices must be int64 and values floating, got {self.indices.dtype} and {self.values.dtype}"
            )


@dataclass(frozen=True)
class LossInputs:
    """The tensors of one call, already checked against each other by `kernels.loss`."""

    student: Tensor  # [N, V]
    teacher: Tensor | SparseTeacher  # [N, V'], or known at K classes
    labels: Tensor | None = None  # [N] int64
    row_weights: Tensor | None = None  # [N] float32
    class_weights: Tensor | None = None  # [V] float32
