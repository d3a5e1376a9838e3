"""Candidates in few bits of a float32 ONNX model."""

from __future__ import annotations

from compressor.quantize.candidates import Mixer, quantize

__all__ = ["Mixer", "quantize"]
