"""A teacher in parts on two processes, by torchrun over gloo, says what the whole one says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from sharding_process import EXAMPLES, ROWS, TEACHERS, load, record
from torch import nn

from compressor.distill import cache as cache_module
from compressor.distill import record as record_module
from compressor.distill.cache import finished_shards
from compressor.distill.sharding import sharded
from compressor.errors import RecipeError, TeacherError
from compressor.recipe_file import recipe_from_values

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SHARDS = -(-EXAMPLES // ROWS)


def record_in_two(name: str, folder: Path) -> None:
    script = Path(__file__).with_name("sharding_process.py")
    ended = subprocess.run([*LAUNCH, str(script), name, str(folder)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", TEACHERS)
def test_two_processes_record_what_one_records(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, taps and draws; each with half of the weights; again where a shard is damaged and one is gone."""
    for module in (cache_module, record_module):
        monkeypatch.setattr(module, "ROWS", ROWS)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    whole = load(name)
    alone = record(name, whole, one)
    record_in_two(name, two)
    weights = sum(parameter.numel() for parameter in whole.parameters())
    held = [json.loads((two / f"held-{rank}.json").read_text()) for rank in range(2)]
    assert sum(held) == weights
    assert max(held) == pytest.approx(weights / 2, rel=0.02)
    assert sorted(finished_shards(two)) == list(range(SHARDS)) == list(range(len(alone.shards)))
    compare(one, two)

    (two / "signals-00001.safetensors").write_bytes(b"damaged")
    (two / "signals-00004.safetensors").unlink()
    untouched = (two / "signals-00002.safetensors").stat().st_mtime_ns
    record_in_two(name, two)
    assert sorted(finished_shards(two)) == list(range(SHARDS))
    assert (two / "signals-00002.safetensors").stat().st_mtime_ns == untouched
    compare(one, two)


def compare(one: Path, two: Path) -> None:
    for path in sorted(one.glob("*.safetensors")):
        mine, theirs = (safetensors.torch.load_file(folder / path.name) for folder in (one, two))
        assert sorted(mine) == sorted(theirs)
        for name, values in mine.items():
            np.testing.assert_allclose(theirs[name].float(), values.float(), atol=1e-5, rtol=1e-3, err_msg=name)


def test_a_teacher_without_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.distill.team.mesh", lambda: None)
    monkeypatch.setattr("compressor.distill.team.take_turns", lambda act: act())
    with pytest.raises(TeacherError, match="found no layers to share among processes"):
        sharded(lambda: nn.Sequential(nn.Linear(2, 2)))


def test_a_shared_teacher_is_not_there_during_training() -> None:
    values = {
        "task": "text-generation",
        "teacher": {"path": "teacher", "permission": "own-model", "shard": True},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "distill": {"on_policy": 0.5},
    }
    with pytest.raises(RecipeError, match=r"on_policy asks the teacher during training.* set teacher\.shard to false"):
        recipe_from_values(values, "here")
