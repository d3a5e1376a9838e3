"""Runs that train the distilled student on in few bits, of each kind of student."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_inputs import Inputs
from run_folders import assert_whole
from shared_runs import Run

from compressor.certificate import read_certificate

_COSINE = re.compile(r"(\d+) nodes trained in few bits; student-qat against what was trained: cosine (\d\.\d+)")


@pytest.mark.parametrize(
    ("task", "precision", "closest"),
    [
        ("sentence-embedding", "static-int8", 0.9999),
        ("image-classification", "static-int8", 0.9999),
        # onnxruntime rounds what the products read to int8 as well, block by block.
        ("text-generation", "weight-int4", 0.99),
    ],
)
def test_a_student_learns_on_in_few_bits(
    inputs: dict[str, Inputs], run: Run, tmp_path: Path, task: str, precision: str, closest: float
) -> None:
    out = tmp_path / "out"
    changes: dict[str, Any] = {"quantize__qat": {"precision": precision}, "quantize__precisions": ["static-int8"]}
    recipe = inputs[task].write_recipe(out, **changes)
    ended = run("compress", recipe)
    assert ended.code == 0, ended.stderr
    assert ended.stages("done").index("qat") == ended.stages("done").index("quantize") + 1
    found = _COSINE.search(ended.stderr)
    assert found is not None, ended.stderr
    assert int(found[1]) > 3
    assert float(found[2]) >= closest
    result = json.loads((out / "result.json").read_text())
    rows = {row["name"]: row for row in result["models"]}
    assert rows["student-qat"]["precision"] == precision
    assert rows["student-qat"]["bytes"] < rows["student"]["bytes"]
    (step,) = (step for step in result["quality_steps"] if step["after"] == "student-qat")
    assert step["step"] == "quantization-aware training"
    parity = next(parity for parity in result["parities"] if parity["name"] == "student-qat")
    assert parity["holds"]
    assert parity["reference"] == "student-qat in torch"
    (certified,) = out.glob("stages/qat-*/student-qat.certificate.json")
    holds = {one.name: one.bit_equal for one in read_certificate(certified).instruction_sets}
    if precision == "static-int8":
        assert set(holds.values()) == {"proven"}, "also where training has moved weights"
    assert_whole(out)

    again = run("compress", recipe, "--set", "quantize.qat.learning_rate=1e-5")
    assert again.stages("done")[0] == "qat", "nothing before it depends on it"
