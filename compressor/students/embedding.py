"""What a student has beyond its transformers class: a narrow token table, and a map to the teacher's output width.

Both are noted in the config (`student_parts`), so that a folder says how it is loaded. transformers alone loads a
folder with the second only, and leaves it out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from compressor.errors import StudentError

_NOTE = "student_parts"
OUTPUT_PROJECTION = "output_projection"


class FactorizedEmbedding(nn.Module):
    """A token table of `width` and a linear map up to `hidden`: V x E + E x H weights in place of V x H (Lan et al.
    2020, ALBERT). int64 [batch, sequence] -> float32 [batch, sequence, hidden].
    """

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.up = nn.Linear(width, hidden, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        vectors: Tensor = self.up(self.table(input_ids))
        return vectors


def refuse_tied(model: PreTrainedModel, width: int | None, hidden: int) -> None:
    """Raises StudentError when the token table cannot be narrowed to `width`."""
    if width is None:
        return
    if width >= hidden:
        raise StudentError(f"student.embedding: expected less than hidden, {hidden}, got {width}; leave it out")
    table = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is not None and head.weight is table.weight:
        raise StudentError("student.embedding: the output layer shares the token table; leave it out")
    if not isinstance(table, nn.Embedding):
        raise StudentError("student.embedding: expected a table of tokens, found none; leave it out")


def fill_parts(model: PreTrainedModel, table: Tensor, kept: Tensor) -> None:
    """Fills the parts of a model: the token table [vocabulary, hidden] at the lower rank that is nearest to it, by its
    singular value decomposition; the output projection with each dimension at its place `kept` in the teacher.
    """
    narrow = model.get_input_embeddings()
    with torch.no_grad():
        if isinstance(narrow, FactorizedEmbedding):
            width = narrow.table.embedding_dim
            left, values, right = torch.linalg.svd(table.double(), full_matrices=False)
            narrow.table.weight.copy_(left[:, :width] * values[:width])
            narrow.up.weight.copy_(right[:width].T)
        if OUTPUT_PROJECTION in dict(model.named_children()):
            projection: Any = model.get_submodule(OUTPUT_PROJECTION)
            projection.weight.zero_()
            projection.weight[kept, torch.arange(len(kept))] = 1.0


def note_parts(config: PretrainedConfig, embedding: int | None, output: int | None) -> None:
    """Notes the widths of a narrow token table and of an output projection in a config, for `put_parts`."""
    parts = {"embedding": embedding, "output": output}
    if found := {name: width for name, width in parts.items() if width is not None}:
        setattr(config, _NOTE, found)


def student_parts(config: PretrainedConfig) -> dict[str, int]:
    """What a config notes of them: "embedding" and "output", each a width. Raises StudentError for other notes."""
    parts = getattr(config, _NOTE, None) or {}
    if not isinstance(parts, dict) or not parts.keys() <= {"embedding", "output"}:
        raise StudentError(f"config.json: {_NOTE}: expected widths of embedding and output, got {parts!r}")
    if wrong := [value for value in parts.values() if type(value) is not int or value < 1]:
        raise StudentError(f"config.json: {_NOTE}: expected widths from 1 on, got {wrong[0]!r}")
    return dict(parts)


def put_parts(model: PreTrainedModel) -> None:
    """Gives a new model of a student's config the parts that the config notes, with weights yet to be loaded."""
    parts = student_parts(model.config)
    hidden = model.config.hidden_size
    if "embedding" in parts:
        model.set_input_embeddings(FactorizedEmbedding(model.config.vocab_size, parts["embedding"], hidden))
    if "output" in parts:
        model.add_module(OUTPUT_PROJECTION, nn.Linear(hidden, parts["output"], bias=False))
