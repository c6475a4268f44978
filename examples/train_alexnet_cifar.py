"""Train `AlexNetCifar` on CIFAR-10, for `benchmarks/lnq_alexnet.py`.

    python examples/train_alexnet_cifar.py --data ../shared/data/cifar10 --out alexnet_cifar.safetensors

The data are all of CIFAR-10 as JPEG copies: jpeg_train.npz (50,000) and jpeg_test.npz (10,000), each with
`bytes` uint8, `offsets` int64 [N + 1] and `labels` uint8. The last 2,000 training images are held out: choices
are made on them, never on the test images. Adam, one cycle of the learning rate, flips and shifts by up to two
pixels, bfloat16 autocast, He initialisation, fixed seeds. The weights are 18 MB, so they are not part of this
repository; with as many threads and the same PyTorch the script makes the same ones again.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from networks import AlexNetCifar
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

HELD_OUT = 2_000
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Pair = tuple[Tensor, Tensor]


def decoded(path: Path) -> Pair:
    """All images of a file of JPEG copies: uint8 [N, 3, 32, 32], int64 [N]."""
    with np.load(path) as file:
        data, offsets, labels = file["bytes"], file["offsets"], file["labels"]
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for i in range(len(labels)):
        with Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())) as image:
            images[i] = np.asarray(image.convert("RGB"))
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.astype(np.int64))


def split(pair: Pair) -> tuple[Pair, Pair]:
    """Training images, held-out training images."""
    images, labels = pair
    return (images[:-HELD_OUT], labels[:-HELD_OUT]), (images[-HELD_OUT:], labels[-HELD_OUT:])


def normalised(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32."""
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def augmented(images: Tensor, generator: torch.Generator, reach: int = 2) -> Tensor:
    """Half of the images mirrored, each shifted by up to `reach` pixels (borders reflected)."""
    count, size = len(images), images.shape[-1]
    padded = F.pad(normalised(images), (reach,) * 4, mode="reflect")
    y, x = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator) + torch.arange(size)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    x = torch.where(mirrored, x.flip(1), x)
    image = torch.arange(count).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def batches(data: Pair, size: int, generator: torch.Generator) -> Iterator[Pair]:
    """One epoch of augmented batches in a random order; what fills no batch is left out."""
    order = torch.randperm(len(data[1]), generator=generator)
    for chosen in order.split(size)[: len(order) // size]:
        yield augmented(data[0][chosen], generator), data[1][chosen]


@torch.no_grad()
def accuracy(model: nn.Module, data: Pair) -> float:
    """Share of right answers, in float32."""
    model.eval()
    parts = zip(data[0].split(256), data[1].split(256), strict=True)
    return sum(int((model(normalised(x)).argmax(1) == y).sum()) for x, y in parts) / len(data[1])


def initialised(model: nn.Module) -> nn.Module:
    """He et al. (2015): without BatchNorm the default start of PyTorch learns slowly."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def train(model: nn.Module, data: Pair, held_out: Pair, epochs: int, rate: float, size: int) -> None:
    """Train in place, with a line per epoch."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    total = epochs * (len(data[1]) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total, pct_start=0.2, cycle_momentum=False)
    started = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        losses = []
        for step, (x, y) in enumerate(batches(data, size, generator)):
            with torch.autocast("cpu", torch.bfloat16):
                output = model(x)
            loss = F.cross_entropy(output.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if step % 100 == 99:
                print(f"  step {step + 1}: loss {np.mean(losses[-100:]):.3f}", flush=True)
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, held out {accuracy(model, held_out):.2%}, {seconds:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("alexnet_cifar.safetensors"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data, held_out = split(decoded(options.data / "jpeg_train.npz"))
    model = initialised(AlexNetCifar())
    train(model, data, held_out, options.epochs, options.rate, options.batch)
    save_file(model.state_dict(), options.out)
    test = decoded(options.data / "jpeg_test.npz")
    print(f"test accuracy {accuracy(model, test):.2%} on {len(test[1]):,} images")


if __name__ == "__main__":
    main()
