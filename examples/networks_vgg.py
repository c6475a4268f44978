"""AlexNet and VGG-16: names and shapes of torchvision, at the size of ImageNet and, for VGG-16, at that of CIFAR.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014); Simonyan and Zisserman,
"Very deep convolutional networks for large-scale image recognition" (2015), configuration D.
"""

from __future__ import annotations

from torch import Tensor, nn

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Output channels of the 13 convolutions (all 3x3); 0 is a 2x2 maximum pool."""


class AlexNet(nn.Module):
    """AlexNet in torchvision's form (61,100,840 parameters at 1,000 classes), for [N, 3, 224, 224]."""

    def __init__(self, classes: int = 1000, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        return self.classifier(self.pool(self.features(x)).flatten(1))


class VGG(nn.Module):
    """VGG-16, with or without BatchNorm (138,365,992 / 138,357,544 parameters at 1,000 classes).

    `width` scales the channels of every convolution (1.0: 64 to 512). `small_input=True` is the usual variant for
    32x32 images: the five pools leave one position, and a single linear layer (`classifier.0`) takes the place of
    the head of 4096 - 4096 - classes, which would be nine tenths of the network.
    """

    def __init__(
        self,
        classes: int = 1000,
        *,
        batchnorm: bool = True,
        width: float = 1.0,
        small_input: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in VGG16:
            if not channels:
                layers.append(nn.MaxPool2d(2))
                continue
            after = round(channels * width)
            layers.append(nn.Conv2d(before, after, 3, padding=1))
            if batchnorm:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.ReLU())
            before = after
        self.features = nn.Sequential(*layers)
        if small_input:
            self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Linear(before, classes))
            return
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(before * 49, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        return self.classifier(self.pool(self.features(x)).flatten(1))
