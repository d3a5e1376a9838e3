"""Examples that models are held against float32 on, and those that they cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts import Interval
from compressor.errors import BundleError, QuantizationError
from compressor.likeness import agreements, closeness, worst_agreement
from compressor.model_inputs import ArrayExamples
from compressor.onnxrt import all_outputs
from compressor.preprocess import Feed
from compressor.quantize.calibration_file import sha256_feeds
from compressor.searching import Judging
from compressor.verify.quality import bootstrap

_TIMED = 64  # of them, that a model is timed on


@dataclass(frozen=True)
class HeldOut:
    """What models are held against float32 on: what an inference each is fed, and float32's outputs for it."""

    feeds: tuple[Feed, ...]
    expected: Sequence[Sequence[NDArray[Any]]]

    def judging(self, threads: int) -> Judging:
        """On all of it; timed on the first."""
        feeds, expected = self.feeds, self.expected
        return Judging(lambda path: closeness(path, feeds, expected), sha256_feeds(feeds), feeds[:_TIMED], threads)

    def agreement(self, path: Path) -> Interval:
        """Of the model at this path, of its worst output, with the 95% interval of a bootstrap over the examples."""
        products = agreements(path, self.feeds, self.expected)
        return bootstrap(lambda drawn, _: worst_agreement(drawn), products, products)


def held_out_of(
    float32: Path, examples: ArrayExamples, judged_on: Sequence[NDArray[Any]], permitted: float | None
) -> HeldOut:
    """These examples (`ArrayExamples.encode`), without those that have NaN, or for which float32 itself answers NaN or
    infinity.

    Raises QuantizationError where those are all, or more than `permitted`, a share, and where the model does not run.
    """
    feeds = tuple(examples.collate([one]) for one in judged_on)
    try:
        expected = all_outputs(float32, feeds)
    except BundleError as error:
        raise QuantizationError(f"the float32 model does not take these examples: {error}") from None
    # Infinity among the inputs may be meant: masks have it.
    fit = [
        not any(np.isnan(array).any() for array in _floats(feed.values()))
        and all(np.isfinite(array).all() for array in _floats(outputs))
        for feed, outputs in zip(feeds, expected, strict=True)
    ]
    bad = len(feeds) - sum(fit)
    if bad > (permitted or 0) * len(feeds) or bad == len(feeds):
        more = "" if permitted is None else f", or raise quantize.max_bad_batches above {permitted:.3g}"
        first = int(judged_on[fit.index(False)][0])
        raise QuantizationError(
            f"{bad:,} of {len(feeds):,} held-out examples have NaN, or NaN or infinity in what float32 answers,"
            f" the first of them example {first:,}; leave such examples out{more if bad < len(feeds) else ''}"
        )
    return HeldOut(tuple(compress(feeds, fit)), list(compress(expected, fit)))


def _floats(arrays: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
    return [array for array in arrays if np.issubdtype(array.dtype, np.floating)]
