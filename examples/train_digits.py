"""Trains the network that `make demo` compresses: `python examples/train_digits.py` (half a minute).

Writes `examples/digits.safetensors`. Everything is seeded; on another processor the last bits may differ.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from digits_data import test_split, train_split
from networks import DigitsNet
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent


def shifted(images: Tensor, generator: torch.Generator, *, furthest: int = 1) -> Tensor:
    """Move each image [N, 1, H, W] by up to `furthest` pixels in x and y, filling with background."""
    count, _, height, width = images.shape
    padded = F.pad(images, (furthest,) * 4)
    corner = torch.randint(0, 2 * furthest + 1, (2, count), generator=generator)
    rows = corner[0][:, None, None] + torch.arange(height)[None, :, None]
    columns = corner[1][:, None, None] + torch.arange(width)[None, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns].unsqueeze(1)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers, 0..1, in eval mode."""
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def train(*, epochs: int, batch: int = 64, rate: float = 0.1, seed: int = 0) -> DigitsNet:
    """SGD with momentum and a one-cycle learning rate, on the training split only."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = train_split()
    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        for chosen in torch.randperm(len(images), generator=generator).split(batch):
            if len(chosen) < batch:
                continue  # one batch of 40 would unsettle the BatchNorm statistics
            loss = F.cross_entropy(
                model(shifted(images[chosen], generator)), labels[chosen], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}: loss of the last batch {loss.item():.3f}")
    return model.eval()


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "digits.safetensors")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    model = train(epochs=options.epochs, seed=options.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{parameters:,} parameters, test accuracy {accuracy(model, *test_split()):.2%}, "
        f"training accuracy {accuracy(model, *train_split()):.2%}, {time.perf_counter() - start:.0f} s"
    )
    save_file(model.state_dict(), options.output)
    print(f"wrote {options.output} ({options.output.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
