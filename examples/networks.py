"""The networks that tersor is measured on: small definitions of our own, no torchvision needed.

Names of the state-dict entries follow the published weights, so that those load with `strict=True`:

| network                      | input                        | names as in                       |
|------------------------------|------------------------------|-----------------------------------|
| `CifarResNet(20 / 32 / 56)`  | [N, 3, 32, 32], normalised   | akamaster/pytorch_resnet_cifar10  |
| `LeNet5()`                   | [N, 1, 28, 28], pixel / 256  | Caffe's LeNet-5                   |
| `AlexNetCifar()`             | [N, 3, 32, 32], normalised   | torchvision's alexnet, smaller |
| `SqueezeNet()`               | [N, 3, 224, 224], normalised | torchvision's squeezenet1_1       |
| `ResNet18()`                 | [N, 3, 224, 224], normalised | torchvision's resnet18            |
| `DigitsNet()`                | [N, 1, 8, 8], pixel / 16     | this project (`train_digits.py`)  |

    model = load(CifarResNet(20), "resnet20.safetensors")
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm; the shortcut has no parameters (He et al. 2016, option A)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.extra = (channels_out - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H/stride, W/stride]
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.extra or self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images with `depth` = 6 n + 2 layers: 20, 32, 56 (He et al. 2016, section 4.2)."""

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 (20, 32, 56, ...), not {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
        first = CifarBlock(channels_in, channels_out, stride)
        return nn.Sequential(first, *(CifarBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 32, 32] -> [N, classes]
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class LeNet5(nn.Module):
    """Caffe's LeNet-5 (431,080 parameters), the network of the LNQ paper's Table 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.ip1 = nn.Linear(800, 500)
        self.ip2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, 28, 28] -> [N, 10]
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.ip2(F.relu(self.ip1(x.flatten(1))))


class AlexNetCifar(nn.Module):
    """AlexNet for 32x32 images (4.56 million parameters at 10 classes), to be trained by `train_alexnet_cifar.py`.

    torchvision's layers (five convolutions of 64, 192, 384, 256, 256 channels, three pools, three linear layers,
    no BatchNorm) and names. What differs: the first convolution is 5x5 with stride 2 instead of 11x11 with
    stride 4, pools are 2x2, the head is 1024 - 1024 - 1024 - classes instead of 9216 - 4096 - 4096 - classes.
    """

    def __init__(self, classes: int = 10, *, hidden: int = 1024, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 2 * 2, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 32, 32] -> [N, classes]
        return self.classifier(self.features(x).flatten(1))


class Fire(nn.Module):
    """SqueezeNet's module: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, channels_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, 2 * expand, H, W]
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (1,235,496 parameters); the unnumbered entries of `features` are pools and ReLUs."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, classes, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        return self.classifier(self.features(x)).mean(dim=(2, 3))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, a strided 1x1 convolution is the shortcut (option B)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H/stride, W/stride]
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """ResNet-18 (11.7 million parameters at 1,000 classes).

    `small_input=True` is the usual variant for 32x32 images: a 3x3 stem of stride 1 and no pooling.
    """

    def __init__(self, classes: int = 1000, *, width: int = 64, small_input: bool = False) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small_input else (7, 2)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


class DigitsNet(nn.Module):
    """A residual network for 8x8 digits (about 270 thousand parameters), the one that the demo compresses.

    Three stages of one `BasicBlock` each (8x8, 4x4, 2x2 positions), built like a ResNet-18 so that the demo
    shows what happens on such networks.
    """

    def __init__(self, classes: int = 10, *, width: int = 30) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = BasicBlock(width, width, 1)
        self.layer2 = BasicBlock(width, 2 * width, 2)
        self.layer3 = BasicBlock(2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, 8, 8] -> [N, classes]
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def load(model: M, path: str | Path) -> M:
    """Read `path` (.safetensors) into `model` and return it in eval mode.

    BatchNorm's `num_batches_tracked` may be missing from the file (it has no effect in eval mode); any other
    missing or unknown name raises `KeyError`.
    """
    missing, unknown = model.load_state_dict(load_file(path), strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise KeyError(f"{path} does not fit {type(model).__name__}: missing {missing}, unknown {unknown}")
    return model.eval()
