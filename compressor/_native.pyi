"""The C++ module: plain functions on contiguous arrays, and ONNX Runtime through its C function table."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

@final
class Matrix:
    """A row-major matrix in memory: the address of its first element, elements from one row to the next, and float32,
    bfloat16 or float16. Nothing keeps that memory alive."""

    def __init__(self, address: int, stride: int, dtype: str) -> None: ...

@final
class DistillProblem:
    """One call of the loss, as `distill_loss.h` describes it: addresses, extents and scalars."""

    rows: int
    width: int
    soft_width: int
    teacher_width: int
    student: Matrix
    teacher: Matrix
    gradient: Matrix
    labels: int
    row_weights: int
    class_weights: int
    loss: int
    indices: int
    values: int
    known: int
    sparse_mode: str
    divergence: str
    beta: float
    temperature: float
    student_scale: float
    teacher_scale: float
    soft_weight: float
    hard_weight: float
    label_smoothing: float
    gradient_scale: float
    ignore_index: int
    def __init__(self) -> None: ...

def distill_loss(problem: DistillProblem, instruction_set: str, threads: int) -> None:
    """Writes the losses and the gradient that `problem` points to, without the interpreter lock.

    Raises ValueError on extents, labels or indices out of range, on names that do not exist, and on an instruction set
    that `instruction_sets` does not list. What the addresses point to is the caller's word.
    """

def instruction_sets() -> list[str]:
    """Those of baseline, avx2, avx512, neon that this build has and this processor runs, the preferred one last."""

def quantiles(samples: ArrayLike, shares: Sequence[float]) -> list[float]:
    """The quantiles of `samples` at `shares` (in 0..1), linear between neighbours. Raises ValueError when empty."""

def median_rank(count: int, confidence: float) -> int:
    """The rank k (from 1) so that the k-th smallest and k-th largest enclose the median; 0 if `count` is too small."""

def memory_use() -> tuple[int, int]:
    """Resident and peak resident bytes of this process; -1 where the system does not say."""

class OrtError(RuntimeError):
    """ONNX Runtime refused: the library, the model, or an inference."""

@final
class Library:
    """An opened libonnxruntime, 1.19 or later."""

    def __init__(self, path: str) -> None: ...
    @property
    def version(self) -> str: ...

@final
class TensorInfo:
    """An input or output of a model: -1 in `shape` is a dynamic dimension, named in `symbols` when it has a name."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def symbols(self) -> list[str]: ...

@final
class Inputs:
    """Arrays for one inference, held in the runtime's form; made by `Session.prepare`."""

@final
class Session:
    """A model, ready to run on the CPU. Raises OrtError when it does not load."""

    def __init__(
        self, library: Library, model: str, threads: int = 1, optimization_level: int = 99, spin: bool = False
    ) -> None: ...
    @property
    def inputs(self) -> list[TensorInfo]: ...
    @property
    def outputs(self) -> list[TensorInfo]: ...
    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> Inputs:
        """Copies one array per input. Raises ValueError when one is missing, too many, or of another dtype."""

    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        """One inference; its outputs in the model's order."""

    def run_block(self, inputs: Sequence[Inputs], start: int, count: int) -> tuple[NDArray[np.int64], int, int]:
        """`count` inferences, the i-th on inputs[(start + i) % len(inputs)], without the GIL.

        Returns the wall nanoseconds of each, and the CPU nanoseconds of this thread and of the process for all.
        """
