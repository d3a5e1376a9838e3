"""How small and how good is the student that the Fashion-MNIST example ships, and what did the teacher add to labels?

`--quick` trains on 2,000 images for one epoch in a folder of its own: it shows that the case runs, not the outcome.
"""

from __future__ import annotations

from typing import Any

from bench._outcome import bar, rows, run_example, shipped

_QUICK = ["out=runs/bench-quick-images", "data.max_train=2000", "distill.epochs=1", "gate.max_drop=95%"]


def run(quick: bool) -> dict[str, Any]:
    """Bars: a teacher of at least 92%, a shipped student of at most a tenth of its bytes and within 1.5 points."""
    result = run_example("image-classification", _QUICK if quick else [])
    teacher, student = result.models[0], shipped(result)
    assert teacher.bytes is not None
    assert student.bytes is not None
    bars = {
        "teacher_accuracy": bar(teacher.quality.quality.value, 0.92),
        "times_smaller": bar(teacher.bytes / student.bytes, 10),
    }
    if not quick:
        lost = teacher.quality.quality.value - student.quality.quality.value
        bars["points_lost"] = {"value": 100 * lost, "bar": "<= 1.5", "holds": 100 * lost <= 1.5}
    found = rows(result)
    if result.control is not None:
        found.append({"name": result.control.name, "metric": "accuracy", "quality": result.control.quality.value})
    return {"rows": found, "bars": bars}
