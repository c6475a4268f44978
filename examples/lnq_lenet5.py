"""LeNet-5 on MNIST, pruned, quantised and fine-tuned: the pipeline behind `examples/zoo/lenet5.tersor`.

    python examples/lnq_lenet5.py --data ../shared/data/mnist --out lnq-out

Stages, one line each, every one written to `--out` and skipped when it is there already (with the same
result, as each has random numbers of its own):

1. dense: the trained network fine-tuned with small shifts, rotations and scalings; it becomes the teacher.
2. prune: layer-adaptive magnitude pruning (Lee et al. 2021) to `--keep` of the weights on the cubic schedule
   of Zhu and Gupta (2017), while training; pruned weights may come back until the masks are frozen (Guo et
   al. 2016). Also written bit for bit as a .tersor file, `examples/zoo/lenet5_pruned.tersor`.
3. round: integers instead of weights, a price per bit in the loss (`rate_training.py`), until the file has
   `--bytes`.

All on the first 55,000 training images; the last 5,000 are held out to judge the stages by. The 10,000 test
images are only measured, at the end of each stage. The forward pass is in bfloat16 (`--exact`: float32).
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lossless import lossless
from networks import LeNet5, load
from rate_training import RoundedNetwork, file_of
from safetensors.torch import save_file
from torch import Tensor, nn

import tersor

ROOT = Path(__file__).resolve().parent.parent
TRAINING = 55_000
BATCH = 128
TEMPERATURE = 2.0
LABELS = 0.3
"""Share of the labels in the loss; the rest is the teacher's."""
PARAMETERS = 431_080


