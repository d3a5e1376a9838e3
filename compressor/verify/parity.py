"""How far each converted model is from the one that it was made from, on real inputs and on inputs at the edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.artifacts import OnnxModel, Parity
from compressor.errors import ExportError
from compressor.metrics import accuracy, mean_cosine
from compressor.onnxrt import first_outputs
from compressor.preprocess import Keep, Preprocessor
from compressor.progress import SILENT

# float32 on both sides: the orders of summation differ, nothing else may. 1e-5 is optimum's and Polygraphy's bound.
FLOAT_ABSOLUTE = 1e-5
FLOAT_RELATIVE = 1e-4
# int8 is another function: here only that it is finite and points the same way. Its quality is the gate's affair.
INT8_COSINE = 0.9


def torch_outputs(
    module: nn.Module, preprocessor: Preprocessor, examples: Sequence[NDArray[Any]], keep: Keep
) -> NDArray[np.float32]:
    """What is compared of the module's first output for every example, one at a time: float32 [rows, width]."""
    rows = []
    with torch.inference_mode():
        for example in examples:
            feed = preprocessor.collate([example])
            output = module(**{name: torch.from_numpy(array) for name, array in feed.items()})[0][0]
            rows.append(keep(output.numpy(), example))
    return np.concatenate(rows)


def onnx_outputs(
    model: OnnxModel, preprocessor: Preprocessor, examples: Sequence[NDArray[Any]], keep: Keep
) -> NDArray[np.float32]:
    """The same of an ONNX model."""
    return first_outputs(model.path, preprocessor, examples, batch_size=1, progress=SILENT, title="", keep=keep)


def compare(
    name: str, reference: str, got: NDArray[np.float32], expected: NDArray[np.float32], *, exact: bool
) -> Parity:
    """Parity of two models' outputs, float32 [inputs, width] each.

    `exact` asks for float32 equality up to rounding: |got - expected| <= 1e-5 + 1e-4 |expected| everywhere. Otherwise a
    mean cosine of at least 0.9. Anything that is not finite fails both.
    """
    finite = bool(np.isfinite(got).all() and np.isfinite(expected).all())
    error = np.abs(got.astype(np.float64) - expected) if finite else np.full_like(expected, np.inf, dtype=np.float64)
    cosine = mean_cosine(got, expected) if finite else 0.0
    within = (
        bool((error <= FLOAT_ABSOLUTE + FLOAT_RELATIVE * np.abs(expected)).all()) if exact else cosine >= INT8_COSINE
    )
    bound = (
        f"|difference| <= {FLOAT_ABSOLUTE:g} + {FLOAT_RELATIVE:g} |value|"
        if exact
        else f"mean cosine >= {INT8_COSINE:g}"
    )
    return Parity(
        name=name,
        reference=reference,
        inputs=len(got),
        max_abs_error=float(error.max()) if finite else float(np.finfo(np.float32).max),
        mean_cosine=cosine,
        top1_agreement=accuracy(got.argmax(axis=1), expected.argmax(axis=1)) if finite else 0.0,
        holds=finite and within,
        bound=bound,
    )


def require(parity: Parity) -> Parity:
    """The same parity. Raises ExportError where it does not hold."""
    if not parity.holds:
        raise ExportError(
            f"{parity.name} departs from {parity.reference}: largest difference {parity.max_abs_error:.3g}, mean cosine"
            f" {parity.mean_cosine:.6f} on {parity.inputs} inputs; expected {parity.bound}"
        )
    return parity
