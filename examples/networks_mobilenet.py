"""MobileNetV2: names and shapes of torchvision, at the size of ImageNet and at that of CIFAR.

Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: inverted residuals and linear bottlenecks" (2018).
"""

from __future__ import annotations

from torch import Tensor, nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, blocks, stride of the first block (the paper's Table 2)."""


def multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below, at least 8."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 up (left out at expansion 1), depthwise 3x3, 1x1 down without an activation; a sum where shapes allow."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        up = [convolution(before, inner, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *up,
            convolution(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:  # [N, before, H, W] -> [N, after, H/stride, W/stride]
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (3,504,872 parameters at 1,000 classes); `width` is the paper's width multiplier.

    `small_input=True` is the variant for 32x32 images: stride 1 instead of 2 in the first strided stage, so that 2x2
    positions reach the head; the head is as narrow as `width` says (the paper's stays at 1280).
    """

    def __init__(
        self, classes: int = 1000, *, width: float = 1.0, small_input: bool = False, dropout: float = 0.2
    ) -> None:
        super().__init__()
        before = multiple_of_8(32 * width)
        layers: list[nn.Module] = [convolution(3, before, 3, 2)]
        for number, (expansion, channels, blocks, stride) in enumerate(STAGES):
            after = multiple_of_8(channels * width)
            first = 1 if small_input and number == 1 else stride
            for block in range(blocks):
                layers.append(InvertedResidual(before, after, first if block == 0 else 1, expansion))
                before = after
        head = multiple_of_8(1280 * (width if small_input else max(1.0, width)))
        layers.append(convolution(before, head, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        return self.classifier(self.features(x).mean(dim=(2, 3)))
