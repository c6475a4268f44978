"""Blocks are found by watching a network run, and reconstructed one by one: never a larger file, never a worse one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from encoder_models import build, inputs, seeded
from torch import Tensor, nn

import tersor
from tersor.errors import ConfigError
from tersor.training import reconstruction
from tersor.training.blocks import Block, find_blocks, input_of, output_of
from tersor.training.reconstruction import reconstruct


def conv(before: int, after: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, padding=size // 2, bias=False)


class Basic(nn.Module):
    """Of a ResNet."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(before, after), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = conv(after, after), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential() if before == after else nn.Sequential(conv(before, after, 1), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.down(x))


class Fire(nn.Module):
    """Of a SqueezeNet."""

    def __init__(self, before: int, middle: int, after: int) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = conv(before, middle, 1), conv(middle, after, 1), conv(middle, after)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.squeeze(x))
        return torch.relu(torch.cat([self.one(x), self.three(x)], 1))


class Dense(nn.Module):
    """Of a DenseNet."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(before), conv(before, 8, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), conv(8, growth)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class Twice(nn.Module):
    """A block and a layer that run twice, and a layer that runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.conv, self.head = Basic(3, 3), conv(3, 3), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.conv(self.conv(self.block(x)))).mean((2, 3)))


def head(channels: int) -> list[tuple[str, nn.Module]]:
    return [("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("fc", nn.Linear(channels, 10))]


def named(*layers: tuple[str, nn.Module]) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


def resnet() -> nn.Module:
    return named(("conv", conv(3, 8)), ("bn", nn.BatchNorm2d(8)), ("relu", nn.ReLU(inplace=True)),
                 ("stage", nn.Sequential(Basic(8, 8), Basic(8, 12))), *head(12))


def vgg() -> nn.Module:
    features = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                             conv(8, 12), nn.BatchNorm2d(12), nn.ReLU(inplace=True), conv(12, 12))
    return named(("features", features), *head(12))


def squeezenet() -> nn.Module:
    return named(("conv", conv(3, 8)), ("relu", nn.ReLU()), ("fire1", Fire(8, 4, 6)), ("fire2", Fire(12, 4, 5)),
                 ("classifier", nn.Sequential(nn.Dropout(0.5), nn.Conv2d(10, 10, 1), nn.ReLU())),
                 ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()))


def densenet() -> nn.Module:
    return named(("conv", conv(3, 8)), ("dense", nn.Sequential(Dense(8, 4), Dense(12, 4))),
                 ("norm", nn.BatchNorm2d(16)), *head(16))


NETWORKS: dict[Any, list[tuple[str, ...]]] = {
    resnet: [("conv", "bn", "relu"), ("stage.0",), ("stage.1",), ("fc",)],
    vgg: [("features.0", "features.1", "features.2"), ("features.4", "features.5", "features.6"), ("features.7",),
          ("fc",)],
    squeezenet: [("conv", "relu"), ("fire1",), ("fire2",), ("classifier.1", "classifier.2")],
    densenet: [("conv",), ("dense.0",), ("dense.1",), ("fc",)],
    Twice: [("head",)],
}  # fmt: skip


def weights_of(model: nn.Module) -> list[str]:
    return [name for name, tensor in model.named_parameters() if tensor.ndim > 1]


@pytest.mark.parametrize("make", NETWORKS)
def test_blocks_are_found(make):
    model = seeded(make)
    x = torch.randn(2, 3, 8, 8)
    found = find_blocks(model, x, weights_of(model))
    assert [block.modules for block in found] == NETWORKS[make]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not find_blocks(model, x, [])
    one = [name for name in weights_of(model) if name.endswith(("conv1.weight", "squeeze.weight"))]
    if make in (resnet, squeezenet):  # a block with one coded weight is that layer
        assert all(len(block.modules) <= 2 and block.modules[0] in ("stage.0.conv1", "stage.1.conv1", "fire1.squeeze",
                                                                     "fire2.squeeze")
                   for block in find_blocks(model, x, one))


def test_layers_of_a_network_without_modules_for_its_blocks():
    model = build("residual")
    found = find_blocks(model, inputs("residual", 2), weights_of(model))
    assert [block.modules for block in found] == [
        ("stem", "bn"), ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("down", "bn4"), ("head",)]


def test_slopes_are_those_of_the_divergence():
    """0.5 E (s . e)^2 is what a small error e of a block does to the answers."""
    model = seeded(resnet)
    x = torch.randn(4, 3, 8, 8)
    block = Block(("stage.1",))
    generator = torch.Generator().manual_seed(0)
    draws = [output_of(block, model, x, generator) for _ in range(200)]
    outputs, slopes = draws[0][0], torch.cat([s for _, s in draws], 1)
    assert slopes.shape == (4, 400, *outputs.shape[1:])
    got = input_of(block, model, lambda: model(x))
    with torch.no_grad():
        torch.testing.assert_close(model.get_submodule("stage.1")(got), outputs)
        error = 1e-2 * torch.randn(outputs.shape)
        ends = [model.fc(model.pool(y).flatten(1)) / 4.0 for y in (outputs, outputs + error)]
        p, q = (logits.double().log_softmax(-1) for logits in ends)
        # The softened divergence, in units of the logits: 4^2 times the one of logits / 4.
        divergence = 16.0 * (p.exp() * (p - q)).sum(-1)
    found = 0.5 * torch.einsum("nd,nkd->nk", error.flatten(1), slopes.flatten(2)).square().mean(1)
    torch.testing.assert_close(found.double(), divergence, rtol=0.25, atol=0.0)


