"""int8 candidates of a float32 ONNX model."""

from __future__ import annotations

from compressor.quantize.int8 import quantize

__all__ = ["quantize"]
