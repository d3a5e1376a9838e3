"""A decoder's last layer, left to the loss: the logits of a whole batch over a large vocabulary are then never held."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.distill.record import outputs_of
from compressor.preprocess import Feed


class OpenHead:
    """The linear map from hidden states to logits, which hands the hidden states through until `close`.

    Where a model does more to its logits than that map (scales or caps them), there is none: `layer` is None.
    """

    def __init__(self, student: nn.Module, feed: Feed) -> None:
        model = next((part for part in student.modules() if isinstance(part, PreTrainedModel)), None)
        head = None if model is None else model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.layer = head if isinstance(head, nn.Linear) and _is_last(student, head, feed) else None
        if self.layer is not None:
            _hand_through(self.layer)

    def close(self) -> None:
        """The model as it was."""
        if self.layer is not None:
            del self.layer.forward
            self.layer = None


def _hand_through(layer: nn.Linear) -> None:
    layer.forward = lambda hidden: hidden  # type: ignore[method-assign, assignment]


def _is_last(student: nn.Module, head: nn.Linear, feed: Feed) -> bool:
    with torch.inference_mode():
        logits = outputs_of(student, feed)
        _hand_through(head)
        try:
            hidden = outputs_of(student, feed)
        finally:
            del head.forward
        return hidden.shape[-1] == head.in_features and torch.equal(head(hidden), logits)
