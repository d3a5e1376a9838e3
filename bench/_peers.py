"""The losses of torchdistill and TextBrewer, run from their own packages, each checked against its formula in float64.

Each has the settings that its authors document and, where it has a temperature, also this program's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench._peer_packages import load
from bench._training import Loss
from compressor.errors import BenchmarkError

TORCHDISTILL, TEXTBREWER = "torchdistill", "TextBrewer"

Array = NDArray[np.float64]
Reference = Callable[[Array, Array, NDArray[np.int64]], float]


@dataclass(frozen=True)
class Peer:
    """`settings`: which loss, and with what. `reference`: the same in float64, of the same arguments."""

    package: str
    settings: str
    loss: Loss
    reference: Reference

    def apart(self, unit: bool) -> float:
        """How far loss and reference are from each other, as a share, on made outputs (`unit`: of unit length).

        Raises BenchmarkError beyond float32's rounding.
        """
        draw = np.random.default_rng(0)
        student, teacher = draw.normal(0, 2, (2, 32, 25))
        if unit:
            student, teacher = _rows_of_unit(student), _rows_of_unit(teacher)
        labels = draw.integers(0, 25, 32)
        loss = float(self.loss(torch.tensor(student).float(), torch.tensor(teacher).float(), torch.tensor(labels)))
        wanted = self.reference(student, teacher, labels)
        apart = abs(loss - wanted) / abs(wanted)
        if not apart < 1e-5:
            raise BenchmarkError(
                f"{self.package}, {self.settings}: expected {wanted:.7g} by its formula, got {loss:.7g}"
            )
        return apart


@dataclass(frozen=True)
class Absent:
    """A package that does not run here, and why."""

    package: str
    reason: str


def of_classes(temperatures: tuple[float, ...], weight: float, *, documented: bool) -> list[Peer | Absent]:
    """Losses of logits at these temperatures; `weight` of the labels as in torchdistill's examples for this kind of
    data. `documented`: TextBrewer's also at its own temperature.
    """
    found: list[Peer | Absent] = []
    found += _of(TORCHDISTILL, lambda: [_kd(one, weight) for one in dict.fromkeys(temperatures)])
    return found + _of(TEXTBREWER, lambda: _brewed(temperatures[-1], documented))


def of_embeddings() -> list[Peer | Absent]:
    """Losses of unit vectors; they have no parameters."""
    found: list[Peer | Absent] = []
    found += _of(TORCHDISTILL, _similarity)
    return found + _of(TEXTBREWER, _cosine)


def _of(package: str, make: Callable[[], list[Peer]]) -> list[Peer] | list[Absent]:
    try:
        return make()
    except BenchmarkError as error:
        return [Absent(package, str(error))]


def _kd(temperature: float, weight: float) -> Peer:
    kd = load("torchdistill.losses.mid_level").KDLoss("s", "output", "t", "output", temperature, weight)

    def reference(student: Array, teacher: Array, labels: NDArray[np.int64]) -> float:
        hard = -_log_softmax(student)[np.arange(len(labels)), labels].mean()
        divergence = _cross_entropy(student, teacher, temperature) - _cross_entropy(teacher, teacher, temperature)
        return float(weight * hard + (1 - weight) * temperature**2 * divergence)

    name = f"KDLoss, temperature {temperature:g}, labels {weight:g}"
    return Peer(TORCHDISTILL, name, lambda s, t, labels: kd(_tapped("s", s), _tapped("t", t), labels), reference)


def _brewed(ours: float, documented: bool) -> list[Peer]:
    """What its distiller adds up by default: logits alone."""
    config = load("textbrewer").DistillationConfig()
    assert (config.kd_loss_weight, config.hard_label_weight) == (1, 0)
    own = (float(config.temperature),) if documented else ()
    return [_ce(config.kd_loss_type, temperature) for temperature in dict.fromkeys((*own, ours))]


def _ce(kind: str, temperature: float) -> Peer:
    divergence = load("textbrewer.presets").KD_LOSS_MAP[kind]
    return Peer(
        TEXTBREWER,
        f"{kind}, temperature {temperature:g}",
        lambda s, t, _: divergence(s, t, temperature),
        lambda s, t, _: _cross_entropy(s, t, temperature),
    )


def _similarity() -> list[Peer]:
    alike = load("torchdistill.losses.mid_level").SPKDLoss("s", "t", "batchmean")

    def reference(student: Array, teacher: Array, labels: NDArray[np.int64]) -> float:  # noqa: ARG001
        # Its rows are of length 1 by their absolute values; Tung & Mori have them so by their squares.
        rows = [
            cosines / np.abs(cosines).sum(axis=1, keepdims=True)
            for cosines in (student @ student.T, teacher @ teacher.T)
        ]
        return float(np.square(rows[0] - rows[1]).sum() / len(student) ** 2)

    return [Peer(TORCHDISTILL, "SPKDLoss", lambda s, t, _: alike(_tapped("s", s), _tapped("t", t)), reference)]


def _cosine() -> list[Peer]:
    cosine = load("textbrewer.presets").MATCH_LOSS_MAP["cos"]  # its pkd is twice that of unit vectors

    def reference(student: Array, teacher: Array, labels: NDArray[np.int64]) -> float:  # noqa: ARG001
        return float(1 - (_rows_of_unit(student) * _rows_of_unit(teacher)).sum(axis=1).mean())

    return [Peer(TEXTBREWER, "cos", lambda s, t, _: cosine(s, t), reference)]


def _tapped(path: str, output: Tensor) -> dict[str, Any]:
    """As torchdistill hands outputs to its losses."""
    return {path: {"output": output}}


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    rows: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return rows


def _cross_entropy(student: Array, teacher: Array, temperature: float) -> float:
    probabilities = np.exp(_log_softmax(teacher / temperature))
    return float(-(probabilities * _log_softmax(student / temperature)).sum(axis=1).mean())


def _rows_of_unit(matrix: Array) -> Array:
    rows: Array = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return rows
