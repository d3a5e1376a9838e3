"""From torch to ONNX."""

from __future__ import annotations

from compressor.export.onnx_model import export_onnx

__all__ = ["export_onnx"]
