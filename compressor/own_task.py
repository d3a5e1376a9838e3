"""What a user says of a task of their own, in a file of their own: arrays in, arrays out. `docs/own-task.md` shows one.

No torch here: a recipe with `task: own` names a callable that returns an `OwnTask`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """What a data file holds: `inputs` [N, ...], of what the model takes, and `truth` [N, ...]; None without labels.

    Of training data `truth` is the labels, which `OwnTask.loss` alone sees; of held-out data what the metric takes.
    """

    inputs: NDArray[Any]
    truth: NDArray[Any] | None = None


@dataclass(frozen=True)
class OwnTask:
    """A task in which examples are arrays of one shape, and answers float32 arrays of one shape.

    `read` gives what a data file holds. `input_name` and `output_name` are the graph's; the module is called with the
    inputs, [batch, ...], and returns the outputs, float32 [batch, width].
    `metric(outputs, truth)`, float32 [N, width] and [N, ...] to a number, higher is better and above 0 for any teacher
    that is worth its name; `metric_name` is what tables call it.
    `loss(student, teacher, labels)` of torch tensors, float32 [batch, width] twice and [batch, ...] or None, is a
    scalar tensor; None is the squared distance from the teacher's outputs as a share of their squared length.
    """

    read: Callable[[Path], Examples]
    metric: Callable[[NDArray[np.float32], NDArray[Any]], float]
    metric_name: str = "metric"
    loss: Callable[[Any, Any, Any], Any] | None = None
    input_name: str = "input"
    output_name: str = "output"
