"""Latency, processor time and memory of ONNX models on a target, measured natively and compared in pairs."""

from compressor.benchmark.bench import bench
from compressor.benchmark.device import device_of
from compressor.benchmark.latency import explained, latencies_of, time_models
from compressor.benchmark.measure import measure
from compressor.benchmark.request import BenchmarkSettings, Candidate, Tolerance
from compressor.benchmark.result import BenchResult, RunFound, bench_json, bench_schema
from compressor.ssh import Device

__all__ = [
    "BenchResult",
    "BenchmarkSettings",
    "Candidate",
    "Device",
    "RunFound",
    "Tolerance",
    "bench",
    "bench_json",
    "bench_schema",
    "device_of",
    "explained",
    "latencies_of",
    "measure",
    "time_models",
]
