"""An exhausted memory, turned into one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compressor.errors import TrainingError, out_of_memory


@contextmanager
def exhausted_memory(words: str) -> Iterator[None]:
    """Raises TrainingError, with these words, where memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(f"out of memory {words}") from None


@contextmanager
def memory_for(batch_size: int) -> Iterator[None]:
    """Says which batch size to try where memory runs out. Raises TrainingError."""
    smaller = f"try --set distill.batch_size={batch_size // 2}, or a larger distill.accumulate"
    least = "no smaller one can be had: shorten student.max_length, cut a smaller student, or free memory"
    with exhausted_memory(f"at a batch of {batch_size}; {smaller if batch_size >= 4 else least}"):
        yield
