"""What the example recipes end with: rows and ratios from `result.json`, against the bars they must clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.pipeline import compress
from compressor.progress import Progress
from compressor.recipe_file import read_recipe
from compressor.result import ModelResult, Result

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name: str, overrides: list[str]) -> Result:
    """Runs examples/NAME.yaml; stages that an earlier run in its folder finished are kept. Equality of the models that
    are timed is part of it: parity of every conversion is checked before, and a violation raises.
    """
    return compress(read_recipe(EXAMPLES / f"{name}.yaml", overrides), progress=Progress())


def rows(result: Result) -> list[dict[str, Any]]:
    """One flat row per model."""
    return [_row(model) for model in result.models]


def shipped(result: Result) -> ModelResult:
    """The model in the bundle."""
    return next(model for model in result.models if model.name == result.shipped)


def bar(value: float, least: float) -> dict[str, Any]:
    """A bar that `value` must reach."""
    return {"value": value, "bar": f">= {least:g}", "holds": value >= least}


def _row(model: ModelResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": model.name,
        "precision": model.precision,
        "parameters": model.parameters,
        "bytes": model.bytes,
        "metric": model.quality.metric,
        "quality": model.quality.quality.value,
        "quality_low": model.quality.quality.low,
        "quality_high": model.quality.quality.high,
        "kept": model.quality.kept.value,
        "kept_low": model.quality.kept.low,
        "agreement": model.agreement,
    }
    if model.latency is not None:
        row |= {
            "p50_ms": model.latency.p50_ms,
            "p99_ms": model.latency.p99_ms,
            "throughput_per_s": model.latency.throughput_per_s,
            "speedup": model.latency.speedup.value,
            "speedup_low": model.latency.speedup.low,
            "speedup_high": model.latency.speedup.high,
            "session_ms": model.latency.session_ms,
            "peak_memory_mib": model.latency.peak_memory_mib,
        }
    return row
