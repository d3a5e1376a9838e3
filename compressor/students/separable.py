"""The built-in image student: a depthwise-separable CNN (Howard et al. 2017, MobileNets)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def _normed(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


class SeparableCnn(nn.Module):
    """A 3x3 stem, blocks of a depthwise 3x3 and a pointwise 1x1 convolution, global average pooling, a linear head.

    `widths` are the channels of the stem and of each block, `strides` those of the blocks' depthwise convolutions.
    float32 [batch, channels, height, width] -> logits float32 [batch, classes].
    """

    def __init__(self, channels: int, classes: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        layers = _normed(nn.Conv2d(channels, widths[0], 3, padding=1, bias=False))
        for inner, outer, stride in zip(widths, widths[1:], strides, strict=False):
            layers += _normed(nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False))
            layers += _normed(nn.Conv2d(inner, outer, 1, bias=False))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        pooled = self.features(image).mean(dim=(2, 3))
        logits: Tensor = self.head(pooled)
        return logits
