"""The student as it is trained: with taps, and with projections onto the teacher's widths that do not ship."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.artifacts import TapPair
from compressor.distill.head import OpenHead
from compressor.distill.record import outputs_of
from compressor.distill.taps import HIDDEN, Taps
from compressor.errors import StudentError
from compressor.preprocess import Feed


class Learner(nn.Module):
    """The deployable student; `forward` gives its first output, and its taps at the teacher's widths.

    Hidden states of another width than the teacher's go through a linear map that learns with the student; relations
    are compared whatever their width.
    """

    def __init__(self, student: nn.Module, width: int | None, teacher_widths: dict[TapPair, int], feed: Feed) -> None:
        """`width` of the teacher's outputs; None where few of them are kept: then a linear head is left to the loss.
        `teacher_widths` of its taps. Raises StudentError.
        """
        super().__init__()
        self.student = student
        self._taps = Taps(student, [pair.student for pair in teacher_widths], StudentError)
        with torch.inference_mode():
            given = outputs_of(student.eval(), feed).shape[-1]
        if width is not None and given != width:
            raise StudentError(f"the student gives {given} numbers for an input, its teacher {width}; they must agree")
        widths = {name: value.shape[-1] for name, value in self._taps.take().items()}
        self.projections = nn.ModuleDict()
        for pair, wanted in teacher_widths.items():
            if pair.kind == HIDDEN and widths[pair.student] != wanted:
                self.projections[_key(pair)] = nn.Linear(widths[pair.student], wanted, bias=False)
        self._pairs = tuple(teacher_widths)
        self._head = OpenHead(student, feed) if width is None else None

    def forward(self, feed: Feed) -> tuple[Tensor, dict[TapPair, Tensor], tuple[Tensor, ...]]:
        """The outputs, float [batch, width] or [batch, sequence, width], of each pair float [batch, sequence, the
        teacher's width], and the weight and bias of a head that is left to the loss, whose inputs the outputs then are.
        """
        output = outputs_of(self.student, feed)
        values = self._taps.take()
        found = {}
        for pair in self._pairs:
            value = values[pair.student]
            found[pair] = self.projections[_key(pair)](value) if _key(pair) in self.projections else value
        # As views, since gradients of several processes are gathered for what `forward` computed.
        return output, found, tuple(part.view_as(part) for part in self.head)

    @property
    def head(self) -> tuple[Tensor, ...]:
        """Weight and bias of a head that is left to the loss."""
        layer = self._head.layer if self._head is not None else None
        return () if layer is None else tuple(part for part in (layer.weight, layer.bias) if part is not None)

    def close(self) -> None:
        """The student without its hooks, as it was."""
        self._taps.close()
        if self._head is not None:
            self._head.close()


def _key(pair: TapPair) -> str:
    return f"{pair.student}-{pair.teacher}".replace(".", "_")


def still(module: nn.Module) -> None:
    """Turns dropout off: the targets are exact, and noise on the student's side only slows it down."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name, value in vars(part).items():  # what attention hands to a function: attention_dropout, dropout_prob
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)
