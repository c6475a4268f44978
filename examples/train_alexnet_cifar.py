"""Train `AlexNetCifar` on CIFAR-10, for `benchmarks/lnq_alexnet.py`.

    python examples/train_alexnet_cifar.py --data ../shared/data/cifar10 --out alexnet_cifar.safetensors

The data are all of CIFAR-10 as JPEG copies, split as `image_data.py` says: choices are made on held-out training
images, never on the test images. Adam, one cycle of the learning rate, flips and shifts by up to two
pixels, bfloat16 autocast, He initialisation, fixed seeds. The weights are 18 MB, so they are not part of this
repository; with as many threads and the same PyTorch the script makes the same ones again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from image_data import Pair, accuracy, batches, normalised, read, split
from networks import AlexNetCifar
from safetensors.torch import save_file
from torch import nn

__all__ = ["Pair", "batches", "decoded", "initialised", "normalised", "split", "train"]

decoded = read  # the name that benchmarks/lnq_alexnet.py knows


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
    data, held_out = split(read(options.data / "jpeg_train.npz"))
    model = initialised(AlexNetCifar())
    train(model, data, held_out, options.epochs, options.rate, options.batch)
    save_file(model.state_dict(), options.out)
    test = read(options.data / "jpeg_test.npz")
    print(f"test accuracy {accuracy(model, test):.2%} on {len(test[1]):,} images")


if __name__ == "__main__":
    main()
