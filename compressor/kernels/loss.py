"""`distillation_loss`: the arguments checked, one registered operator called, its gradient handed to autograd."""

from __future__ import annotations

from torch import Tensor

from compressor.kernels import checks, operator, reference
from compressor.kernels.dispatch import selected_implementation
from compressor.kernels.settings import (
    IGNORE_INDEX,
    Divergence,
    LossInputs,
    LossSettings,
    Reduction,
    SparseTeacher,
    Vocabulary,
)


def distillation_loss(
    student_logits: Tensor,
    teacher: Tensor | SparseTeacher,
    labels: Tensor | None = None,
    *,
    temperature: float,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    hard_weight: float = 0.0,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    times_temperature_squared: bool = True,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    row_weights: Tensor | None = None,
    class_weights: Tensor | None = None,
    vocabulary: Vocabulary = "error",
    reduction: Reduction = "mean",
    in_place: bool = False,
) -> Tensor:
    """A divergence from the teacher at a temperature, mixed with cross-entropy to the labels where asked.

    `reference.py` has the formulas. The gradient flows to the student's logits only, and only once: the loss is not
    twice differentiable, except for float64 logits.

    Args:
        student_logits: [N, V] float32, bfloat16, float16 (computed in float32) or float64; any row stride.
        teacher: logits [N, V], in any of these dtypes, on the same device; or a SparseTeacher.
        labels: [N] int64 in 0..V-1, or `ignore_index` for a row that does not count: its loss and gradient are 0.
            Needed when `hard_weight` is above 0.
        temperature: above 0, finite.
        divergence: forward_kl, reverse_kl, jsd or total_variation; a SparseTeacher takes forward_kl.
        beta: of jsd, in 0..1: 0 is forward KL, 1 reverse KL.
        hard_weight: the share of the cross-entropy, in 0..1.
        student_scale, teacher_scale: what the logits are multiplied by first, in both parts; above 0.
        times_temperature_squared: whether the soft part is multiplied by temperature^2.
        label_smoothing: of the cross-entropy, in 0..1.
        row_weights: [N] floating: each row's loss is multiplied by its weight. The mean does not divide by them.
        class_weights: [V] floating, of the cross-entropy.
        vocabulary: when the teacher has more or fewer columns than the student. error refuses; truncate compares the
            columns that both have, each renormalised over these; mask keeps all of the student's columns, the teacher
            having no mass where it has none, and leaves out what only the teacher has. The cross-entropy always sees
            all of the student's columns.
        reduction: none gives [N]; sum a scalar; mean divides the sum by the number of rows that count, and is 0 where
            there are none.
        in_place: whether the gradient may overwrite `student_logits`, which autograd is told; their values are gone
            after the call. They must be computed, not a leaf, and not float16. Without effect under torch.compile.

    Returns:
        float32, or float64 for float64 logits.

    Raises ValueError on arguments that do not fit, and what `selected_implementation` raises.
    """
    settings = LossSettings(
        temperature=temperature,
        divergence=divergence,
        beta=beta,
        hard_weight=hard_weight,
        student_scale=student_scale,
        teacher_scale=teacher_scale,
        times_temperature_squared=times_temperature_squared,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        vocabulary=vocabulary,
    )
    checks.reduction(reduction)
    inputs = LossInputs(student_logits, teacher, labels, row_weights, class_weights)
    inputs = checks.inputs(inputs, settings)
    dense = [teacher] if isinstance(teacher, Tensor) else []
    implementation = selected_implementation(student_logits, *dense)
    if implementation == "reference":
        rows = reference.distillation_rows(inputs, settings)
        return operator.reduced(rows, operator.mean_factor(inputs, settings, reduction), reduction)
    return operator.call(inputs, settings.at_the_ends(), reduction, implementation, in_place)
