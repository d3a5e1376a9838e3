"""How far each converted model is from the one that it was made from: on real inputs, on inputs at the edge, and in
several shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.artifacts import Parity
from compressor.errors import ExportError
from compressor.metrics import mean_cosine, same_top1
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed, Keep, Preprocessor

# float32 on both sides: the orders of summation differ, nothing else may. 1e-5 is optimum's and Polygraphy's bound.
FLOAT_ABSOLUTE = 1e-5
FLOAT_RELATIVE = 1e-4
# A deep model amplifies rounding beyond that, on some inputs hundreds of times more than on others. Where torch in
# float64 says what is right, a model may be so many times as far from it as float32 is: the reference's, and that of so
# many copies whose weights are another rounding of the same numbers. One rounding alone may be right by luck.
FLOAT64_TIMES = 4
ROUNDINGS = 8
# int8 is another function: here only that it is finite and points the same way. Its quality is the gate's affair.
INT8_COSINE = 0.9
# A mean hides single inputs: of none may the answer be further off than it is long.
INT8_DISTANCE = 1.0

Answer = Callable[[Feed], NDArray[Any]]
Answers = list[NDArray[Any]]  # for each probe float32 [rows, width]
Where = Callable[[Feed], str | None]


@dataclass(frozen=True)
class Probe:
    """A feed, and what is compared of the first output for it: float32 [rows, width]."""

    feed: Feed
    compared: Callable[[NDArray[Any]], NDArray[Any]]


def probes_of(preprocessor: Preprocessor, inputs: Sequence[Any], keep: Keep) -> tuple[Probe, ...]:
    """One for each raw input, alone in its batch."""

    def probe(example: NDArray[Any]) -> Probe:
        return Probe(preprocessor.collate([example]), lambda output: keep(output[0], example))

    return tuple(probe(example) for example in preprocessor.encode(inputs))


def probes_in_shapes(feeds: Sequence[Feed]) -> tuple[Probe, ...]:
    """One for each feed, everything compared."""
    return tuple(Probe(feed, lambda output: output.reshape(-1, output.shape[-1])) for feed in feeds)


def by_torch(module: nn.Module) -> Answer:
    """The module's first output; its keyword arguments are a feed's names."""

    def answer(feed: Feed) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = module(**{name: torch.from_numpy(feed[name]) for name in feed})[0].numpy()
        return output

    return answer


def by_torch_in_float64(module: nn.Module) -> Answer:
    """The same of a copy of the module whose weights, and float inputs, are float64: float64 [batch, ...]."""
    precise = copy.deepcopy(module).double()

    def answer(feed: Feed) -> NDArray[Any]:
        return by_torch(precise)({n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in feed.items()})

    return answer


def by_torch_rounded_anew(module: nn.Module, seed: int) -> Answer:
    """The same of a copy whose float32 weights are each its neighbour, above or below, or itself: float32 [batch, ...].
    Zeros, which are exact, stay, and so does what has no finite neighbour.

    Every sum within is rounded otherwise then, which tells what rounding does to the answer: Parker, Monte Carlo
    Arithmetic (1997), draws it at every operation.
    """
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.dtype == torch.float32:
                steps = torch.randint(-1, 2, weight.shape, generator=generator)
                moved = torch.nextafter(weight, torch.where(steps == 0, weight, steps * torch.inf))
                weight.copy_(torch.where((weight == 0) | ~moved.isfinite(), weight, moved))
    return by_torch(other)


def by_onnx(model: Path) -> Answer:
    """The graph's first output. Raises BundleError."""
    session = open_session(model)

    def answer(feed: Feed) -> NDArray[np.float32]:
        output: NDArray[np.float32] = run_one(session, feed)[0]
        return output

    return answer