@dataclass(frozen=True)
class Digits:
    """MNIST as float32 [N, 1, 28, 28] in 0..1 (pixel / 256) with int64 labels."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits(folder: Path) -> Digits:
    """From mnist.npz with train_images uint8 [60000, 28, 28], train_labels, test_images, test_labels."""
    with np.load(folder / "mnist.npz") as file:
        arrays = {name: torch.from_numpy(file[name].copy()) for name in file.files}
    images, labels = arrays["train_images"][:, None].float() / 256, arrays["train_labels"].long()
    test = arrays["test_images"][:, None].float() / 256, arrays["test_labels"].long()
    return Digits((images[:TRAINING], labels[:TRAINING]), (images[TRAINING:], labels[TRAINING:]), test)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 10 degrees, scaled and sheared by up to 10%, shifted by up to 2 pixels."""
    count = len(images)

    def random(reach: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * reach

    angle, wide, high, shear = random(math.radians(10)), 1 + random(0.1), 1 + random(0.1), random(0.1)
    first = torch.stack([wide * angle.cos(), shear - angle.sin(), random(2 / 14)], 1)
    second = torch.stack([angle.sin(), high * angle.cos(), random(2 / 14)], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).contiguous(memory_format=torch.channels_last)


def batches(data: tuple[Tensor, Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented batches."""
    order = torch.randperm(len(data[0]), generator=generator)
    for chosen in order.split(BATCH)[: len(order) // BATCH]:
        yield augmented(data[0][chosen], generator), data[1][chosen]


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    parts = zip(data[0].split(500), data[1].split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(data[1])


def distance(output: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    """Cross-entropy with the labels and, where there is a teacher, with its softened answers."""
    hard = F.cross_entropy(output, labels)
    if teacher is None:
        return hard
    soft = F.kl_div(
        F.log_softmax(output / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean"
    )
    return LABELS * hard + (1 - LABELS) * TEMPERATURE**2 * soft


class _Masked(torch.autograd.Function):
    """weight * mask whose gradient also reaches the masked weights, so that they can come back."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def adaptive_masks(weights: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Masks float32 of the `keep` share with the largest w^2 / (sum of v^2 over the layer's |v| >= |w|)."""
    scores = {}
    for name, weight in weights.items():
        squares, order = weight.detach().double().flatten().square().sort()
        remaining = squares.flip(0).cumsum(0).flip(0)
        scores[name] = torch.empty_like(squares).index_put_((order,), squares / remaining)
    together = torch.cat(list(scores.values()))
    kept = max(1, int(keep * len(together)))
    threshold = together.kthvalue(len(together) - kept + 1).values
    return {name: (score >= threshold).float().view_as(weights[name]) for name, score in scores.items()}


@dataclass
class Trainer:
    """What the stages share."""

    data: Digits
    seed: int
    exact: bool

    def __post_init__(self) -> None:
        self.generator = torch.Generator()

    def epochs(
        self,
        count: int,
        forward: Callable[[Tensor], Tensor],
        teacher: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        extra: Callable[[float], Tensor | None],
    ) -> None:
        """Train for `count` epochs with cosine learning rates.

        `extra(progress)` runs before each step and may return a term to add to the loss.
        """
        first = [group["lr"] for group in optimizer.param_groups]
        total, step = count * (len(self.data.train[0]) // BATCH), 0
        for _ in range(count):
            for images, labels in batches(self.data.train, self.generator):
                progress = step / total
                for group, rate in zip(optimizer.param_groups, first, strict=True):
                    group["lr"] = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
                term = extra(progress)
                with torch.autocast("cpu", torch.bfloat16, enabled=not self.exact):
                    output = forward(images)
                    with torch.no_grad():
                        answer = teacher(images).float() if teacher is not None else None
                loss = distance(output.float(), labels, answer)
                optimizer.zero_grad()
                (loss if term is None else loss + term).backward()
                optimizer.step()
                step += 1

    def dense(self, model: LeNet5, epochs: int) -> LeNet5:
        """Stage 1: the network itself, a little better."""
        self.generator.manual_seed(self.seed)
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        self.epochs(epochs, model, None, torch.optim.Adam(model.parameters(), lr=1e-3), lambda _: None)
        return model

    def prune(
        self, teacher: nn.Module, keep: float, epochs: int, ramp: float = 0.5, frozen: float = 0.7
    ) -> LeNet5:
        """Stage 2: from all weights to the share `keep` of them within the first `ramp` of the training; the
        masks move until `frozen` of it."""
        self.generator.manual_seed(self.seed + 1)
        model = copy.deepcopy(teacher)
        assert isinstance(model, LeNet5)
        parameters = dict(model.named_parameters())
        weights = {name: p for name, p in parameters.items() if p.ndim > 1}
        masks: dict[str, Tensor] = {}
        every = max(1, min(16, epochs * (len(self.data.train[0]) // BATCH) // 32))
        calls = 0

        def update(progress: float) -> None:
            nonlocal masks, calls
            if progress <= frozen and calls % every == 0:
                share = keep + (1 - keep) * (1 - min(progress / ramp, 1.0)) ** 3
                masks = adaptive_masks(weights, share)
            calls += 1

        def forward(images: Tensor) -> Tensor:
            live = {name: _Masked.apply(weight, masks[name]) for name, weight in weights.items()}
            output: Tensor = torch.func.functional_call(model, live, (images,))
            return output

        optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
        self.epochs(epochs, forward, teacher, optimizer, update)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name]).add_(0.0)  # -0.0 becomes 0.0, which costs less in a lossless file
        return model

    def round(self, pruned: LeNet5, teacher: nn.Module, size: int, epochs: int) -> bytes:
        """Stage 3: a file of about `size` bytes."""
        self.generator.manual_seed(self.seed + 2)
        rounded = RoundedNetwork(copy.deepcopy(pruned), *first_integers(pruned))
        start, price, calls = rounded.refresh() / 8, 1e-6, 0

        def rate(progress: float) -> Tensor:
            nonlocal price, calls
            if calls % 10 == 0:  # the price follows the size that is wanted by now
                wanted = start + (size - start) * min(progress / 0.6, 1.0)
                excess = rounded.refresh() / 8 / wanted - 1
                price = min(max(price * math.exp(min(max(3 * excess, -0.2), 0.2)), 1e-8), 1e-4)
            calls += 1
            return price * rounded.rate()

        groups = [{"params": list(rounded.x), "lr": 8e-3}, {"params": [rounded.exponents], "lr": 2e-3}]
        self.epochs(epochs, rounded, teacher, torch.optim.Adam(groups), rate)
        return file_of(rounded)


def first_integers(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Latents and steps of a pruned network: weights at 0.8 of the survivors' median, biases at a quarter.
    No survivor starts as zero."""
    latents, steps = {}, {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        middle = float(weight[weight != 0].abs().median())
        steps[name] = middle * (0.8 if weight.ndim > 1 else 0.25)
        x = weight / steps[name]
        latents[name] = torch.where((weight != 0) & (x.abs() < 0.55), 0.55 * x.sign(), x)
    return latents, steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("TERSOR_DATA") or ROOT.parent / "shared" / "data") / "mnist"
    parser.add_argument(
        "--data", type=Path, default=data, help="folder with mnist.npz and lenet5_caffe.safetensors"
    )
    parser.add_argument("--out", type=Path, default=Path("lnq-out"))
    parser.add_argument("--keep", type=float, default=0.02, help="share of the weights that pruning leaves")
    parser.add_argument("--bytes", type=int, default=6000, help="size to train towards, as estimated")
    parser.add_argument("--epochs", type=int, nargs=3, default=(8, 16, 4), help="of dense, prune and round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exact", action="store_true", help="train in float32 instead of bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # second moments of pruned weights fade away: as denormals they cost much time
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    images = digits(options.data)
    trainer = Trainer(images, options.seed, options.exact)
    started = time.perf_counter()

    def report(stage: str, model: nn.Module, size: int) -> None:
        survivors = sum(int((p != 0).sum()) for p in model.parameters())
        print(
            f"{stage:6} {size:>9,} bytes  {4 * PARAMETERS / size:6.1f}x  {survivors:>7,} not zero  held out "
            f"{accuracy(model, images.held_out):.2%}  test {accuracy(model, images.test):.2%}  "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )

    def stage(name: str, make: Callable[[], LeNet5]) -> LeNet5:
        path = options.out / f"{name}.safetensors"
        if not path.exists():
            save_file({key: value.contiguous() for key, value in make().state_dict().items()}, path)
        model = load(LeNet5(), path).to(memory_format=torch.channels_last)
        report(name, model, 4 * PARAMETERS)
        return model

    original = load(LeNet5(), options.data / "lenet5_caffe.safetensors")
    report("given", original, 4 * PARAMETERS)
    dense = stage("dense", lambda: trainer.dense(original, options.epochs[0]))
    pruned = stage("prune", lambda: trainer.prune(dense, options.keep, options.epochs[1]))
    (options.out / "lenet5_pruned.tersor").write_bytes(lossless(pruned))
    file = options.out / "lenet5.tersor"
    if not file.exists():
        file.write_bytes(trainer.round(pruned, dense, options.bytes, options.epochs[2]))
    restored = tersor.restore(file, into=LeNet5()).eval()
    report("round", restored, file.stat().st_size)


if __name__ == "__main__":
    main()
