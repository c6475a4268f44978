"""The networks of `frontier.py`: images to calibrate on, images held out, images to test on, and what is measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import common
import numpy as np
import torch
from coding_gains import photograph
from networks import CifarResNet, LeNet5, SqueezeNet, load
from torch import Tensor, nn

import tersor
from tersor import Statistics, evaluate

NAMES = ("resnet20", "resnet32", "resnet56", "lenet5", "squeezenet1_1")
TITLES = {"resnet20": "ResNet-20", "resnet32": "ResNet-32", "resnet56": "ResNet-56", "lenet5": "LeNet-5",
          "squeezenet1_1": "SqueezeNet 1.1"}  # fmt: skip
CALIBRATION = {"squeezenet1_1": 744}
"""Images; 3,000 for the others. The second walk takes all of them (of SqueezeNet as many as its memory holds)."""
TIMED = 256
"""Images of SqueezeNet's calibration where it is timed; 320 of the others."""
HELD_OUT = {"squeezenet1_1": 256}
"""Training images that calibration has not seen, for judging the encoder itself; 1,000 for the others."""


@dataclass
class Network(common.Subject):
    """A subject with held-out training images."""

    held_out: Tensor

    @cached_property
    def held_out_reference(self) -> Tensor:
        """Outputs of the fp32 network on the held-out images."""
        return evaluate.logits(self.model, self.held_out.split(128))

    def held_out_snr(self, restored: nn.Module) -> float:
        """Signal-to-noise ratio of the outputs on the held-out images, dB."""
        y = evaluate.logits(restored, self.held_out.split(128)).double()
        signal = self.held_out_reference.double()
        return float(10 * torch.log10((signal**2).sum() / ((y - signal) ** 2).sum()))

    def blank(self) -> nn.Module:
        """A network of the same architecture and other weights."""
        made = {"lenet5": LeNet5, "squeezenet1_1": SqueezeNet}.get(self.name)
        return made() if made is not None else CifarResNet(int(self.name.removeprefix("resnet")))

    def statistics(self, folder: Path, images: int | None = None) -> tuple[Statistics, float | None]:
        """Calibration on the first `images` of the calibration images (None: all), kept in `folder`; and the seconds
        of CPU that it took, None where it was there."""
        path = folder / f"{self.name}{'' if images is None else f'_{images}'}.stats"
        if path.exists():
            return Statistics.load(path), None
        start = time.process_time()
        batches = self.calibration[:images].split(16 if self.images.shape[-1] > 64 else 80)
        found = tersor.calibrate(self.model, batches, keep=len(self.calibration) if images is None else None)
        seconds = time.process_time() - start
        folder.mkdir(parents=True, exist_ok=True)
        found.save(path)
        return found, seconds


def network(name: str, data: Path) -> Network:
    """One of NAMES with its images."""
    count, held = CALIBRATION.get(name, 3000), HELD_OUT.get(name, 1000)
    if name.startswith("resnet"):
        base = common.subject(name, data, count)
        with np.load(data / "cifar10" / "train.npz") as train:
            tail = common.normalised(train["images"][-held:])
        return Network(name, base.model, base.calibration, base.images, base.labels, base.file_bytes, tail)
    if name == "lenet5":
        weights = data / "mnist" / "lenet5_caffe.safetensors"
        with np.load(data / "mnist" / "mnist.npz") as file:
            train, test = (torch.from_numpy(file[f"{part}_images"].astype(np.float32) / 256)[:, None]
                           for part in ("train", "test"))  # fmt: skip
            labels = torch.from_numpy(file["test_labels"].astype(np.int64))
        size = weights.stat().st_size
        return Network(name, load(LeNet5(), weights), train[:count], test, labels, size, train[-held:])
    folder = data / "imagenet"
    weights = folder / "squeezenet1_1.safetensors"
    paths = sorted((folder / "calibration").glob("*.jpg"))
    rows = [line.split(",") for line in (folder / "evaluation" / "labels.csv").read_text().split()[1:]]
    images, train, tail = (torch.stack([photograph(path) for path in part]) for part in (
        [folder / "evaluation" / file for file, _ in rows], paths[:count], paths[count : count + held]))  # fmt: skip
    labels = torch.tensor([int(label) for _, label in rows])
    return Network(name, load(SqueezeNet(), weights), train, images, labels, weights.stat().st_size, tail)
