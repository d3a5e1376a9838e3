"""What a teacher wrote, on disk like other signals (see `cache`), so that students with any tokenizer learn from it.

A row has the UTF-8 of its answer, then, where that ended and was not cut off, the byte 255, which UTF-8 never has. Of
an answer that cannot be used it has nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from compressor.answered import Answer
from compressor.artifacts import TeacherSignals
from compressor.distill.cache import TEXT, RowSignals, SignalReader
from compressor.distill.record import write_rows

_END = b"\xff"


def write_texts(answers: Sequence[Answer | None], folder: Path, seconds: float) -> TeacherSignals:
    """Writes a row for each answer. Raises OSError where the disk has no room."""
    return write_rows((RowSignals(None, {}, {TEXT: _bytes_of(answer)}) for answer in answers), folder, seconds)


def read_texts(signals: TeacherSignals) -> list[Answer | None]:
    """The answers that were written. Raises TeacherError when a file changed on disk."""
    reader = SignalReader(signals)
    found: list[Answer | None] = []
    for row in range(reader.rows):
        content = reader.said(TEXT, np.array([row])).numpy().tobytes()
        found.append(Answer(content.removesuffix(_END).decode(), content.endswith(_END)) if content else None)
    return found


def _bytes_of(answer: Answer | None) -> torch.Tensor:
    content = b"" if answer is None else answer.text.encode() + (_END if answer.ended else b"")
    return torch.tensor(list(content), dtype=torch.uint8)
