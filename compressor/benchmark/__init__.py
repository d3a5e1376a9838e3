"""Latency, processor time and memory of ONNX models on this machine, measured natively and compared in pairs."""

from compressor.benchmark.measure import measure
from compressor.benchmark.paths import bench_paths, made_up_candidates
from compressor.benchmark.request import BenchmarkSettings, Candidate

__all__ = ["BenchmarkSettings", "Candidate", "bench_paths", "made_up_candidates", "measure"]
