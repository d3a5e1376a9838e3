"""Examples of a user's own for a graph's inputs, and what the graph must be for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.errors import DataError, QuantizationError, UsageError
from compressor.intake.npz import UNREADABLE, open_npz
from compressor.preprocess import Feed

_FEWEST = 16
# Of inputs, as the measuring program makes and takes them (csrc/ort/tensor.cpp).
_TIMED_DTYPES = ("float32", "int64", "int32", "uint8", "bool")
_NO_TENSORS = ("sequence", "map", "optional", "sparse_tensor")


@dataclass(frozen=True)
class ArrayExamples:
    """Arrays by input name, each [examples, ...]; an encoded example is its number, int64 [1]."""

    arrays: Feed

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[Any]]:
        return [np.array([number]) for number in inputs]

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        rows = np.concatenate(examples)
        return {name: array[rows] for name, array in self.arrays.items()}


def read_examples(path: Path, model: OnnxModel) -> ArrayExamples:
    """The arrays of an .npz, held against the graph's inputs. Raises DataError."""
    try:
        with open_npz(path, DataError) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise DataError(f"{path}: expected an .npz with an array for each input of the model: {error}") from None
    needed = {spec.name: spec for spec in model.inputs}
    if missing := [name for name in needed if name not in arrays]:
        raise DataError(
            f"{path}: the model's input {missing[0]!r} is missing; the file has {', '.join(arrays) or 'none'}"
        )
    arrays = {name: arrays[name] for name in needed}
    for name, array in arrays.items():
        spec = needed[name]
        sizes = zip(spec.shape[1:], array.shape[1:], strict=False)
        if (
            array.dtype.name != spec.dtype
            or array.ndim != len(spec.shape)
            or any(isinstance(size, int) and 0 < size != got for size, got in sizes)
        ):
            expected = _told(spec).removeprefix(f"{name} ")
            raise DataError(f"{path}: {name}: expected {expected}, got {array.dtype.name} {list(array.shape)}")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: expected as many examples of each input, got {counts}")
    if min(counts.values()) < _FEWEST:
        raise DataError(f"{path}: expected {_FEWEST} examples or more, got {min(counts.values())}")
    return ArrayExamples(arrays)


def check_comparable(model: OnnxModel) -> None:
    """Raises QuantizationError for a graph that takes no examples, or none alone, or that gives what is no tensor."""
    if not model.inputs:
        raise QuantizationError(f"{model.path}: expected a graph with inputs, found none: it answers always the same")
    for spec in model.inputs:
        if spec.shape and isinstance(spec.shape[0], int) and spec.shape[0] > 1:
            raise QuantizationError(
                f"{model.path}: its input {_told(spec)} takes {spec.shape[0]} examples at a time, no more and no fewer;"
                " models are run on one at a time here: export it with 1 there, or with a dynamic size"
            )
    for spec in model.outputs:
        if spec.dtype in _NO_TENSORS:
            raise QuantizationError(
                f"{model.path}: its output {spec.name} is no tensor but a {spec.dtype}; expected tensors, which can be"
                " compared: export it without"
            )


def check_timed(model: OnnxModel) -> None:
    """Raises QuantizationError for inputs that the measuring program does not feed."""
    for spec in model.inputs:
        if spec.dtype not in _TIMED_DTYPES:
            raise QuantizationError(
                f"{model.path}: its input {_told(spec)} cannot be timed; expected {', '.join(_TIMED_DTYPES)}: export it"
                " with one of them"
            )


def check_same_interface(model: OnnxModel, float32: OnnxModel) -> None:
    """Raises UsageError unless the model can stand in for `float32`."""
    inputs, outputs = (model.inputs, float32.inputs), (model.outputs, float32.outputs)
    same_inputs = len({tuple((spec.name, spec.dtype, len(spec.shape)) for spec in specs) for specs in inputs}) == 1
    same_outputs = len({tuple(spec.name for spec in specs) for specs in outputs}) == 1
    for kind, same, both in (("inputs", same_inputs, inputs), ("outputs", same_outputs, outputs)):
        if not same:
            got, expected = (", ".join(map(_told, specs)) or "none" for specs in both)
            raise UsageError(
                f"{model.path}: expected the {kind} of {float32.path}, {expected}; got {got}; --against needs the"
                " float32 model that it was made from"
            )


def _told(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(str(size or '?') for size in spec.shape)}]"
