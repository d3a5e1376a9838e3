"""Checkpoints: what is saved comes back, what is damaged is refused in words, and nothing in one runs code."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.distill.checkpoint import load_checkpoint, save_checkpoint
from compressor.errors import TrainingError


def state() -> dict[str, Any]:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "at": {"step": 3, "losses": [[1, 0.5]], "best_score": -float("inf")},
    }


def test_round_trip(tmp_path: Path) -> None:
    saved = state()
    save_checkpoint(tmp_path / "checkpoint.pt", saved)
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded is not None
    assert loaded["at"] == saved["at"]
    assert torch.equal(loaded["module"]["weight"], saved["module"]["weight"])
    assert torch.equal(loaded["random"], saved["random"])
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], saved["optimizer"]["state"][0]["exp_avg"])
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    content = (tmp_path / "checkpoint.pt").read_bytes()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_says_what_to_do(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "control-0123456789abcdef.partial" / "checkpoint.pt"
    path.parent.mkdir()
    save_checkpoint(path, state())
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(TrainingError, match="run again with --from control to start"):
        load_checkpoint(path)


@pytest.mark.parametrize("seed", range(40))
def test_a_checkpoint_with_a_flipped_byte_is_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    content = bytearray(path.read_bytes())
    content[np.random.default_rng(seed).integers(len(content))] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="damaged"):
        load_checkpoint(path)


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_pickle: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    if plain_pickle:
        path.write_bytes(pickle.dumps(Dangerous(), protocol=2))
    else:
        torch.save({"module": Dangerous()}, path)
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(TrainingError):
        load_checkpoint(path)
    assert not Path("touched").exists()
