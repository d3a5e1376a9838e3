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

@final
class Calibrator:
    """Statistics of tensors while batches pass, as calibrate.h describes them; some 70 KB for each tensor."""

    def __init__(self, tensors: int, threads: int) -> None: ...
    def observe(self, batch: Sequence[NDArray[np.float32]], number: int) -> bool:
        """Counts one array for each tensor, without the interpreter lock. A batch with NaN or infinity in any of them
        is left out of all, and False returned.

        Raises ValueError on another number of arrays, and on one that is not float32 in row-major order.
        """

    def statistics(self) -> dict[str, NDArray[Any]]:
        """A copy by the members of TensorStatistics, [tensors] or [tensors, width] each."""

def entropy_half_width(counts: ArrayLike, levels: int) -> int:
    """The half-width in bins of the range around the middle of `counts` that diverges least in `levels` steps.

    `counts` is [bins], an even number from `levels` (even) on; else ValueError is raised.
    """

def quantiles(samples: ArrayLike, shares: Sequence[float]) -> list[float]:
    """The quantiles of `samples` at `shares` (in 0..1), linear between neighbours.

    Here and below arrays are [count]; ValueError is raised on an empty one, on one that is not finite, and on arguments
    out of their range.
    """

def median_rank(count: int, confidence: float) -> int:
    """The rank k (from 1) so that the k-th smallest and k-th largest enclose the median; 0 if `count` is too small."""

def samples_for(share: float, confidence: float) -> int:
    """The fewest independent samples of which the largest exceeds the `share` quantile with the given confidence."""

def design_effect(samples: ArrayLike, chunk: int, threshold: float) -> float:
    """How many times more samples than independent ones are needed, 1 or more, seen from how the share of `samples` (in
    the order of time) at or below `threshold` varies between consecutive chunks of `chunk`."""

def percentile(samples: ArrayLike, chunk: int, share: float, confidence: float) -> tuple[float, float, float]:
    """The `share` quantile of `samples` (in the order of time), and the order statistics below and above that enclose
    it with the given confidence, corrected by the design effect of chunks of `chunk`; NaN for a side that the samples
    do not support."""

def stationarity(medians: ArrayLike, least_change: float) -> tuple[bool, float, float, int] | None:
    """Whether a series of block medians (above 0) stays where it is; the p-value of Pettitt's test, the relative change
    of the median across the likeliest break, and how many values lie before it.

    Moving is what the test finds at 1% and what changes by more than `least_change`. None of fewer than ten medians,
    of which no order is as rare as that.
    """

def compare(log_ratios: ArrayLike, confidence: float, least_effect: float) -> tuple[float, float, float, str]:
    """The speed-up exp(median of `log_ratios`), what encloses it (NaN for too few rounds), and "faster" or "slower"
    where the whole interval lies more than `least_effect` from 1, else "inconclusive"."""

def compare_sittings(
    sittings: Sequence[ArrayLike], confidence: float, least_effect: float
) -> tuple[float, float, float, str]:
    """`compare` of several sittings, before each of which the sessions were opened anew; the interval encloses that of
    all rounds and that of the sittings' medians, where there are enough of these for the confidence."""

def each_confidence(together: float, comparisons: int) -> float:
    """The confidence of each of `comparisons` intervals that hold together with the given one (Bonferroni)."""

def slope(x: ArrayLike, y: ArrayLike, confidence: float) -> tuple[float, float, float]:
    """The median slope of all pairs (Theil and Sen), and what encloses the true one; NaN for too few values. `x`
    ascends."""

def warm_up_length(times: ArrayLike) -> int | None:
    """How many of `times` pass until the model has warmed up; None if it does not."""

def thin_out(times: ArrayLike, most: int, seed: int) -> tuple[list[float], float]:
    """Of the times of a block: at most `most`, one at random of each run of neighbours, and the sum of all."""

def memory_use() -> tuple[int, int]:
    """Resident and peak resident bytes of this process; -1 where the system does not say."""

