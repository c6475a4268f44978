"""The networks that `finetuned.py` tunes, with their images, their teachers and the views to train on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import common  # noqa: F401  (finds examples/)
import torch
from cifar_views import Views, mixed, ready, without_copies
from image_data import HELD_OUT, Pair, read, split
from lnq_lenet5 import augmented, digits
from networks import CifarResNet, LeNet5, cifar, load, load_zoo
from safetensors.torch import save_file
from torch import Tensor, nn

LOSSLESS = ("resnet20", "resnet32", "resnet56")
"""Networks of the data folder, for lossless images; the others are of examples/zoo, for JPEG copies."""
CALIBRATION, JUDGES, BATCH = 640, 768, 64
VIEWS = 96_000

Batch = tuple[Tensor, Tensor]
"""Inputs, and the answers of the teachers to them."""


@dataclass(frozen=True)
class Bench:
    """A network with its images as it wants them. `calibration`: training images; `judging`: other ones, with the
    teachers' answers; `test`; `batches`: views of training images without end, by a seed."""

    name: str
    model: nn.Module
    calibration: Tensor
    judging: list[Batch]
    test: Pair
    batches: Callable[[int], Iterator[Batch]]

    def fresh(self) -> nn.Module:
        """The same architecture with random weights."""
        if self.name == "lenet5":
            return LeNet5().eval()
        if self.name in LOSSLESS:
            return CifarResNet(int(self.name.removeprefix("resnet"))).eval()
        return cifar(self.name.removesuffix("_cifar")).eval()

    def file_bytes(self) -> int:
        """Of the network as a .safetensors file of float32."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "fp32.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, path)
            return path.stat().st_size


def bench(name: str, data: Path, cache: Path | None) -> Bench:
    """A network by name. `cache`: a folder for decoded images, and for views with their answers."""
    if name == "lenet5":
        return _mnist(data / "mnist")
    folder = data / "cifar10"
    lossless = name in LOSSLESS
    kind = "" if lossless else "jpeg_"
    (training, _), (judging, _) = split(read(folder / f"{kind}train.npz", cache), HELD_OUT)
    images, labels = read(folder / f"{kind}test.npz", cache)
    judging = judging[-JUDGES:]
    if lossless:
        # Three networks together are a better teacher than one, and there are more images than lossless ones.
        each = {other: load(CifarResNet(int(other.removeprefix("resnet"))), folder / f"{other}.safetensors")
                for other in LOSSLESS}
        model, teachers = each[name], list(each.values())
        copies = folder / "jpeg_train.npz"
        sources = [training, without_copies(read(copies, cache)[0], judging)] if copies.exists() else [training]
    else:
        model = load_zoo(name)
        teachers, sources = [model], [training]
    for network in teachers:
        network.to(memory_format=torch.channels_last)
    views = _views("lossless" if lossless else name, sources, teachers, cache)

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield views.batch(BATCH, generator)

    return Bench(name, model, ready(training[:CALIBRATION]), _answered(ready(judging), teachers),
                 (ready(images), labels), batches)  # fmt: skip


def _views(name: str, sources: Sequence[Tensor], teachers: Sequence[nn.Module], cache: Path | None) -> Views:
    """Views and answers, which `cache` keeps."""
    path = None if cache is None else cache / f"views-{name}-{VIEWS}.pt"
    if path is not None and path.exists():
        return Views(*torch.load(path))
    images = torch.cat(list(mixed(list(sources), VIEWS, torch.Generator().manual_seed(7))))
    views = Views.of(images, teachers)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save((views.images, views.answers), path)
    return views


@torch.no_grad()
def _answered(x: Tensor, teachers: Sequence[nn.Module]) -> list[Batch]:
    """Batches of inputs with the teachers' mean answers, in float32."""
    return [(part, torch.stack([teacher(part) for teacher in teachers]).mean(0)) for part in x.split(256)]


def _mnist(folder: Path) -> Bench:
    """LeNet-5, and digits; views are turned, scaled and sheared a little."""
    images = digits(folder)
    train = images.train[0]
    model = load(LeNet5(), folder / "lenet5_caffe.safetensors").to(memory_format=torch.channels_last)

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            x = augmented(train[torch.randint(len(train), (BATCH,), generator=generator)], generator)
            with torch.no_grad():
                y = model(x)
            yield x, y

    return Bench("lenet5", model, train[:CALIBRATION], _answered(images.held_out[0][:JUDGES], [model]), images.test,
                 batches)  # fmt: skip
