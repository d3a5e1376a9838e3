"""A teacher to distil from: a small convolutional classifier of Fashion-MNIST, trained from scratch on a CPU.

The batch normalisations fold into the convolutions before them and the activations are plain ReLU, so the exported
graph is Conv, Relu, MaxPool, GlobalAveragePool and Gemm, which every int8 runtime knows.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from compressor.progress import Progress
from compressor.store import write_atomic

MEAN, STD = 0.2860, 0.3530
CLASSES = 10
BATCH = 128
SHIFT = 1
PEAK_RATE = 0.1
WEIGHT_DECAY = 5e-4


def _conv(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def teacher() -> nn.Module:
    """About 446,000 parameters. Takes normalised float32 [N, 1, 28, 28] and gives logits [N, 10]."""
    return nn.Sequential(
        _conv(1, 24),
        nn.MaxPool2d(2),
        _conv(24, 48),
        _conv(48, 64),
        nn.MaxPool2d(2),
        _conv(64, 128),
        _conv(128, 128),
        nn.MaxPool2d(2),
        _conv(128, 160),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, CLASSES),
    )


def normalise(images: Tensor) -> Tensor:
    """uint8 [N, 28, 28] to the float32 [N, 1, 28, 28] that the teacher was trained on."""
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1)


def _augment(images: Tensor, draw: torch.Generator) -> Tensor:
    """Mirrors every other image on average, and moves each by up to SHIFT pixels either way."""
    count, height, width = images.shape
    # Padding with black is exact, because the background of every image is black.
    windows = F.pad(images, (SHIFT,) * 4).unfold(1, height, 1).unfold(2, width, 1)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count), generator=draw)
    moved = windows[torch.arange(count), down, right]
    mirrored = torch.rand(count, generator=draw) < 0.5
    return torch.where(mirrored[:, None, None], moved.flip(2), moved)


def _fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; elsewhere it would be emulated and slower than float32."""
    # Older releases of torch cannot say: float32 is right everywhere.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def train_teacher(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    weights: Path,
    seed: int = 0,
    epochs: int = 10,
) -> float:
    """Trains `teacher()` on uint8 images [N, 28, 28], writes its state dict to `weights`, returns the seconds used."""
    started = time.monotonic()
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    # Channels last is the layout that the CPU convolutions work in: anything else is reordered at every layer.
    model = teacher()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's annotations
    model.train()
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(pixels) // BATCH
    optimiser = torch.optim.SGD(model.parameters(), PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, total_steps=epochs * steps, pct_start=0.2, div_factor=10, final_div_factor=1000
    )
    bfloat16 = _fast_bfloat16()
    with Progress().bar("training the teacher", epochs * steps * BATCH, "images") as bar:
        for epoch in range(epochs):
            order = torch.randperm(len(pixels), generator=draw)
            for step in range(steps):
                chosen = order[step * BATCH : (step + 1) * BATCH]
                batch = normalise(_augment(pixels[chosen], draw)).contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    logits = model(batch)
                loss = F.cross_entropy(logits.float(), targets[chosen])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                rate.step()
                bar.advance(BATCH, f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}")
    weights.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(weights, save({name: value.contiguous() for name, value in model.state_dict().items()}))
    return time.monotonic() - started
