"""What an int8 candidate is made from: the float32 graph, or one that computes the same and errs less in int8.

Scales are moved between layers (`seams`, `scales`), then biases corrected (`bias`). Both are tried as a whole and kept
where the answers to held-out examples are nearer to float32's beyond chance; else the graph stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.preprocess import Feed
from compressor.quantize.bias import bias_errors
from compressor.quantize.channels import channels, run_on
from compressor.quantize.scales import choose_scales
from compressor.quantize.seams import find_seams, move
from compressor.quantize.thresholds import Range

# float32 on both sides: of a value, and of the largest in its output.
_RELATIVE, _OF_LARGEST = 1e-4, 1e-5
_FEWEST = 4  # examples
# Times the standard error of the mean of what is gained.
_BEYOND_CHANCE = 2.0
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Prepared:
    """A float32 model, the ranges of its values, and by how much int8 moves the mean of its products, by node.

    `said`: what was tried and what came of it, for a reader.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    errors: Mapping[str, NDArray[np.float64]]
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trying:
    """How a candidate is tried: `ranges(model)` are found on `calibration`, `write(prepared)` makes it, and `held_out`
    judges, by `every_output` or by the first."""

    calibration: Sequence[Feed]
    held_out: Sequence[Feed]
    ranges: Callable[[onnx.ModelProto], Mapping[str, Range]]
    write: Callable[[Prepared], onnx.ModelProto]
    every_output: bool = False


def prepare(plain: Prepared, products: Sequence[str], trying: Trying, *, migrate: bool, correct_bias: bool) -> Prepared:
    """The best of `plain`, of it with scales moved before these products, and of either with biases corrected. With too
    few examples to judge on, `plain`.

    Raises QuantizationError where the model does not run on the examples.
    """
    if not (products and (migrate or correct_bias)):
        return plain
    if len(trying.held_out) < _FEWEST:
        return replace(plain, said=(f"as it is: {_FEWEST} held-out examples or more would judge changes to it",))
    judge = _Judge(plain.model, trying)
    if migrate:
        plain = _migrated(plain, products, trying, judge)
    if correct_bias:
        rounded = trying.write(plain)
        errors = bias_errors(plain.model, rounded, trying.calibration)
        plain = judge.better(plain, replace(plain, errors=errors), "bias correction", f"of {len(errors)} products")
    return plain


def _migrated(plain: Prepared, products: Sequence[str], trying: Trying, judge: _Judge) -> Prepared:
    seams = find_seams(plain.model, products)
    seen = channels(plain.model, {seam.value: seam.axis for seam in seams}, trying.calibration) if seams else {}
    scales = choose_scales(plain.model, seams, seen)
    if not scales:
        return replace(plain, said=(*plain.said, f"migration: of {len(seams)} places none is expected to gain"))
    moved = move(plain.model, scales)
    if not judge.computes_the_same(moved):
        return replace(plain, said=(*plain.said, "migration: not equal to float32 up to rounding; undone"))
    added = sum(not seam.folds for seam in scales)
    what = f"at {len(scales)} of {len(seams)} places, {added} by a Mul"
    return judge.better(plain, replace(plain, model=moved, ranges=trying.ranges(moved)), "migration", what)


class _Judge:
    """Holds models against the float32 one, example by example: nothing is kept of what they answer."""

    def __init__(self, source: onnx.ModelProto, trying: Trying) -> None:
        self._source, self._trying = source, trying

    def computes_the_same(self, model: onnx.ModelProto) -> bool:
        return all(
            got.shape == exact.shape
            and np.allclose(got, exact, rtol=_RELATIVE, atol=_OF_LARGEST * float(np.abs(exact).max(initial=0.0)))
            for outputs in self._answers(model)
            for got, exact in outputs
        )

    def better(self, old: Prepared, new: Prepared, name: str, what: str) -> Prepared:
        """`new` where it errs less on held-out examples beyond chance, else `old`."""
        before, after = self._errors(old), self._errors(new)
        gained = before - after
        kept = gained.mean() > _BEYOND_CHANCE * gained.std(ddof=1) / np.sqrt(len(gained))
        decibels = " to ".join(f"{_decibels(errors):.1f}" for errors in (before, after))
        said = f"{name} {what}: signal to error from {decibels} dB, {'kept' if kept else 'undone'}"
        return replace(new if kept else old, said=(*old.said, said))

    def _errors(self, prepared: Prepared) -> NDArray[np.float64]:
        """Of each held-out example the squared error of an output, as a share of its square; the worst one's."""
        answers = self._answers(self._trying.write(prepared))
        return np.array([max((_error(*pair) for pair in outputs), default=0.0) for outputs in answers])

    def _answers(self, model: onnx.ModelProto) -> Iterator[list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
        """The outputs of both for each held-out example, of those that are judged and are floats."""
        held_out = self._trying.held_out
        judged = None if self._trying.every_output else 1
        for got, exact in zip(run_on(model, held_out), run_on(self._source, held_out), strict=True):
            pairs = zip(got[:judged], exact[:judged], strict=True)
            yield [(mine, its) for mine, its in pairs if np.issubdtype(its.dtype, np.floating)]


def _error(got: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    if got.shape != exact.shape:
        return 1.0
    signal, noise = (
        np.square(one).sum() for one in (exact.astype(np.float64), np.subtract(got, exact, dtype=np.float64))
    )
    return float(noise / signal) if signal > 0 else float(noise > 0)


def _decibels(errors: NDArray[np.float64]) -> float:
    return float(-10 * np.log10(max(errors.mean(), _TINY)))
