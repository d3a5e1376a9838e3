"""From torch to ONNX, and from what torch exports to what ONNX Runtime runs fast."""

from __future__ import annotations

from compressor.export.onnx_model import export_onnx
from compressor.export.rewrite import rewrite_onnx

__all__ = ["export_onnx", "rewrite_onnx"]
