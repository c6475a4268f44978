"""The networks that `finetuned.py` tunes, with their images and the views to train on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common  # noqa: F401  (finds examples/)
import torch
import torch.nn.functional as F
from cifar_views import crops, divergence, ready
from image_data import HELD_OUT, Pair, read, split
from lnq_lenet5 import augmented, digits
from networks import AlexNetCifar, CifarResNet, LeNet5, cifar, load, load_zoo
from safetensors.torch import save_file
from torch import Tensor, nn

from tersor.training.loop import adam
from tersor.training.recovery import blended
from tersor.training.trainable import LATENT_RATE

LOSSLESS = ("resnet20", "resnet32", "resnet56")
"""Networks of the data folder, for lossless images; the others are of examples/zoo, for JPEG copies."""
CALIBRATION, JUDGES, BATCH = 640, 2000, 64
"""Images (see `images_for`), images, views."""
FULL = ("vgg16_bn_full", "resnet18_full")
"""Networks with all their channels, 45 and 59 MB as float32 and so not in examples/zoo: `python examples/train_cifar.py
--network vgg16_bn_full --epochs 7` and `--network resnet18_full --epochs 6` make them again."""
LINEAR = ("lenet5", "alexnet_cifar")
"""Networks whose weights are mostly in linear layers."""
GIVEN = (*FULL, "alexnet_cifar")
"""Networks whose weights are given by --full. AlexNet's, 18 MB: `python examples/train_alexnet_cifar.py`."""
FEW_DATA = 1e-3
"""Learning rate of integers for the networks of the data folder, of whose training images 6,068 are there without
loss: so `SHARE` of the views are JPEG copies of all of them, half of all views are blends of two, and steps are small.
(ResNet-32 at 0.8 bits/weight, 500 batches, loss on held-out lossless training images: 0.0525 before; after, 0.0492
without JPEG copies, 0.0462 with; at the usual 5e-3 and without blends 0.0499. Their labels are not used.)"""
SHARE = 0.5
LABELS, SMOOTHING = 0.5, 0.05
"""Weight of the labels in the loss, and how much they are smoothed, of networks of examples/zoo. Those of the data
folder know the labels of all training images, so that nothing is to be learnt from these."""

Batch = tuple[Tensor, Tensor]
"""Inputs, and targets: the answers of the fp32 network, beside labels as 0 and 1 [N, 2 * classes]."""


@dataclass(frozen=True)
class Bench:
    """A network with its images as it wants them. `calibration`: batches of training images; `judging`: others, with
    targets; `test`; `batches`: views of training images without end, by a seed."""

    name: str
    model: nn.Module
    calibration: list[Tensor]
    judging: list[Batch]
    test: Pair
    batches: Callable[[int], Iterator[Batch]]
    labels: float = 0.0
    rate: float = LATENT_RATE  # of integers

    def fresh(self) -> nn.Module:
        """The same architecture with random weights."""
        if self.name == "lenet5":
            return LeNet5().eval()
        if self.name in LOSSLESS:
            return CifarResNet(int(self.name.removeprefix("resnet"))).eval()
        return _made(self.name).eval()

    def file_bytes(self) -> int:
        """Of the network as a .safetensors file of float32."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "fp32.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, path)
            return path.stat().st_size

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Adam at the network's own learning rate for integers."""
        return adam(latents=self.rate)(groups)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Divergence from the fp32 network's answers, and cross entropy to smoothed labels where these count."""
        answers, labels = targets.chunk(2, 1)
        distance = divergence(outputs.float(), answers)
        if self.labels == 0.0:
            return distance
        smooth = (1.0 - SMOOTHING) * labels + SMOOTHING / labels.shape[1]
        return self.labels * F.cross_entropy(outputs.float(), smooth) + (1.0 - self.labels) * distance


def _made(name: str) -> nn.Module:
    """A network for JPEG copies, with random weights."""
    return AlexNetCifar() if name == "alexnet_cifar" else cifar(name.removesuffix("_cifar"))


