"""Where a quantized model's error comes from, as it stands in `result.json` and `quantization.json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Closeness:
    """How close a model's answers are to the float32 student's on held-out inputs, and its bytes.

    `agreement` is the task's; `snr_db` 10 log10 of the energy of float32's outputs over that of the difference, null
    where there is none.
    """

    agreement: float
    snr_db: float | None
    bytes: int

    @property
    def error(self) -> float:
        """The energy of the difference as a share of the outputs'."""
        return 0.0 if self.snr_db is None else float(10 ** (-self.snr_db / 10))


@dataclass(frozen=True)
class NoisyLayer:
    """A layer of a quantized model. `snr_db`: its output over the noise that it adds itself to what it is fed.

    `in_float32` is what the whole model would be with this layer in float32; null where that was not tried.
    """

    node: str
    operator: str
    snr_db: float
    in_float32: Closeness | None


@dataclass(frozen=True)
class Remedy:
    """The smallest change of one layer's precision that regains half or more of what float32 would there."""

    node: str
    precision: str
    then: Closeness


@dataclass(frozen=True)
class ErrorAttribution:
    """Where a quantized model's error comes from: its noisiest layers, and what would mend most of the worst one's.

    `remedy` is null where no layer alone is worth one.
    """

    model: str
    now: Closeness
    layers: tuple[NoisyLayer, ...]
    remedy: Remedy | None
