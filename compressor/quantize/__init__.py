"""Candidates in few bits of a float32 ONNX model."""

from __future__ import annotations

from compressor.quantize.candidates import quantize
from compressor.quantize.float_model import load_float_model
from compressor.quantize.mixer import Mixer, examples_wanted

__all__ = ["Mixer", "examples_wanted", "load_float_model", "quantize"]