def external_data(model: str) -> list[bytes]:
    """Where an ONNX file says that its tensors lie outside of it: paths relative to its folder, as written there.

    Nothing of a file that cannot be read or is no protobuf. Does not follow what it finds.
    """

def saturation(a: NDArray[np.uint8], b: NDArray[np.int8]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """What clamping each sum of two products (of depths 2i and 2i + 1) to 16 bits adds to a [rows, depth] times
    b [depth, columns], as [rows, columns]; and how many sums lay outside of 16 bits, [columns].

    Both arrays C-contiguous. Raises ValueError on shapes that do not fit and on a depth above 65536, TypeError on other
    dtypes.
    """

class OrtError(RuntimeError):
    """ONNX Runtime refused: the library, the model, or an inference."""

@final
class Library:
    """An opened libonnxruntime, 1.19 or later."""

    def __init__(self, path: str) -> None: ...
    @property
    def version(self) -> str: ...
    @property
    def providers(self) -> list[str]:
        """The execution providers that it was built with."""

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
class DelayMeter:
    """Reads how long threads waited for a processor: this thread, or for `threads` above 1 all that exist now.

    After every inference that may have waited, where a reading costs less than a hundredth of `latency_ns`; else around
    a whole block.
    """

    def __init__(self, threads: int, latency_ns: float) -> None: ...
    @property
    def available(self) -> bool:
        """Whether the system tells."""

    @property
    def each_inference(self) -> bool: ...

@final
class Feed:
    """Inputs of a session and its outputs, which lie where the first run left them, if the model allows that."""

    @property
    def keeps_outputs(self) -> bool: ...
    def run(self) -> list[NDArray[Any]]:
        """One inference; its outputs in the model's order. Raises OrtError when it fails."""

    def run_block(
        self, count: int, meter: DelayMeter | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """`count` inferences, timed one by one, without the GIL.

        Returns the wall nanoseconds of each; with an available `meter` the same less what its threads waited for a
        processor, else nothing; and the CPU nanoseconds of the process for all.
        """

    def run_bare(self, count: int) -> float:
        """Wall nanoseconds of `count` inferences with nothing between them, without the GIL."""

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
    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> Feed:
        """Copies one array per input and runs twice.

        Raises ValueError when one is missing, too many, or of another dtype; OrtError when an inference fails.
        """

class NpyError(ValueError):
    """A file is not an array that can be exchanged, or an array cannot be written; one line that names the file."""

def describe_target(root: str = "") -> dict[str, Any]:
    """What does not change while a measurement runs, by the members of `Target` in machine.h; None: not known.

    Paths are looked up below `root`, so that tests can make up a machine.
    """

def read_machine(root: str = "") -> dict[str, Any]:
    """One look at counters and sensors, by the members of `Reading` in machine.h; None: cannot be read here.

    Takes some milliseconds, of the probe. Without the interpreter lock.
    """

def judge(
    before: dict[str, Any], after: dict[str, Any], target: dict[str, Any], bounds: dict[str, Any] = {}
) -> tuple[bool, list[str], list[str]]:
    """Whether a measurement between two readings counts: valid, why it does not, and what could not be read.

    The arguments have members of `Reading`, `Target` and `ValidityBounds` in machine.h, and its defaults for the rest.
    Raises ValueError on other members.
    """

def probe_ns() -> float:
    """Nanoseconds of a fixed computation in registers, the median of five. Without the interpreter lock."""

def run_delay(all_threads: bool) -> list[int]:
    """Nanoseconds that each thread, or the calling one, has waited for a processor; empty where nobody keeps them."""

def json_text(value: Any) -> str:
    """JSON as the native core writes it: None, bool, int, float, str, bytes that may not be UTF-8, list, dict.

    Raises TypeError on anything else, ValueError on more than 200 containers in one another.
    """

def read_npy(path: str) -> NDArray[Any]:
    """The array in a .npy file. Raises NpyError."""

def write_npy(path: str, array: NDArray[Any]) -> None:
    """Writes the array row-major; whoever reads sees the old file or the new one, whole. Raises NpyError."""
