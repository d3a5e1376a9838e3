"""Where training stands, in one file that is replaced atomically: a resumed run continues as if never stopped.

The file is what torch.save writes, and the SHA-256 of that in 32 bytes.
"""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from compressor.errors import TrainingError
from compressor.store import stage_of, write_atomic

_DIGEST_BYTES = 32


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers, strings, lists and dicts only: it must load without running code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint, or None where there is none. Raises TrainingError when it is not what was saved."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    saved, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    try:
        if hashlib.sha256(saved).digest() != digest:
            raise ValueError
        state: dict[str, Any] = torch.load(io.BytesIO(saved), weights_only=True, map_location="cpu")
    except (ValueError, UnpicklingError):  # the latter of a file that was made to run code
        raise TrainingError(
            f"{path}: the checkpoint is damaged; run again with --from {stage_of(path.parent)} to start this training"
            " anew"
        ) from None
    return state


def random_states() -> dict[str, Any]:
    """Of every generator that code in a module may draw from, as tensors, numbers and lists."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": [list(part) if isinstance(part, tuple) else part for part in random.getstate()],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Puts back what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
