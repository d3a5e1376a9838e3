"""From torch to ONNX, and what is in the file."""

from __future__ import annotations

from compressor.export.onnx_model import describe_onnx, export_onnx
from compressor.export.sizes import where_bytes_are

__all__ = ["describe_onnx", "export_onnx", "where_bytes_are"]
