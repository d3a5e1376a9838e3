"""Distil a large teacher into a small student, prove what was kept, and ship ONNX to a device.

`compress(recipe)` runs the whole way; `load(bundle)` gives a predictor that needs no torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# From 1.31 on onnxruntime tells its maker of its use unless told not to, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["CompressorError", "Examples", "OwnTask", "Recipe", "Result", "__version__", "compress", "load"]

if TYPE_CHECKING:
    from compressor.bundle.predictor import load
    from compressor.errors import CompressorError
    from compressor.own_task import Examples, OwnTask
    from compressor.pipeline import compress
    from compressor.recipe import Recipe
    from compressor.result import Result

_HOMES = {
    "CompressorError": "compressor.errors",
    "Examples": "compressor.own_task",
    "OwnTask": "compressor.own_task",
    "Recipe": "compressor.recipe",
    "Result": "compressor.result",
    "compress": "compressor.pipeline",
    "load": "compressor.bundle.predictor",
}


def __getattr__(name: str) -> object:
    # Imported at first use, so that `compressor --help` answers at once.
    if name not in _HOMES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