def samples_of(count: int = 100) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def coarse(model: nn.Module, **options: Any) -> tersor.Packed:
    """Without data: every weight is rounded for itself."""
    return tersor.compress(model, bits=3.0, **options)


def divergence(file: tersor.Packed, make: Any, x: Tensor) -> float:
    model, restored = seeded(make), tersor.restore(file.data, into=seeded(make, 9)).eval()
    with torch.no_grad():
        return float(tersor.evaluate.compare(model(x), restored(x)).kl)


@pytest.fixture(autouse=True)
def few_views(monkeypatch):
    monkeypatch.setattr(reconstruction, "INPUTS", 256)
    monkeypatch.setattr(reconstruction, "JUDGES", 128)


@pytest.mark.parametrize("make", [resnet, vgg, squeezenet, densenet])
@pytest.mark.parametrize("options", [{"effort": 1}, {"effort": 6}], ids=["scalar", "trellis"])
def test_better_than_rounding_each_weight_for_itself(make, options):
    model, x = seeded(make), samples_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = coarse(model, **options)
    lines: list[str] = []
    better = reconstruct(file, model, x, steps=60, latents=1e-2, progress=lines.append)
    assert better.size <= file.size and "blocks reconstructed" in better.notes[-1]
    assert len(lines) == len(NETWORKS[make])
    others = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert divergence(better, make, others) < 0.9 * divergence(file, make, others)
    if make is resnet:
        assert better.data == reconstruct(file, model, x, steps=60, latents=1e-2).data
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("tools", [("transform",), ("kernels",), ("codebook",)])
def test_every_tool(tools):
    model, x = seeded(resnet), samples_of()
    extra: dict[str, Any] = {"kernels": tersor.KernelConfig(size=8)} if tools == ("kernels",) else {}
    if tools == ("codebook",):
        extra = {"codebook": tersor.CodebookConfig(scope="layer")}
    file = coarse(model, tools=tools, effort=2, **extra)
    better = reconstruct(file, model, x, steps=60, latents=1e-2)
    assert better.size <= file.size and better.data != file.data
    assert divergence(better, resnet, x[:20]) < divergence(file, resnet, x[:20])


def test_what_blocks_share_stays():
    """A codebook of all layers would change those before a block: only what a block has for itself learns."""
    model = seeded(resnet)
    trainable = coarse(model, tools=("codebook",)).trainable(model)
    uses = {tuple(sorted(names)) for names in trainable.uses().values()}
    assert tuple(sorted(weights_of(model))) in uses and ("stage.0.bn1.weight",) in uses
    lines: list[str] = []
    file = tersor.compress(nn.Sequential(OrderedDict(model.named_children())), bits=3.0, tools=("codebook",))
    better = reconstruct(file, model, samples_of(), steps=10, progress=lines.append)
    centres = [tersor.sections.Contents.of(packed.data).sections for packed in (file, better)]
    books = [[code.values.tolist() for section in found if section.tool == "codebook" for code in section.codes]
             for found in centres]
    assert books[0] == books[1] and books[0]


def test_a_block_that_gets_worse_is_put_back(monkeypatch):
    """Steps that are far too long: every block is as it was, and so is the file."""
    monkeypatch.setattr(reconstruction, "SMALL_RATE", 30.0)
    model = seeded(resnet)
    file = coarse(model, effort=6)
    lines: list[str] = []
    same = reconstruct(file, model, samples_of(), steps=10, latents=20.0, progress=lines.append)
    assert same.data == file.data and "nothing better" in same.notes[-1]
    assert all("not kept" in line for line in lines)


def test_bits_are_held():
    model = seeded(resnet)
    lines: list[str] = []
    reconstruct(coarse(model, effort=1), model, samples_of(), steps=100, latents=1e-2, progress=lines.append)
    for line in lines:
        before, after = (float(part.replace(",", "")) for part in
                         line.split(", ", 1)[1].split(" bits")[0].split(" to "))
        assert abs(after / before - 1.0) < 0.08, line


def test_what_cannot_be_reconstructed():
    model, x = seeded(resnet), samples_of()
    file = coarse(model, effort=1)
    assert reconstruct(file, model, x[:39]) is file, "too few to tell"
    with pytest.raises(ConfigError, match="logits"):
        reconstruct(file, nn.Sequential(OrderedDict([*model.named_children(), ("last", nn.Flatten(0))])), x)
    words, text = build("words"), inputs("words", 60)
    packed = tersor.compress(words, bits=4.0, effort=1)
    kept = reconstruct(packed, words, text, steps=5)
    assert kept.size <= packed.size


def test_memory_is_bounded(monkeypatch):
    """With little room fewer samples are taken; at least one batch."""
    model = seeded(vgg)
    file = coarse(model, effort=1)
    monkeypatch.setattr(reconstruction, "CACHE", 1)
    sizes: list[int] = []
    draw = torch.randint

    def seen(high: int, *args: Any, **kwargs: Any) -> Tensor:
        sizes.append(high)
        return draw(high, *args, **kwargs)

    monkeypatch.setattr(reconstruction.torch, "randint", seen)
    assert reconstruct(file, model, samples_of(), steps=3).size <= file.size
    assert sizes.count(64) == 3 * 4
