"""No model is built that is larger than the weights that fill it: what a config says is from outside too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from compressor.errors import TeacherError

# What transformers raises where a config or weights are damaged.
NOT_LOADED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
# What no file holds: buffers such as the mask of GPT-2, a pooler, weights that stand there once and are used twice.
_TENSORS_BESIDE = 1_000
_NUMBERS_BESIDE = 1 << 26


@dataclass(frozen=True)
class Weights:
    """What lies in files: tensors, and how many numbers they are at most."""

    tensors: int
    numbers: int


@contextmanager
def built_within(weights: Weights, place: Path) -> Iterator[None]:
    """Meanwhile a module that gets more parameters and buffers than the weights at `place` can fill raises
    TeacherError, before they are filled.

    Four times the tensors, since some are split; a parameter that is put in place of another is counted once.
    """
    most_tensors, most_numbers = 4 * weights.tensors + _TENSORS_BESIDE, weights.numbers + _NUMBERS_BESIDE
    tensors = numbers = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is None or getattr(module, name, None) is not None:
            return
        tensors, numbers = tensors + 1, numbers + tensor.numel()
        if tensors > most_tensors or numbers > most_numbers:
            raise TeacherError(
                f"{place}: its settings describe a larger model than its weights fill, {weights.tensors:,} tensors of"
                f" at most {weights.numbers:,} numbers: fetch both again, from one place"
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