def bench(name: str, data: Path, cache: Path | None, full: Path | None = None) -> Bench:
    """A network by name. `cache`: a folder for decoded images. `full`: the weights of one of `GIVEN`."""
    if name == "lenet5":
        return _mnist(data / "mnist")
    folder = data / "cifar10"
    lossless = name in LOSSLESS
    kind = "" if lossless else "jpeg_"
    training, judging = split(read(folder / f"{kind}train.npz", cache), HELD_OUT)
    images, labels = read(folder / f"{kind}test.npz", cache)
    if lossless:
        model: nn.Module = load(CifarResNet(int(name.removeprefix("resnet"))), folder / f"{name}.safetensors")
    elif name in GIVEN:
        if full is None:
            raise FileNotFoundError(f"{name} must be trained first, and given by --full")
        model = load(_made(name), full)
    else:
        model = load_zoo(name)
    model = model.eval().to(memory_format=torch.channels_last)

    sources = [(training, BATCH)]
    if lossless:
        copies = _without(read(folder / "jpeg_train.npz", cache), judging[0])
        sources = [(training, BATCH - round(SHARE * BATCH)), (copies, round(SHARE * BATCH))]

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            drawn = [_drawn(source, count, generator) for source, count in sources]
            x, y = (torch.cat(part) for part in zip(*drawn, strict=True))
            yield _answered(model, blended(x, generator) if lossless else x, y)

    calibration = ready(training[0][: images_for(name)]).split(64 if name in FULL else 80)
    return Bench(name, model, list(calibration), _judges(model, ready(judging[0]), judging[1]),
                 (ready(images), labels), batches, 0.0 if lossless else LABELS,
                 FEW_DATA if lossless else LATENT_RATE)  # fmt: skip


def images_for(name: str) -> int:
    """Images to calibrate on. An image is one sample of a linear layer's inputs: networks whose weights are mostly in
    such layers want many."""
    return 256 if name in FULL else 3000 if name in LOSSLESS else 5000 if name in LINEAR else CALIBRATION


def _without(copies: Pair, images: Tensor) -> Pair:
    """JPEG copies but those of `images`: the nearest to each, at a quarter of the resolution."""
    small, wanted = (F.avg_pool2d(part.float(), 4).flatten(1) for part in (copies[0], images))
    kept = torch.ones(len(small), dtype=torch.bool)
    kept[torch.cat([torch.cdist(part, small).argmin(1) for part in wanted.split(250)])] = False
    return copies[0][kept], copies[1][kept]


def _drawn(source: Pair, count: int, generator: torch.Generator) -> Batch:
    """Crops and mirror images of some images, and their labels."""
    chosen = torch.randint(len(source[1]), (count,), generator=generator)
    return ready(crops(source[0][chosen], generator)), source[1][chosen]


@torch.no_grad()
def _answered(model: nn.Module, x: Tensor, y: Tensor) -> Batch:
    """A batch with its targets."""
    answers = model(x)
    return x, torch.cat([answers, F.one_hot(y, answers.shape[1]).to(answers)], 1)


def _judges(model: nn.Module, x: Tensor, y: Tensor) -> list[Batch]:
    return [_answered(model, *pair) for pair in zip(x[:JUDGES].split(250), y[:JUDGES].split(250), strict=True)]


def _mnist(folder: Path) -> Bench:
    """LeNet-5, and digits; views are turned, scaled and sheared a little."""
    images = digits(folder)
    train, labels = images.train
    model = load(LeNet5(), folder / "lenet5_caffe.safetensors").eval().to(memory_format=torch.channels_last)

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(train), (BATCH,), generator=generator)
            yield _answered(model, augmented(train[chosen], generator), labels[chosen])

    calibration = list(train[: images_for("lenet5")].split(80))
    return Bench("lenet5", model, calibration, _judges(model, *images.held_out), images.test, batches)
