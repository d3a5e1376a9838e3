"""What a task is: the one place that knows its inputs, outputs, metric and what two models agree on.

A task file holds a frozen class with these members; stages call them and know nothing else of the task.
"Outputs" are always the first output of the graph: embeddings or logits, float32 [N, width], or where a task answers
each token [N, sequence, width]. What is judged are rows: one for each input, or for each token that is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.preprocess import Feed, Preprocessor, whole_output
from compressor.progress import Progress

# Of the student's answers, the teacher's and the labels (or None), a scalar: what a task of the user's own may bring.
Loss = Callable[[Tensor, Tensor, Any], Tensor]


class WholeInputs:
    """Those members of a task that are the same wherever an input as a whole is answered."""

    per_token = False
    judged = staticmethod(whole_output)
    compared = staticmethod(whole_output)

    def positions(self, example: NDArray[Any]) -> NDArray[np.int64]:
        raise NotImplementedError("inputs are answered as a whole")

    @property
    def loss(self) -> Loss | None:
        return None

    def shared(self, mine: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        raise NotImplementedError("inputs are answered as a whole")

    def labels(self, data: TaskData, examples: Sequence[NDArray[Any]]) -> NDArray[np.int64] | None:  # noqa: ARG002
        return data.labels

    def golden_inputs(self, sample: list[Any]) -> list[Any]:
        return sample

    def timed(self, preprocessor: Preprocessor, example: NDArray[Any]) -> Feed:
        return preprocessor.collate([example])


@dataclass(frozen=True)
class TaskData:
    """Raw inputs (text, lists of words, or uint8 images). The last `holdout` training rows choose the best checkpoint.

    `labels` int64 [len(train)] or None. `eval_inputs` are distinct; `truth` int64 [examples] is what answers are
    judged by. `described` says in words what was read, for the report. `train_tags` and `eval_tags` are the classes of
    the words of each input, int64 [words], where words are what is classified.
    """

    train: Sequence[Any] | NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    holdout: int
    eval_inputs: Sequence[Any] | NDArray[np.uint8]
    truth: NDArray[np.int64]
    described: dict[str, str]
    pairs: NDArray[np.int64] | None = None
    train_tags: Sequence[NDArray[np.int64]] = ()
    eval_tags: Sequence[NDArray[np.int64]] = ()


class Task(Protocol):
    @property
    def metric_name(self) -> str:
        """What `metric` is called in tables."""

    @property
    def views(self) -> int:
        """In how many ways an example may be shown in training, the plain one included."""

    def load_data(self, cache: Path, progress: Progress) -> TaskData:
        """Reads the recipe's data files. Raises DataError."""

    def deployable(self, model: nn.Module) -> nn.Module:
        """The model with everything that ships in the graph; its keyword arguments are a feed's names."""

    def preprocessor(self, folder: Path | None) -> Preprocessor:
        """For the teacher (folder None) or for a student's folder."""

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        """The example as augmentation `index` of `views` shows it; 0 is the example itself."""

    @property
    def per_token(self) -> bool:
        """Whether single tokens are answered, not an input as a whole."""

    @property
    def loss(self) -> Loss | None:
        """The task's own loss; None where the recipe's settings say what it is."""

    def positions(self, example: NDArray[Any]) -> NDArray[np.int64]:
        """Which tokens of an encoded example are answered: int64 [positions]; of a task that answers tokens."""

    def shared(self, mine: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of one input as student and as teacher read it: which of the positions of each are answered by both, in the
        same order; indices into `positions`, int64 [shared] each. Raises StudentError where they cannot be compared.
        """

    def labels(self, data: TaskData, examples: Sequence[NDArray[Any]]) -> Sequence[Any] | NDArray[np.int64] | None:
        """Labels of the encoded training examples: int64 [examples], for each an int64 [positions], or None."""

    def judged(self, output: NDArray[np.float32], example: NDArray[Any]) -> NDArray[np.float32]:
        """What quality is judged by, of an example's output (without the batch's dimension): float32 [rows, width]."""

    def compared(self, output: NDArray[np.float32], example: NDArray[Any]) -> NDArray[np.float32]:
        """What parity compares of it: float32 [rows, width]."""

    def graph(self, width: int, preprocessor: Preprocessor) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Inputs and outputs of the exported graph, dynamic dimensions by name; `width` is that of the first output."""

    def shape_feeds(self, preprocessor: Preprocessor) -> list[Feed]:
        """Feeds of several dynamic shapes, batch 1, 2 and n, that an exported graph must take."""

    def edge_inputs(self) -> list[Any]:
        """Raw inputs at the edge of what is legal: empty, longest, odd."""

    def golden_inputs(self, sample: list[Any]) -> list[Any]:
        """Raw inputs for a bundle's golden cases, from a sample of the held-out ones."""

    def timed(self, preprocessor: Preprocessor, example: NDArray[Any]) -> Feed:
        """What one timed inference is fed."""

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:
        """Judged rows of `data.eval_inputs` to one answer per example of `data.truth`."""

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:
        """The task metric, higher is better."""

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        """How close two models' judged rows are, 1 is equal; `teacher` is what `outputs` are held against."""

    def answer_settings(self, student: Path) -> dict[str, Any]:
        """What a predictor needs to turn outputs into answers; goes into the bundle's manifest. `student` is the folder
        of the trained student.
        """
