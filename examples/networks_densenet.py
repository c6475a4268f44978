"""DenseNet-121: names and shapes of torchvision, at the size of ImageNet and at that of CIFAR.

Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional networks" (2017): DenseNet-BC with
compression 0.5; every layer sees the outputs of all layers before it in its block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 to four times `growth`, BatchNorm, ReLU, 3x3 to `growth` channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [N, channels, H, W] -> [N, channels + growth, H, W]
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return torch.cat([x, y], dim=1)


class DenseBlock(nn.Sequential):
    """`layers` dense layers, named denselayer1, denselayer2, ... as in torchvision."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__(
            OrderedDict(
                (f"denselayer{i + 1}", DenseLayer(channels + i * growth, growth)) for i in range(layers)
            )
        )


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 to half of the channels, 2x2 average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [N, channels, H, W] -> [N, channels / 2, H/2, W/2]
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """DenseNet; as it stands DenseNet-121 (7,978,856 parameters at 1,000 classes).

    The stem has twice `growth` channels. `small_input=True` is the variant for 32x32 images: all dense layers, but a
    3x3 stem of stride 2 without BatchNorm, ReLU and pooling after it (the first dense layer begins with both), so
    that the blocks work on 16x16, 8x8, 4x4 and 2x2 positions.
    """

    def __init__(
        self,
        classes: int = 1000,
        *,
        growth: int = 32,
        blocks: Sequence[int] = (6, 12, 24, 16),
        small_input: bool = False,
    ) -> None:
        super().__init__()
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if small_input:
            layers["conv0"] = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        else:
            layers["conv0"] = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
            layers["norm0"] = nn.BatchNorm2d(channels)
            layers["relu0"] = nn.ReLU()
            layers["pool0"] = nn.MaxPool2d(3, 2, padding=1)
        for index, count in enumerate(blocks, start=1):
            layers[f"denseblock{index}"] = DenseBlock(channels, growth, count)
            channels += count * growth
            if index < len(blocks):
                layers[f"transition{index}"] = Transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)  # torchvision's name, whatever the number of blocks
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        return self.classifier(F.relu(self.features(x)).mean(dim=(2, 3)))
