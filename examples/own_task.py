"""A task of one's own, whole: how worn is a machine, by a window of its vibration? `own-task.yaml` names what is here.

    python examples/own_task.py        # makes data and a teacher, once, in .cache/assets/own-task

Three channels of 64 samples come in, two figures of wear go out; they are judged by the share of variance explained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from compressor import Examples, OwnTask

ASSETS = Path(__file__).parent.parent / ".cache" / "assets" / "own-task"
CYCLES = (5, 11, 3)  # of each channel, in a window


def task() -> OwnTask:
    return OwnTask(read=read, metric=variance_explained, metric_name="R2", input_name="vibration", output_name="wear")


def read(path: Path) -> Examples:
    with np.load(path, allow_pickle=False) as file:
        return Examples(file["vibration"], file["wear"])


def variance_explained(outputs: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    return float(1 - np.square(outputs - truth).sum() / np.square(truth - truth.mean(axis=0)).sum())


def teacher() -> nn.Module:
    return network(width=64)


def student() -> nn.Module:
    return network(width=12)


def network(width: int) -> nn.Module:
    """float32 [batch, 3, 64] -> float32 [batch, 2]."""
    return nn.Sequential(
        nn.Conv1d(3, width, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(width, width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(4 * width, 2),
    )


def made_windows(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vibration [count, 3, 64], a sine in each channel under noise; wear [count, 2], which its amplitudes follow."""
    generator = np.random.default_rng(seed)
    wear = generator.uniform(0.2, 2.0, (count, 2))
    amplitude = np.concatenate([wear, wear.sum(axis=1, keepdims=True)], axis=1)
    time = np.linspace(0.0, 1.0, 64)
    clean = amplitude[:, :, None] * np.sin(2 * np.pi * np.array(CYCLES)[:, None] * time)
    noise = 0.3 * generator.standard_normal(clean.shape)
    return (clean + noise).astype(np.float32), wear.astype(np.float32)


def main() -> None:
    ASSETS.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", 2000, 0), ("eval", 500, 1)):
        vibration, wear = made_windows(count, seed)
        np.savez(ASSETS / f"{name}.npz", vibration=vibration, wear=wear)
    inputs, targets = (torch.from_numpy(array) for array in made_windows(2000, 0))
    torch.manual_seed(0)
    model = teacher()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(15):
        for rows in torch.arange(len(inputs)).split(50):
            optimizer.zero_grad()
            (model(inputs[rows]) - targets[rows]).square().mean().backward()
            optimizer.step()
    safetensors.torch.save_file(model.state_dict(), ASSETS / "teacher.safetensors")
    print(f"{ASSETS}: ready")


if __name__ == "__main__":
    main()
