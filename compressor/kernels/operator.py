"""The fused loss as an operator of torch: `compressor::distillation_loss`, with its fake and its gradient.

The operator computes the value and the gradient in one go and keeps the gradient; going back only multiplies it by
what comes from above, and not even that where that is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressor.kernels import checks, gpu
from compressor.kernels.dispatch import Implementation, fused
from compressor.kernels.settings import LossInputs, LossSettings, Reduction, SparseMode, SparseTeacher


def mean_factor(inputs: LossInputs, settings: LossSettings, reduction: Reduction) -> Tensor | None:
    """For the mean: 1 / how many rows count (at least 1), a float32 scalar on the device; nothing waits for it."""
    if reduction != "mean":
        return None
    if inputs.labels is None:
        return torch.full((), 1 / max(len(inputs.student), 1), dtype=torch.float32, device=inputs.student.device)
    return (inputs.labels != settings.ignore_index).sum(dtype=torch.float32).clamp(min=1).reciprocal()


def reduced(rows: Tensor, factor: Tensor | None, reduction: Reduction) -> Tensor:
    """The losses of the rows, [N], as they are, added up, or averaged."""
    if reduction == "none":
        return rows
    return rows.sum() if factor is None else rows.sum() * factor


def scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    """The gradient [N, V] times what comes from above: a scalar or [N].

    Where that is 1, the gradient itself. On a GPU only the kernel knows, so it scales in place, unless the graph is
    kept for another time.
    """
    if type(upstream) is not Tensor:  # being traced: the compiler sees a product
        return _product(gradient, upstream)
    if upstream.is_cuda:
        return gpu.scaled(gradient, upstream, in_place=not _graph_is_kept())
    if upstream.ndim == 0 and upstream.item() == 1:
        return gradient
    return _product(gradient, upstream)


def _graph_is_kept() -> bool:
    """Whether the gradient may be asked for again; what torch's own compiled graphs ask before they reuse a buffer."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _product(gradient: Tensor, upstream: Tensor) -> Tensor:
    if upstream.ndim:
        upstream = upstream.unsqueeze(1)
    return (gradient.to(upstream.dtype) * upstream).to(gradient.dtype)


# An operator's schema knows no dataclasses, and each argument of its own would cost every call some microseconds: the
# settings travel as their fields' texts.
def _text_of(settings: LossSettings) -> str:
    return " ".join([str(value) for value in vars(settings).values()])


@cache
def _settings_of(text: str) -> LossSettings:
    kinds: dict[str, Callable[[str], Any]] = {"float": float, "int": int, "bool": lambda word: word == "True"}
    words = zip(fields(LossSettings), text.split(), strict=True)
    return LossSettings(**{field.name: kinds.get(str(field.type), str)(word) for field, word in words})


@torch.library.custom_op("compressor::distillation_loss", mutates_args=())
def _operator(
    student: Tensor,
    teacher: Tensor,
    indices: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    class_weights: Tensor | None,
    sparse_mode: str,
    settings: str,
    reduction: str,
    needs_gradient: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    known = teacher if indices is None else SparseTeacher(indices, teacher, cast(SparseMode, sparse_mode))
    inputs = LossInputs(student, known, labels, row_weights, class_weights)
    gradient = _room(student) if needs_gradient else None
    chosen = (_settings_of(settings), cast(Reduction, reduction), cast(Implementation, implementation))
    loss = _into(gradient, inputs, *chosen)
    return loss, student.new_empty(0) if gradient is None else gradient


def _room(student: Tensor) -> Tensor:
    """Memory for the gradient. In float16 a mean's gradient would vanish before a loss scale is applied to it."""
    return student.new_empty(student.shape, dtype=torch.float32 if student.dtype == torch.float16 else student.dtype)


def _into(
    gradient: Tensor | None,
    inputs: LossInputs,
    settings: LossSettings,
    reduction: Reduction,
    implementation: Implementation,
) -> Tensor:
    factor = mean_factor(inputs, settings, reduction)
    return reduced(fused(implementation)(inputs, settings, gradient, factor), factor, reduction)


@_operator.register_fake
def _(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    reduction, needs_gradient = arguments[-3], arguments[-2]
    rows = student.shape[:1] if reduction == "none" else ()
    return student.new_empty(rows, dtype=torch.float32), _room(student) if needs_gradient else student.new_empty(0)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.arguments = len(inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)  # or torch would hand down [N, V] zeros for the gradient's gradient
    ctx.save_for_backward(output[1])


@once_differentiable
def _backward(ctx: Any, upstream: Tensor, _: None) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (scaled(gradient, upstream).to(ctx.dtype), *(None,) * (ctx.arguments - 1))


_operator.register_autograd(_backward, setup_context=_keep_gradient)


def _traced(
    inputs: LossInputs,
    settings: LossSettings,
    reduction: Reduction,
    implementation: Implementation,
    needs_gradient: bool,
) -> Tensor:
    sparse = inputs.teacher if isinstance(inputs.teacher, SparseTeacher) else None
    outputs: tuple[Tensor, Tensor] = _operator(
        inputs.student,
        inputs.teacher if isinstance(inputs.teacher, Tensor) else inputs.teacher.values,
        None if sparse is None else sparse.indices,
        inputs.labels,
        inputs.row_weights,
        inputs.class_weights,
        "" if sparse is None else sparse.mode,
        _text_of(settings),
        reduction,
        needs_gradient,
        implementation,
    )
    return outputs[0]


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        inputs: LossInputs,
        settings: LossSettings,
        reduction: Reduction,
        implementation: Implementation,
        in_place: bool,
    ) -> Tensor:
        gradient = student if in_place else _room(student)
        loss = _into(gradient, inputs, settings, reduction, implementation)
        if in_place:
            # Whoever saved the logits for going back is stopped there. `mark_dirty` says so too, but not for views.
            torch.autograd.graph.increment_version(student)
        ctx.dtype = student.dtype
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return scaled(gradient, upstream).to(ctx.dtype), None, None, None, None, None


def call(
    inputs: LossInputs, settings: LossSettings, reduction: Reduction, implementation: Implementation, in_place: bool
) -> Tensor:
    """The reduced loss, differentiable in the student's logits.

    With `in_place` the gradient takes their memory, which autograd counts as changed. While torch traces, the
    registered operator stands for the call; otherwise it is left out, since a few rows take less time than torch's way
    to it.
    """
    student = inputs.student
    needs_gradient = student.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling() or type(student) not in (Tensor, torch.nn.Parameter):
        return _traced(inputs, settings, reduction, implementation, needs_gradient)
    if not needs_gradient:
        return _into(None, inputs, settings, reduction, implementation)
    if in_place:
        checks.overwritable(student)
    loss: Tensor = _Direct.apply(student, inputs, settings, reduction, implementation, in_place)  # type: ignore[no-untyped-call]
    return loss