def equal_floats(got: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Up to rounding: |got - expected| <= 1e-5 + 1e-4 |expected| everywhere, all of it finite."""
    error = np.abs(np.subtract(got, expected, dtype=np.float64))
    return bool((error <= FLOAT_ABSOLUTE + FLOAT_RELATIVE * np.abs(expected)).all())


def same_way(got: NDArray[Any], expected: NDArray[Any]) -> bool:
    """A mean cosine of 0.9 or more, all of it finite."""
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return False
    rows = (-1, got.shape[-1] if got.ndim else 1)
    return mean_cosine(got.reshape(rows), expected.reshape(rows)) >= INT8_COSINE


def answers(answer: Answer, probes: Sequence[Probe]) -> Answers:
    """What is compared, for each probe."""
    return [probe.compared(answer(probe.feed)) for probe in probes]


def compare(
    name: str,
    reference: str,
    given: tuple[Answers, Answers],
    probes: Sequence[Probe],
    where: Where,
    *,
    source: nn.Module | None,
) -> Parity:
    """Parity of the model `name` with its `reference`, by what both answered to the probes, in this order.

    With `source`, the module that both compute in float32, `equal_floats` must hold, or else the model's largest
    distance from what the module answers in float64 be at most four times that of the reference, or of the furthest of
    eight copies rounded anew. Without, a mean cosine of all rows of 0.9 or more, and of each probe a distance of at
    most the length of the reference's answer, or of its median one. What is not finite fails. Where it does not hold,
    `where` is asked for the first place at which both part on the probe that is worst.
    """
    got, expected = (np.concatenate(one) for one in given)
    found = measured(name, reference, got, expected, exact=source is not None)
    shapes = {tuple(array.shape for array in probe.feed.values()) for probe in probes}
    found = replace(found, inputs=len(probes), shapes=len(shapes))
    if source is None:
        furthest = _furthest(*given)
        bound = f"{found.bound}, no answer off by more than {INT8_DISTANCE:g} times its length ({furthest:.2g})"
        found = replace(found, holds=found.holds and furthest <= INT8_DISTANCE, bound=bound)
    elif not found.holds and np.isfinite(got).all() and np.isfinite(expected).all():
        own, allowed = _from_float64(source, got, expected, probes)
        bound = f"{found.bound}, or <= {allowed:.2g} from float64, {FLOAT64_TIMES} times what rounding does"
        found = replace(found, holds=own <= allowed, bound=bound)
    if found.holds:
        return found
    worst = max(range(len(probes)), key=lambda number: _distance(given[0][number], given[1][number]))
    return replace(found, departs_at=where(probes[worst].feed))


def measured(
    name: str, reference: str, got: NDArray[np.float32], expected: NDArray[np.float32], *, exact: bool
) -> Parity:
    """Parity of outputs, float32 [rows, width] each."""
    finite = bool(np.isfinite(got).all() and np.isfinite(expected).all())
    cosine = mean_cosine(got, expected) if finite else 0.0
    return Parity(
        name=name,
        reference=reference,
        inputs=len(got),
        shapes=1,
        max_abs_error=float(np.abs(got - expected).max()) if finite else float(np.finfo(np.float32).max),
        mean_cosine=cosine,
        top1_agreement=same_top1(got, expected) if finite else 0.0,
        holds=finite and (equal_floats(got, expected) if exact else cosine >= INT8_COSINE),
        bound=(
            f"|difference| <= {FLOAT_ABSOLUTE:g} + {FLOAT_RELATIVE:g} |value|"
            if exact
            else f"mean cosine >= {INT8_COSINE:g}"
        ),
        departs_at=None,
    )


def require(parity: Parity) -> Parity:
    """The same parity. Raises ExportError where it does not hold."""
    if not parity.holds:
        raise ExportError(
            f"{parity.name} departs from {parity.reference}: largest difference {parity.max_abs_error:.3g}, mean cosine"
            f" {parity.mean_cosine:.6f} on {parity.inputs} inputs; expected {parity.bound}{first_at(parity)}"
        )
    return parity


def first_at(parity: Parity) -> str:
    """Where the models part, for the end of a sentence; empty where that is not known."""
    return f"; the first layer that departs is {parity.departs_at}" if parity.departs_at else ""


def _from_float64(
    source: nn.Module, got: NDArray[Any], expected: NDArray[Any], probes: Sequence[Probe]
) -> tuple[float, float]:
    """How far the model is from float64 at most, and how far it may be."""
    right = np.concatenate(answers(by_torch_in_float64(source), probes))
    anew = (np.concatenate(answers(by_torch_rounded_anew(source, seed), probes)) for seed in range(ROUNDINGS))
    distances = [float(np.abs(one - right).max()) for one in (expected, *anew)]
    # A copy that overflows says nothing of rounding.
    return float(np.abs(got - right).max()), FLOAT64_TIMES * max(filter(np.isfinite, distances), default=0.0)


def _furthest(got: Answers, expected: Answers) -> float:
    """The largest distance between two answers to a probe, in lengths of the expected one or, where that is shorter, of
    the median one: of an answer that says hardly anything the direction means nothing.
    """
    answered = [(rows, other) for rows, other in zip(got, expected, strict=True) if len(rows)]
    lengths = [_length(other) for _, other in answered]
    least = max(float(np.median(lengths)), float(np.finfo(np.float32).tiny))
    return max(
        _length(rows - other) / max(length, least) for (rows, other), length in zip(answered, lengths, strict=True)
    )


def _length(rows: NDArray[Any]) -> float:
    """Root of the mean squared length of a row, of [rows, width] with a row at least."""
    return float(np.linalg.norm(rows.astype(np.float64)) / np.sqrt(len(rows)))


def _distance(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    distance = float(np.linalg.norm(np.subtract(got, expected, dtype=np.float64)))
    return distance if np.isfinite(distance) else np.inf
