"""How small, how fast and how good is the student that `make demo` ships, against its teacher's float32 ONNX?

`--quick` trains on 2,000 sentences for one epoch in a folder of its own: it shows that the case runs, not the outcome.
"""

from __future__ import annotations

from typing import Any

from bench._outcome import bar, rows, run_example, shipped

_QUICK = [
    "out=runs/bench-quick",
    "data.max_train=2000",
    "distill.epochs=1",
    "gate.max_drop=50%",
    "benchmark.budget_s=8",
]


def run(quick: bool) -> dict[str, Any]:
    """Bars: at least 15 times smaller and 8 times faster at p50, with at least 98.5% of the AUROC."""
    result = run_example("sentence-embedding", _QUICK if quick else [])
    teacher, student = result.models[0], shipped(result)
    assert teacher.bytes is not None
    assert student.bytes is not None
    assert teacher.latency is not None
    assert student.latency is not None
    bars = {
        "times_smaller": bar(teacher.bytes / student.bytes, 15),
        "times_faster_p50": bar(teacher.latency.p50_ms / student.latency.p50_ms, 8),
    }
    if not quick:
        bars["auroc_kept"] = bar(student.quality.kept.value, 0.985)
    return {"rows": rows(result), "bars": bars}
