"""The C++ module: plain functions on contiguous arrays, and ONNX Runtime through its C function table."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

def distill_loss(
    student: NDArray[np.float32],
    teacher: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    loss: NDArray[np.float32],
    gradient: NDArray[np.float32],
    temperature: float,
    hard_weight: float,
    ignore_index: int,
    threads: int,
) -> None:
    """Writes `loss` [rows] and `gradient` [rows, width] for `student` and `teacher` [rows, width], labels [rows].

    All arrays are C-contiguous; `compressor.kernels.reference` gives the formula. Raises ValueError on extents or
    labels that do not fit, TypeError on other dtypes or layouts.
    """

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
