"""CIFAR-10 for the examples and benchmarks: decoding, normalising, augmenting, and who may see which images.

Files (each .npz): `jpeg_train.npz` (50,000) and `jpeg_test.npz` (10,000) hold JPEG copies (`bytes` uint8, `offsets`
int64 [N + 1], `labels` uint8); `train.npz` and `test.npz` hold lossless `images` uint8 [N, 32, 32, 3] and `labels`.

The splits are the same everywhere: the last `HELD_OUT` images of a training file are held out, and every choice is
made on them; calibration takes its images from the others; test images are for reporting and nothing else.

    data = read(folder / "jpeg_train.npz")
    training, held_out = split(data)
    statistics_from = batches_in_order(calibration(training, 1024), 128)
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

HELD_OUT = 2_000
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as the published networks expect them; [0, 1] RGB."""

Pair = tuple[Tensor, Tensor]
"""Images uint8 [N, 3, H, W] and labels int64 [N]."""


def _decoded(path: Path, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images (None: all) of a file of either kind: uint8 [N, H, W, 3], int64 [N]."""
    with np.load(path) as file:
        labels = file["labels"][:count].astype(np.int64)
        if "images" in file:
            return file["images"][:count], labels
        data, offsets = file["bytes"], file["offsets"][: len(labels) + 1]
    images = []
    for start, end in itertools.pairwise(offsets):
        with Image.open(io.BytesIO(data[start:end].tobytes())) as image:
            images.append(np.asarray(image.convert("RGB")))
    return np.stack(images), labels


def read(path: str | Path, cache: str | Path | None = None, count: int | None = None) -> Pair:
    """The first `count` images of `path` (None: all).

    With `cache`, a folder, all decoded JPEG copies are kept there for the next time. The name in the cache depends on
    the size and the date of `path`, so a changed file is decoded anew.
    """
    path = Path(path)
    if cache is None:
        images, labels = _decoded(path, count)
    else:
        state = path.stat()
        key = zlib.crc32(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
        kept = Path(cache) / f"{path.stem}-{key:08x}.npz"
        if kept.exists():
            with np.load(kept) as file:
                images, labels = file["images"], file["labels"]
        else:
            images, labels = _decoded(path, None)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
                np.savez(file, images=images, labels=labels)
            os.replace(file.name, kept)  # never half a file, also with two programs at once
    images, labels = images[:count], labels[:count]
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


def split(data: Pair, held_out: int = HELD_OUT) -> tuple[Pair, Pair]:
    """Training images, and the last `held_out` ones, on which choices are made."""
    images, labels = data
    if not 0 < held_out < len(labels):
        raise ValueError(f"cannot hold out {held_out} of {len(labels)} images")
    return (images[:-held_out], labels[:-held_out]), (images[-held_out:], labels[-held_out:])


def calibration(training: Pair, count: int, seed: int = 0) -> Pair:
    """`count` images drawn without replacement from the training images (of `split`), always the same ones."""
    chosen = np.random.default_rng(seed).permutation(len(training[1]))[:count]
    if len(chosen) < count:
        raise ValueError(f"cannot draw {count} of {len(chosen)} images")
    return training[0][chosen], training[1][chosen]


def normalised(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32, ready for the networks."""
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def batches_in_order(data: Pair, size: int) -> Iterator[Pair]:
    """Normalised batches without augmentation, in order, the last one perhaps smaller."""
    for images, labels in zip(data[0].split(size), data[1].split(size), strict=True):
        yield normalised(images), labels


def augmented(images: Tensor, generator: torch.Generator, reach: int = 2) -> Tensor:
    """Normalised; half of the images mirrored, each shifted by up to `reach` pixels (borders reflected)."""
    count, size = len(images), images.shape[-1]
    padded = F.pad(normalised(images), (reach,) * 4, mode="reflect")
    y, x = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator) + torch.arange(size)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    x = torch.where(mirrored, x.flip(1), x)
    image = torch.arange(count).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def batches(data: Pair, size: int, generator: torch.Generator, reach: int = 2) -> Iterator[Pair]:
    """One epoch of augmented batches in a random order; what fills no batch is left out."""
    order = torch.randperm(len(data[1]), generator=generator)
    for chosen in order.split(size)[: len(order) // size]:
        yield augmented(data[0][chosen], generator, reach), data[1][chosen]


@torch.no_grad()
def accuracy(model: nn.Module, data: Pair, size: int = 256) -> float:
    """Share of right answers (top-1), in float32 and in eval mode."""
    model.eval()
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches_in_order(data, size)) / len(data[1])
