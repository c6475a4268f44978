"""ResNet-18, ResNet-34 and ResNet-50: names and shapes of torchvision, at the size of ImageNet and at that of CIFAR.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016), with option B shortcuts; the stride of
a bottleneck sits in its 3x3 convolution, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    """A strided 1x1 convolution with BatchNorm where the shape changes, else nothing (option B)."""
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, a strided 1x1 convolution is the shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H/stride, W/stride]
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1 to a quarter of the channels, 3x3, 1x1 back to `channels_out`."""

    expansion = 4

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inner = channels_out // self.expansion
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H/stride, W/stride]
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Four stages of `blocks`; `width` is the number of channels of the stem (64 in the paper).

    `small_input=True` is the usual variant for 32x32 images: a 3x3 stem of stride 1 and no pooling.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        classes: int = 1000,
        *,
        width: int = 64,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small_input else (7, 2)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
        before, stages = width, []
        for index, count in enumerate(blocks):
            after = (width << index) * block.expansion
            first = block(before, after, 1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(block(after, after, 1) for _ in range(count - 1))))
            before = after
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


class ResNet18(ResNet):
    """ResNet-18 (11,689,512 parameters at 1,000 classes)."""

    def __init__(self, classes: int = 1000, *, width: int = 64, small_input: bool = False) -> None:
        super().__init__(BasicBlock, (2, 2, 2, 2), classes, width=width, small_input=small_input)


class ResNet34(ResNet):
    """ResNet-34 (21,797,672 parameters at 1,000 classes)."""

    def __init__(self, classes: int = 1000, *, width: int = 64, small_input: bool = False) -> None:
        super().__init__(BasicBlock, (3, 4, 6, 3), classes, width=width, small_input=small_input)


class ResNet50(ResNet):
    """ResNet-50 (25,557,032 parameters at 1,000 classes)."""

    def __init__(self, classes: int = 1000, *, width: int = 64, small_input: bool = False) -> None:
        super().__init__(Bottleneck, (3, 4, 6, 3), classes, width=width, small_input=small_input)
