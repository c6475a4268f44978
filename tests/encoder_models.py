"""Small networks for the tests of the encoder, with BatchNorms that look trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model in eval mode with random BatchNorm statistics."""
    torch.manual_seed(seed)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.5)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 3)
    return model.eval()


def pooled() -> list[nn.Module]:
    """[images, channels, ...] -> [images, channels]."""
    return [nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()]


class Residual(nn.Module):
    """A stem, a block with an identity shortcut, one with a projection that comes late, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.down, self.bn4 = nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)
        x = torch.relu(self.bn3(self.conv3(x)) + self.bn4(self.down(x)))
        return self.head(x.mean((2, 3)))


class Words(nn.Module):
    """A tied embedding, LayerNorm, fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 50)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        n = self.norm(h)
        h = h + self.attention(n, n, n, need_weights=False)[0]
        return self.head(h.mean(1))


class Oddities(nn.Module):
    """Everything that is no ordinary weight, around one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(60, 10)
        self.scale = nn.Parameter(torch.tensor(1.25))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.unused = nn.Parameter(torch.randn(9, 11))
        self.register_buffer("mask", torch.rand(10) > 0.3)
        self.register_buffer("count", torch.tensor(2**40 + 1))
        self.register_buffer("octets", torch.arange(7, dtype=torch.uint8).reshape(7, 1))
        self.register_buffer("table", torch.randn(6, 20))
        self.register_buffer("brief", torch.randn(5).half())
        self.plain = nn.BatchNorm1d(10, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.linear(x)) * self.mask * self.scale


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 9)), (20,)),
    "conv1d, dilated": (lambda: nn.Sequential(
        nn.Conv1d(4, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(),
        nn.Conv1d(12, 12, 3, dilation=2), nn.ReLU(), *pooled(), nn.Linear(12, 8)), (4, 20)),
    "conv2d, grouped, depthwise": (lambda: nn.Sequential(
        nn.Conv2d(4, 16, 3, groups=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 8, 1), nn.GroupNorm(2, 8), *pooled(), nn.Linear(8, 12)), (4, 9, 9)),
    "conv3d": (lambda: nn.Sequential(
        nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 2), nn.ReLU(), *pooled(),
        nn.Linear(8, 8)), (2, 5, 5, 5)),
    "transposed": (lambda: nn.Sequential(
        nn.ConvTranspose1d(4, 8, 3, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Unflatten(2, (9, 1)),
        nn.ConvTranspose2d(8, 8, 3, groups=2), nn.ReLU(), nn.Unflatten(3, (3, 1)),
        nn.ConvTranspose3d(8, 4, 2), *pooled(), nn.Linear(4, 20)), (4, 4)),
    "wide": (lambda: nn.Sequential(
        nn.Linear(40, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 50)), (40,)),
    "residual": (Residual, (3, 8, 8)),
    "words": (Words, ()),
    "oddities": (Oddities, (60,)),
}


def build(name: str, seed: int = 0) -> nn.Module:
    return seeded(MODELS[name][0], seed)


def inputs(name: str, images: int = 24, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = MODELS[name][1]
    if not shape:
        return torch.randint(0, 50, (images, 9), generator=generator)
    return torch.randn(images, *shape, generator=generator)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x).double()


def decibels(y: Tensor, y_hat: Tensor) -> float:
    return float(10 * torch.log10((y**2).sum() / ((y_hat - y) ** 2).sum()))
