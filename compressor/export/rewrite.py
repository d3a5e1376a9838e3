"""An exported graph made into one of fewer nodes for ONNX Runtime, after every rewrite proven equal to what it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from compressor.artifacts import AppliedRewrite, OnnxModel
from compressor.errors import BundleError, ExportError
from compressor.export.onnx_model import drop_shapes_of_weights
from compressor.export.rewrites import REWRITES, Rewrite
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed
from compressor.store import write_atomic

# float32 on both sides, so that only orders of summation differ: of a value, and of the largest in its output, since a
# value near 0 is the difference of such as are not. Deep models amplify it: so many times what onnxruntime's own
# optimizations change in the exported graph is permitted, up to the most.
RELATIVE, OF_LARGEST = 1e-4, 1e-5
TIMES_OPTIMIZED, MOST_OF_LARGEST = 4, 1e-3


def rewrite_onnx(exported: OnnxModel, feeds: Sequence[Feed], folder: Path) -> OnnxModel:
    """The same function as `exported` in fewer nodes, written into `folder`, once more with what quantizers open.

    After every rewrite that applied, onnxruntime runs the graph beside the exported one, which it leaves as it is, on
    random values of the feeds' shapes: normal floats, integers that are in some feed or 0. It must then give
    |difference| <= 1e-4 |value| + 1e-5 |largest value|; instead of 1e-5, four times the share of the largest value
    that onnxruntime's own optimizations change in the exported graph, where that is more, and at most 1e-3. Raises
    ExportError where it does not.
    """
    proof, source = _Proof(exported, _drawn(feeds)), onnx.load(exported.path)
    model, applied = ir.serde.deserialize_model(source), []
    for one in REWRITES:
        if times := apply(model, one):
            proof.check(model, one.name)
            applied.append(AppliedRewrite(one.name, times, len(model.graph)))
    done = replace(_written(model, exported, folder / exported.path.name), rewrites=tuple(applied))
    if not any(one.closes and one.name in {each.name for each in applied} for one in REWRITES):
        return done
    model = ir.serde.deserialize_model(source)
    for one in REWRITES:
        if not one.closes:
            apply(model, one)
    proof.check(model, "of all that leaves products and tables in the open")
    opened = _written(model, exported, folder / f"{exported.path.stem}-open.onnx")
    return replace(done, open_path=opened.path)


def apply(model: ir.Model, one: Rewrite) -> int:
    """How often the rewrite applied; what it leaves behind unused is gone."""
    times: int = one.rules.apply_to_model(model)
    if times:
        for tidy in (
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.ClearMetadataAndDocStringPass(),
        ):
            tidy(model)
    return times


def _written(model: ir.Model, exported: OnnxModel, path: Path) -> OnnxModel:
    proto = ir.serde.serialize_model(model)
    drop_shapes_of_weights(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{exported.name}: the rewritten graph is not valid: {str(error).splitlines()[0]}") from None
    write_atomic(path, proto.SerializeToString())
    written = describe_onnx(path, exported.name, exported.precision, exported.parameters)
    if replace(written, path=exported.path, bytes=exported.bytes) != exported:
        raise ExportError(
            f"{exported.name}: expected inputs {exported.inputs} and outputs {exported.outputs} at opset"
            f" {exported.opset}, the rewritten graph has {written.inputs}, {written.outputs}, {written.opset}"
        )
    return written


class _Proof:
    """The exported graph's answers, and what is held against them."""

    def __init__(self, exported: OnnxModel, feeds: Sequence[Feed]) -> None:
        session, optimized = open_session(exported.path, optimized=False), open_session(exported.path)
        self._name, self._feeds = exported.name, feeds
        self._expected = [run_one(session, feed) for feed in feeds]
        amplified = max(
            _of_largest(*pair)
            for feed, expected in zip(feeds, self._expected, strict=True)
            for pair in zip(run_one(optimized, feed), expected, strict=True)
        )
        self._of_largest = float(np.clip(TIMES_OPTIMIZED * amplified, OF_LARGEST, MOST_OF_LARGEST))

    def check(self, model: ir.Model, name: str) -> None:
        """Raises ExportError where the model's answers differ by more than rounding."""
        try:
            session = open_session(ir.serde.serialize_model(model).SerializeToString())
            answers = [run_one(session, feed) for feed in self._feeds]
        except BundleError as error:
            raise ExportError(f"{self._name}: the rewrite {name} makes a graph that fails: {error}") from None
        for feed, got, expected in zip(self._feeds, answers, self._expected, strict=True):
            pairs = list(zip(got, expected, strict=True))
            if not all(_equal(*pair, self._of_largest) for pair in pairs):
                key, array = next(iter(feed.items()))
                raise ExportError(
                    f"{self._name}: the rewrite {name} changes what the graph answers to {key} {list(array.shape)}, by"
                    f" {max(_of_largest(*pair) for pair in pairs):.2g} of the largest value; expected the same up to"
                    f" {RELATIVE:g} of the value and {self._of_largest:.2g} of the largest"
                )


def _equal(got: NDArray[Any], expected: NDArray[Any], of_largest: float) -> bool:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    atol = of_largest * _largest(expected)
    return np.allclose(got, expected, rtol=RELATIVE, atol=atol, equal_nan=True)


def _of_largest(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference as a share of the largest value; infinite where the arrays cannot be compared."""
    if got.shape != expected.shape or not np.array_equal(np.isfinite(got), np.isfinite(expected)):
        return np.inf
    finite = np.isfinite(expected)
    difference = np.abs(np.subtract(got[finite], expected[finite], dtype=np.float64)).max(initial=0.0)
    return float(difference / (_largest(expected) or 1.0))


def _largest(array: NDArray[Any]) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _drawn(feeds: Sequence[Feed]) -> list[Feed]:
    """Random values of the feeds' shapes. With 0 among the integers, attention masks have holes anywhere, but for each
    row's first token: no text is without any.
    """
    generator = np.random.default_rng(0)
    seen = {name: np.union1d(np.concatenate([feed[name].ravel() for feed in feeds]), [0]) for name in feeds[0]}

    def draw(name: str, array: NDArray[Any]) -> NDArray[Any]:
        if np.issubdtype(array.dtype, np.floating):
            return generator.standard_normal(array.shape).astype(array.dtype)
        drawn = generator.choice(seen[name], array.shape).astype(array.dtype)
        drawn[:, :1] = array[:, :1]
        return drawn

    return [{name: draw(name, array) for name, array in feed.items()} for feed in feeds]
