"""ResNet-32 on CIFAR-10, trained in the integers of its file: the pipeline behind `zoo/resnet32.tersor`.

    python examples/lnq_resnet32.py --data ../shared/data/cifar10 --out lnq-out

Stages, each written to `--out` and skipped when it is there already, with the same result:

1. views: inputs made of lossless training images and JPEG copies, if they are there (`cifar_views.py`), and the
   mean answers of ResNet-20, 32 and 56 to them. Labels are not used.
2. pruned: the network itself, weights of the smallest second-order cost set to zero step by step while it learns
   from the answers. `resnet32_pruned.safetensors`, for benchmarks/lnq_table1.py; the files do not need it.
3. start: `tersor.compress` of the network as given at `--bits`, calibrated on 1,024 training images.
4. a file for each of `--sizes`, each from the integers of the one before, trained to repeat the answers
   (`rate_training.py`) while a price per bit brings the size down. `resnet32_SIZE.tersor`.

The last 768 training images, their JPEG copies and 1,000 other copies are held out; test images are only
measured. Training is in bfloat16, with a checkpoint every 500 steps.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cifar_views import Views, divergence, mixed, ready, without_copies
from image_data import read
from networks import CifarResNet, load
from rate_training import RoundedNetwork, file_of
from safetensors.torch import save_file
from torch import Tensor, nn

import tersor
from tersor import Statistics, evaluate
from tersor.tools.pruning import CubicSchedule, Mask, masks, sensitivity_scores
from tersor.tools.scalar import ROW_RESOLUTION
from tersor.training.masks import keep_masks

ROOT = Path(__file__).resolve().parent.parent
BATCH = 64
HELD_OUT = 768
GRID = 32
PARAMETERS = 464_154
TEMPERATURE = 2.0
RENEWAL = 50
"""Steps between two prunings."""
CHECKPOINT = 500
"""Steps between two checkpoints: a multiple of 10, as code lengths and price are renewed every 10 steps."""


def integers_of(restored: nn.Module, original: nn.Module) -> RoundedNetwork:
    """A restored network as integers times steps; the latents lean towards the original weights."""
    latents, steps, rows = {}, {}, {}
    before = dict(original.named_parameters())
    for name, parameter in restored.named_parameters():
        if parameter.ndim < 2:
            continue
        weight = parameter.detach()
        flat = weight.flatten(1).abs()
        smallest = torch.where(flat > 0, flat, torch.inf).amin(1)  # of each row: its step, if it has a 1
        k = torch.where(smallest < torch.inf, torch.round(GRID * torch.log2(smallest)), torch.inf)
        base = int(k.min())
        if name == "linear.weight":  # the one layer that no BatchNorm follows may have steps of its own per row
            unit = GRID >> ROW_RESOLUTION
            rows[name] = np.where(np.isfinite(k.numpy()), np.rint((k.numpy() - base) / unit), 0).astype(np.int64)
            row_step = torch.from_numpy(2.0 ** (base / GRID + rows[name] / 2.0**ROW_RESOLUTION)).float()[:, None]
        else:
            row_step = torch.full((len(flat), 1), 2.0 ** (base / GRID))
        q = (weight.flatten(1) / row_step).round()
        own = before[name].detach().flatten(1)
        scale = (own * q).sum(1, keepdim=True) / (q * q).sum(1, keepdim=True).clamp(min=1e-9)
        lean = torch.where(scale != 0, own / scale, q) - q
        latents[name] = (q + lean.clamp(-0.45, 0.45)).view_as(weight)
        steps[name] = 2.0 ** (base / GRID)
        parameter.requires_grad_(False)
    return RoundedNetwork(restored, latents, steps, rows, train_steps=False)


def distance(student: Callable[[Tensor], Tensor], views: Views, generator: torch.Generator) -> Tensor:
    """Softened divergence between the student's and the teacher's answers to a batch of views."""
    x, target = views.batch(BATCH, generator)
    with torch.autocast("cpu", torch.bfloat16):
        output = student(x)
    return TEMPERATURE**2 * divergence(output.float() / TEMPERATURE, target / TEMPERATURE)


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm up for 3% of the steps, then fall to zero."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / max(1, 0.03 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
    )


@dataclass
class Shrinking:
    """Integers that are trained until their file has `size` bytes: the first 40% of the steps lead there."""

    rounded: RoundedNetwork
    views: Views
    steps: int
    size: int
    seed: int
    rate: float = 1e-3
    """Learning rate of the integers, in steps; BatchNorm and biases learn at 3e-4."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        others = [p for p in self.rounded.others if p.requires_grad]
        groups = [{"params": list(self.rounded.x), "lr": self.rate}, {"params": others, "lr": 3e-4}]
        self.optimizer = torch.optim.Adam(groups)
        self.schedule = cosine(self.optimizer, self.steps)
        self.step, self.price = 0, 1e-6
        self.start, self.per_bit = self._bytes(), 0.0

    def _bytes(self) -> int:
        return len(file_of(self.rounded))

    def run(self, checkpoint: Path | None = None, progress: Callable[[str], None] = print) -> None:
        """All steps, from the checkpoint on where there is one."""
        if checkpoint is not None and checkpoint.exists():
            self._load(torch.load(checkpoint))
        loss = 0.0
        while self.step < self.steps:
            if self.step % 100 == 0:  # bytes of the file for a bit of the estimate
                self.per_bit = self._bytes() / self.rounded.refresh()
            if self.step % 10 == 0:
                self._reprice(self.rounded.refresh() * self.per_bit)
            value = distance(self.rounded, self.views, self.generator)
            self.optimizer.zero_grad()
            (value + self.price * self.rounded.rate()).backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            loss += float(value.detach()) / CHECKPOINT
            if self.step % CHECKPOINT == 0 and checkpoint is not None:
                progress(f"  step {self.step:,}: loss {loss:.4f}  price {self.price:.2e}  {self._bytes():,} bytes")
                loss = 0.0
                torch.save(self._state(), checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)

    def _reprice(self, estimate: float) -> None:
        aim = 0.995 * self.size
        wanted = max(aim, self.start + (aim - self.start) * min(self.step / (0.4 * self.steps), 1.0))
        excess = estimate / wanted - 1
        self.price = min(max(self.price * math.exp(min(max(6 * excess, -0.2), 0.2)), 1e-8), 1e-4)

    def _state(self) -> dict[str, object]:
        return {
            "rounded": self.rounded.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "generator": self.generator.get_state(),
            "numbers": (self.step, self.price, self.start, self.per_bit),
        }  # fmt: skip

    def _load(self, state: dict[str, object]) -> None:
        self.rounded.load_state_dict(state["rounded"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.schedule.load_state_dict(state["schedule"])  # type: ignore[arg-type]
        self.generator.set_state(state["generator"])  # type: ignore[arg-type]
        self.step, self.price, self.start, self.per_bit = state["numbers"]  # type: ignore[misc]
        self.rounded.refresh()


def sensitivities(statistics: Statistics, model: nn.Module) -> dict[str, np.ndarray]:
    """Diagonal of the logits' Gauss-Newton matrix, A_jj G_ii, of every layer's weight, in the weight's shape."""
    found = {}
    for name, layer in statistics.layers.items():
        a = layer.A[0] if layer.A.ndim == 2 else np.diagonal(layer.A[0])
        g = layer.G[0] if layer.G.ndim == 2 else np.diagonal(layer.G[0])
        found[name] = np.outer(g, a).reshape(model.get_parameter(name).shape)
    return found


def prune(model: nn.Module, h: dict[str, np.ndarray], views: Views, sparsity: float, steps: int, seed: int) -> None:
    """Set the share `sparsity` of the weights to zero within 60% of the steps while training, and train on."""
    generator = torch.Generator().manual_seed(seed)
    model.eval().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    schedule, rising = cosine(optimizer, steps), CubicSchedule(sparsity, end=max(1, int(0.6 * steps)), every=RENEWAL)
    kept: dict[str, Mask] | None = None
    for start in range(0, steps, RENEWAL):
        with keep_masks(model, kept or {}, optimizer):
            for _ in range(min(RENEWAL, steps - start)):
                loss = distance(model, views, generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if (share := rising.step()) is not None:
                    weights = {name: model.get_parameter(name).detach().numpy() for name in h}
                    kept = masks(sensitivity_scores(weights, h), share, within=kept)
    with keep_masks(model, kept or {}, optimizer):
        model.requires_grad_(False)


@dataclass
class Pipeline:
    """The stages, and what they share."""

    data: Path
    out: Path
    seed: int

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.out.mkdir(parents=True, exist_ok=True)
        self.networks = [load(CifarResNet(n), self.data / f"resnet{n}.safetensors") for n in (20, 32, 56)]
        self.original = self.networks[1]
        self.lossless, _ = read(self.data / "train.npz")
        self.test, self.labels = read(self.data / "test.npz")

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.started:6.0f} s  {text}", flush=True)

    def views(self, count: int) -> None:
        """Inputs and answers, to train with and held out."""
        kept = self.lossless[-HELD_OUT:]
        path = self.data / "jpeg_train.npz"
        jpeg = without_copies(read(path)[0] if path.exists() else kept[:0], kept)
        self.held_out = {"lossless": kept}
        if len(jpeg):
            self.held_out["JPEG"], jpeg = jpeg[-1000:], jpeg[:-1000]
        generator = torch.Generator().manual_seed(self.seed)
        self.held_out["mixed"] = torch.cat(list(mixed(list(self.held_out.values()), 1000, generator)))
        teachers = [copy.deepcopy(network).to(memory_format=torch.channels_last) for network in self.networks]
        self.held = {name: Views.of(images, teachers) for name, images in self.held_out.items()}
        images = torch.cat(list(mixed([self.lossless[:-HELD_OUT], jpeg], count, generator)))
        path = self.out / "answers.npy"
        if not path.exists():
            np.save(path, Views.of(images, teachers).answers.numpy())
        self.training = Views(images, torch.from_numpy(np.load(path)))
        self.say(f"views: {len(images):,}, of {len(self.lossless) - HELD_OUT:,} lossless images, {len(jpeg):,} copies")

    def report(self, stage: str, model: nn.Module, size: int) -> None:
        """One line about a network: divergence on held-out images, then accuracy on test images."""
        model.eval()
        parts = []
        for name, held in self.held.items():
            output = evaluate.logits(model, ready(held.images).split(256))
            parts.append(f"{name} {float(divergence(output, held.answers)):.4f}")
        reference, output, first, own = (
            evaluate.logits(network, ready(images).split(256))
            for images in (self.test, self.held_out["lossless"])
            for network in (self.original, model)
        )
        found = evaluate.compare(reference, output, self.labels)
        self.say(
            f"{stage:12} {size:,} bytes  {4 * PARAMETERS / size:.2f}x  held out: KL to the teachers "
            f"{', '.join(parts)}, to fp32 {float(divergence(own, first)):.4f}  test: KL {found.kl:.4f}  top-1 "
            f"{found.top1:.2%} ({found.top1_change:+.2%} +- {found.top1_change_error:.2%})"
        )

    def start(self, bits: float) -> RoundedNetwork:
        """The file to begin with, as integers."""
        path = self.out / "start.tersor"
        if not path.exists():
            statistics = tersor.calibrate(self.original, ready(self.lossless[:1024]).split(64))
            tersor.compress(self.original, statistics, bits=bits, effort=5).save(path)  # plain integers to train
        restored = tersor.restore(path, into=CifarResNet(32)).eval()
        self.report("start", restored, path.stat().st_size)
        return integers_of(restored, self.original)

    def shrink(self, rounded: RoundedNetwork, size: int, steps: int) -> None:
        """Train `rounded` towards a file of `size` bytes, or take what an earlier run has trained."""
        path, state = self.out / f"resnet32_{size}.tersor", self.out / f"resnet32_{size}.pt"
        if not state.exists():
            Shrinking(rounded, self.training, steps, size, self.seed + size).run(
                self.out / f"resnet32_{size}.checkpoint", self.say
            )
            torch.save(rounded.state_dict(), state)
        rounded.load_state_dict(torch.load(state))
        rounded.refresh()
        path.write_bytes(file_of(rounded))
        self.report(f"{size:,}", tersor.restore(path, into=CifarResNet(32)), path.stat().st_size)

    def pruned(self, sparsity: float, steps: int) -> None:
        path = self.out / "resnet32_pruned.safetensors"
        if not path.exists():
            statistics = tersor.calibrate(self.original, ready(self.lossless[:1024]).split(64), keep=0)
            model = copy.deepcopy(self.original).to(memory_format=torch.channels_last)
            prune(model, sensitivities(statistics, model), self.training, sparsity, steps, self.seed)
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
        self.report("pruned", load(CifarResNet(32), path), 4 * PARAMETERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("TERSOR_DATA") or ROOT.parent / "shared" / "data") / "cifar10"
    parser.add_argument("--data", type=Path, default=data, help="resnet{20,32,56}.safetensors, {train,test}.npz")
    parser.add_argument("--out", type=Path, default=Path("lnq-out"))
    parser.add_argument("--views", type=int, default=96_000)
    parser.add_argument("--bits", type=float, default=1.5, help="bits/weight to start from")
    parser.add_argument("--sizes", type=int, nargs="*", default=(83_000, 70_000), help="bytes of the files")
    parser.add_argument("--steps", type=int, nargs="*", default=(6000, 2500), help="for each size")
    parser.add_argument("--sparsity", type=float, default=0.6, help="of the pruned network")
    parser.add_argument("--prune-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    pipeline = Pipeline(options.data, options.out, options.seed)
    pipeline.views(options.views)
    pipeline.pruned(options.sparsity, options.prune_steps)
    rounded = pipeline.start(options.bits)
    for size, steps in zip(options.sizes, options.steps, strict=True):
        pipeline.shrink(rounded, size, steps)


if __name__ == "__main__":
    main()
