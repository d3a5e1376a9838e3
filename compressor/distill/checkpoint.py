"""Where training stands, in one file that is replaced atomically: a resumed run continues as if never stopped."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from compressor.errors import TrainingError
from compressor.store import write_atomic


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers, strings, lists and dicts only: it must load without running code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint, or None where there is none. Raises TrainingError when it cannot be read."""
    if not path.is_file():
        return None
    content = io.BytesIO(path.read_bytes())
    try:
        state: dict[str, Any] = torch.load(content, weights_only=True, map_location="cpu")
    except Exception:  # damage surfaces as whatever the reader stumbles over
        raise TrainingError(
            f"{path}: the checkpoint is damaged; run again with --from distill to start training anew"
        ) from None
    return state
