"""The networks that tersor is measured on: small definitions of our own, no torchvision needed.

Names of the state-dict entries follow the published weights, so that those load with `strict=True`:

| network                      | input                        | names as in                       |
|------------------------------|------------------------------|-----------------------------------|
| `CifarResNet(20 / 32 / 56)`  | [N, 3, 32, 32], normalised   | akamaster/pytorch_resnet_cifar10  |
| `LeNet5()`                   | [N, 1, 28, 28], pixel / 256  | Caffe's LeNet-5                   |
| `AlexNetCifar()`             | [N, 3, 32, 32], normalised   | torchvision's alexnet, smaller |
| `SqueezeNet()`               | [N, 3, 224, 224], normalised | torchvision's squeezenet1_1       |
| `AlexNet()`                  | [N, 3, 224, 224], normalised | torchvision's alexnet             |
| `VGG(batchnorm=...)`         | [N, 3, 224, 224], normalised | torchvision's vgg16, vgg16_bn     |
| `ResNet18()`, `34`, `50`     | [N, 3, 224, 224], normalised | torchvision's resnet18, 34, 50    |
| `DenseNet()`                 | [N, 3, 224, 224], normalised | torchvision's densenet121         |
| `MobileNetV2()`              | [N, 3, 224, 224], normalised | torchvision's mobilenet_v2        |
| `DigitsNet()`                | [N, 1, 8, 8], pixel / 16     | this project (`train_digits.py`)  |

    model = load(CifarResNet(20), "resnet20.safetensors")

`IMAGENET` lists the networks of ImageNet's size by torchvision's names: their layer shapes cost nothing with
`torch.device("meta")`. `CIFAR` lists narrow ones for 32x32 images, made by `cifar(name, width)`; those that the
project has trained itself (`train_cifar.py`) are files in `zoo`:

    model = load_zoo("vgg16_bn_cifar")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from networks_densenet import DenseNet
from networks_mobilenet import MobileNetV2
from networks_resnet import BasicBlock, Bottleneck, ResNet, ResNet18, ResNet34, ResNet50
from networks_vgg import VGG, AlexNet
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = [
    "CIFAR",
    "IMAGENET",
    "VGG",
    "ZOO",
    "AlexNet",
    "AlexNetCifar",
    "BasicBlock",
    "Bottleneck",
    "CifarBlock",
    "CifarResNet",
    "DenseNet",
    "DigitsNet",
    "Fire",
    "LeNet5",
    "MobileNetV2",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "SqueezeNet",
    "cifar",
    "load",
    "load_zoo",
]

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


IMAGENET: dict[str, Callable[[], nn.Module]] = {
    "alexnet": AlexNet,
    "squeezenet1_1": SqueezeNet,
    "vgg16": lambda: VGG(batchnorm=False),
    "vgg16_bn": VGG,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "densenet121": DenseNet,
    "mobilenet_v2": MobileNetV2,
}
"""The networks for 1,000 classes under torchvision's names."""


class Narrow(NamedTuple):
    """How a network for 32x32 images is made, and how wide the one in `zoo` is."""

    make: Callable[[float, int], nn.Module]  # (factor on the channels, classes)
    width: float


CIFAR: dict[str, Narrow] = {
    "vgg16": Narrow(lambda w, n: VGG(n, batchnorm=False, width=w, small_input=True), 0.25),
    "vgg16_bn": Narrow(lambda w, n: VGG(n, width=w, small_input=True), 0.25),
    "vgg16_bn_full": Narrow(lambda w, n: VGG(n, width=w, small_input=True), 1.0),
    "resnet18": Narrow(lambda w, n: ResNet18(n, width=round(64 * w), small_input=True), 0.25),
    "resnet18_full": Narrow(lambda w, n: ResNet18(n, width=round(64 * w), small_input=True), 1.0),
    "resnet34": Narrow(lambda w, n: ResNet34(n, width=round(64 * w), small_input=True), 0.125),
    "resnet50": Narrow(lambda w, n: ResNet50(n, width=round(64 * w), small_input=True), 0.125),
    "densenet": Narrow(
        lambda w, n: DenseNet(n, growth=round(32 * w), blocks=(3, 6, 12, 8), small_input=True), 0.375
    ),  # half of DenseNet-121's dense layers
    "densenet_bc_100_12": Narrow(
        lambda w, n: DenseNet(n, growth=round(12 * w), blocks=(16, 16, 16), small_input=True), 1.0
    ),
    "densenet121": Narrow(lambda w, n: DenseNet(n, growth=round(32 * w), small_input=True), 0.25),
    "mobilenet_v2": Narrow(lambda w, n: MobileNetV2(n, width=w, small_input=True), 0.5),
}
"""Networks for 32x32 images, normalised as in `image_data.py`."""

ZOO = Path(__file__).resolve().parent / "zoo"


def cifar(name: str, width: float | None = None, classes: int = 10) -> nn.Module:
    """A network of `CIFAR` with random weights; `width` None is the width of the one in `zoo`."""
    if name not in CIFAR:
        raise KeyError(f"no network {name!r} for 32x32 images; there are {', '.join(CIFAR)}")
    narrow = CIFAR[name]
    return narrow.make(narrow.width if width is None else width, classes)


def load_zoo(name: str) -> nn.Module:
    """A trained network of `zoo`, such as "vgg16_bn_cifar", as float32 in eval mode: [N, 3, 32, 32] -> [N, 10].

    Convolutions and linear layers were rounded to fp16 before the network was tested, so the values that are read
    are exactly those of the reference network. Raises `KeyError` for a network that is not there.
    """
    path = ZOO / f"{name}.safetensors"
    if not path.exists():
        there = ", ".join(sorted(other.stem for other in ZOO.glob("*.safetensors")))
        raise KeyError(f"no network {name!r} in {ZOO.name}; there are {there}")
    return load(cifar(name.removesuffix("_cifar")), path)
