"""`linear_distillation_loss`: the loss from hidden states, without ever holding the logits of all rows.

Rows are taken a chunk at a time: two matrix products make the chunk's logits, the loss kernel turns the student's into
their gradient in place, two more products carry it on to hidden states and weight. Only what has the size of the inputs
stays. The weight's gradient is added up in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressor.kernels import checks, operator, reference
from compressor.kernels.dispatch import Implementation, fused, selected_implementation
from compressor.kernels.settings import LossInputs, LossSettings, Reduction, SparseTeacher

# A chunk's logits may take this many times the memory of the hidden states: fewer, larger products keep a GPU busy.
CHUNK_TO_HIDDEN = 8
# Every chunk passes over all of the weight and its gradient: with fewer rows that, not arithmetic, takes the time.
LEAST_CHUNK_ROWS = 128


@dataclass(frozen=True)
class LinearLayer:
    """A model's last layer: logits = hidden @ weight.T + bias.

    Args:
        hidden: [N, H'], floating.
        weight: [V', H'], of the same dtype.
        bias: [V'], of the same dtype, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def logits(self, begin: int, end: int, room: Tensor | None = None) -> Tensor:
        """[end - begin, V'], of the rows begin..end; in the first rows of `room`, where there is one."""
        hidden = self.hidden[begin:end]
        if room is None:
            return torch.nn.functional.linear(hidden, self.weight, self.bias)
        out = room[: end - begin]
        if self.bias is None:
            return torch.mm(hidden, self.weight.T, out=out)
        return torch.addmm(self.bias, hidden, self.weight.T, out=out)

    def room(self, rows: int) -> Tensor:
        """Memory for the logits of so many rows."""
        return self.hidden.new_empty(rows, len(self.weight))

    def computable(self) -> LinearLayer:
        """The layer in autocast's dtype where that is on, and in float32 for float16."""
        kind = self.hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.hidden.dtype
        dtype = torch.float32 if dtype == torch.float16 else dtype
        if dtype == self.hidden.dtype and not torch.is_autocast_enabled(kind):
            return self
        return LinearLayer(
            self.hidden.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher: LinearLayer | SparseTeacher,
    labels: Tensor | None = None,
    *,
    settings: LossSettings,
    student_bias: Tensor | None = None,
    row_weights: Tensor | None = None,
    class_weights: Tensor | None = None,
    reduction: Reduction = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """`distillation_loss` of student_hidden @ student_weight.T + student_bias, whose [N, V] logits are never held.

    Args:
        student_hidden: [N, H] float32 or bfloat16. float16 is computed in float32, since its gradients would vanish
            before a loss scale is applied; float64 takes the reference, unchunked. Under autocast, all matrices are
            taken in autocast's dtype.
        student_weight: [V, H], of the same dtype.
        teacher: its last layer, or what is known of its logits.
        labels: [N] int64, as in `distillation_loss`.
        settings: the scalars of the loss; `distillation_loss` documents them.
        student_bias: [V], of the same dtype.
        row_weights, class_weights: [N], [V], as in `distillation_loss`.
        reduction: mean or sum. A row's own loss would need its own gradient of the weight: use `row_weights`.
        chunk_rows: rows at a time; chosen so that a chunk's logits take about eight times the hidden states' memory,
            but 128 at least.

    Returns a float32 scalar, differentiable once in hidden states, weight and bias. `torch.compile` leaves the call as
    it is. Raises ValueError on arguments that do not fit, and what `selected_implementation` raises.
    """
    student = LinearLayer(student_hidden, student_weight, student_bias).computable()
    if isinstance(teacher, LinearLayer):
        teacher = teacher.computable()
    _check(student, teacher, reduction, chunk_rows)
    inputs = _checked(_Linear(student, teacher, labels, row_weights, class_weights), settings)
    implementation = selected_implementation(student.hidden)
    call = (inputs, settings.at_the_ends(), reduction, implementation, chunk_rows or _chunk_rows(student))
    tensors = (student.hidden, student.weight, student.bias)
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    with torch.autocast(student_hidden.device.type, enabled=False):
        if implementation == "reference":
            return _unchunked(inputs, settings, reduction)
        if not needed:
            return _run(*call, _Gradients(None, None, None))
        loss: Tensor = _LinearLoss.apply(*tensors, *call)  # type: ignore[no-untyped-call]
    return loss


@dataclass(frozen=True)
class _Linear:
    student: LinearLayer
    teacher: LinearLayer | SparseTeacher
    labels: Tensor | None
    row_weights: Tensor | None
    class_weights: Tensor | None

    def rooms(self, rows: int) -> tuple[Tensor, Tensor | None]:
        """The student's and the teacher's, for every chunk: anew for each, they would fragment the C library's heap."""
        theirs = None if isinstance(self.teacher, SparseTeacher) else self.teacher.room(rows)
        return self.student.room(rows), theirs

    def chunk(self, begin: int, end: int, rooms: tuple[Tensor | None, Tensor | None] = (None, None)) -> LossInputs:
        """The rows begin..end with their logits, in `rooms` or memory of their own."""

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[begin:end]

        if isinstance(self.teacher, SparseTeacher):
            known = self.teacher
            teacher: Tensor | SparseTeacher = replace(
                known, indices=known.indices[begin:end], values=known.values[begin:end]
            )
        else:
            teacher = self.teacher.logits(begin, end, rooms[1]).detach()
        student = self.student.logits(begin, end, rooms[0])
        return LossInputs(student, teacher, part(self.labels), part(self.row_weights), self.class_weights)


def _checked(inputs: _Linear, settings: LossSettings) -> _Linear:
    """The inputs as `checks.inputs` leaves them: it is shown logits of the right shape that take no memory."""

    def shown(layer: LinearLayer) -> Tensor:
        return layer.hidden.detach().new_empty(1, 1).expand(len(layer.hidden), len(layer.weight))

    teacher = shown(inputs.teacher) if isinstance(inputs.teacher, LinearLayer) else inputs.teacher
    found = checks.inputs(
        LossInputs(shown(inputs.student), teacher, inputs.labels, inputs.row_weights, inputs.class_weights), settings
    )
    sparse = found.teacher if isinstance(found.teacher, SparseTeacher) else None
    return replace(
        inputs,
        teacher=sparse or inputs.teacher,
        row_weights=found.row_weights,
        class_weights=found.class_weights,
    )


def _unchunked(inputs: _Linear, settings: LossSettings, reduction: Reduction) -> Tensor:
    whole = inputs.chunk(0, len(inputs.student.hidden))
    rows = reference.distillation_rows(whole, settings)
    return operator.reduced(rows, operator.mean_factor(whole, settings, reduction), reduction)


def _chunk_rows(student: LinearLayer) -> int:
    """A power of two, so that the products of all chunks but the last are of a convenient shape."""
    wanted = max(1, CHUNK_TO_HIDDEN * student.hidden.numel() // (2 * len(student.weight)))
    return max(LEAST_CHUNK_ROWS, 1 << (wanted.bit_length() - 1))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, total in float32."""
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


@dataclass
class _Gradients:
    """What is added up over the chunks; None where nobody asks for it."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def add(self, logits_gradient: Tensor, inputs: _Linear, begin: int, end: int) -> None:
        if self.hidden is not None:
            torch.mm(logits_gradient, inputs.student.weight, out=self.hidden[begin:end])
        if self.weight is not None:
            _add_product(self.weight, logits_gradient.T, inputs.student.hidden[begin:end])
        if self.bias is not None:
            self.bias += logits_gradient.sum(dim=0, dtype=torch.float32)


@torch.no_grad()
def _run(
    inputs: _Linear,
    settings: LossSettings,
    reduction: Reduction,
    implementation: Implementation,
    chunk_rows: int,
    gradients: _Gradients,
) -> Tensor:
    """The reduced loss; adds to the gradients that are there."""
    hidden = inputs.student.hidden
    mean = operator.mean_factor(LossInputs(hidden, hidden, inputs.labels), settings, reduction)
    wanted = any(g is not None for g in (gradients.hidden, gradients.weight, gradients.bias))
    losses = [hidden.new_zeros(0, dtype=torch.float32)]
    rooms = inputs.rooms(min(chunk_rows, len(hidden)))
    for begin in range(0, len(hidden), chunk_rows):
        end = min(begin + chunk_rows, len(hidden))
        chunk = inputs.chunk(begin, end, rooms)
        gradient = chunk.student if wanted else None
        losses.append(fused(implementation)(chunk, settings, gradient, mean))
        if gradient is not None:
            gradients.add(gradient, inputs, begin, end)
    return operator.reduced(torch.cat(losses), mean, reduction)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        inputs: _Linear,
        settings: LossSettings,
        reduction: Reduction,
        implementation: Implementation,
        chunk_rows: int,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        gradients = _Gradients(
            torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if needs[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[2] else None,
        )
        loss = _run(inputs, settings, reduction, implementation, chunk_rows, gradients)
        kept = (gradients.hidden, gradients.weight, gradients.bias)
        # Autograd hands gradients out in the dtype of what they belong to.
        ctx.save_for_backward(*(None if g is None else g.to(hidden.dtype) for g in kept))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        kept = (None if g is None else _scaled(g, upstream) for g in ctx.saved_tensors)
        return (*kept, None, None, None, None, None)


def _scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    return operator.scaled(gradient.reshape(-1, gradient.shape[-1]), upstream).view(gradient.shape)


def _check(
    student: LinearLayer, teacher: LinearLayer | SparseTeacher, reduction: Reduction, chunk_rows: int | None
) -> None:
    checks.reduction(reduction)
    if reduction == "none":
        raise ValueError("reduction must be sum or mean, got 'none': give row_weights for a loss that differs by row")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    _check_layer("student", student.hidden, student.weight, student.bias)
    if isinstance(teacher, LinearLayer):
        _check_layer("teacher", teacher.hidden, teacher.weight, teacher.bias)
        rows = len(student.hidden)
        if len(teacher.hidden) != rows:
            raise ValueError(f"the teacher must have the student's {rows} rows, got {len(teacher.hidden)}")


def _check_layer(whose: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or hidden.shape[1] == 0:
        raise ValueError(
            f"the {whose}'s hidden states and weight must be [N, H] and [V, H], H >= 1, got {list(hidden.shape)} "
            f"and {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"the {whose}'s bias must be [{len(weight)}], got {list(bias.shape)}")
    others = [weight] if bias is None else [weight, bias]
    if any(t.dtype != hidden.dtype or t.device != hidden.device for t in others):
        raise ValueError(
            f"the {whose}'s weight and bias must be {hidden.dtype} on {hidden.device}, as its hidden states"
        )
