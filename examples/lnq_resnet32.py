"""ResNet-32 on CIFAR-10, compressed, then trained in its integers: the pipeline behind `zoo/resnet32.tersor`.

    python examples/lnq_resnet32.py --data ../shared/data/cifar10 --out resnet32.tersor

1. `tersor.compress` at `--bits`, calibrated on 320 training images.
2. The integers of that file trained to repeat the original network's answers (`rate_training.py`): distillation
   on lossless training images, flipped and shifted, and a quarter of JPEG copies of training images, if they
   are there. A price per bit keeps the size. Labels are not used. The last 768 training images are held out;
   test images are only measured, at the end.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from networks import CifarResNet, load
from rate_training import RoundedNetwork, file_of
from torch import Tensor, nn

import tersor
from tersor import evaluate
from tersor.tools.scalar import ROW_RESOLUTION

ROOT = Path(__file__).resolve().parent.parent
BATCH = 64
HELD_OUT = 768
GRID = 32


def normalised(images: np.ndarray) -> Tensor:
    """uint8 [N, 32, 32, 3] -> float32 [N, 3, 32, 32] as the network wants it."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(images).float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()


def jpeg_images(path: Path, count: int) -> np.ndarray:
    """The first `count` images, uint8 [N, 32, 32, 3]; none where the file or Pillow is missing."""
    try:
        from PIL import Image
    except ImportError:
        return np.zeros((0, 32, 32, 3), np.uint8)
    if not path.exists():
        return np.zeros((0, 32, 32, 3), np.uint8)
    with np.load(path) as file:
        offsets, data = file["offsets"], file["bytes"].tobytes()
    pieces = (data[offsets[i] : offsets[i + 1]] for i in range(min(count, len(offsets) - 1)))
    return np.stack([np.asarray(Image.open(io.BytesIO(piece)).convert("RGB")) for piece in pieces])


@dataclass
class Images:
    """Batches of training images for distillation."""

    lossless: np.ndarray
    jpeg: np.ndarray
    seed: int

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def batch(self) -> Tensor:
        """[64, 3, 32, 32]: 48 lossless images and 16 JPEG copies, or lossless ones alone."""
        x = self._augmented(self.lossless, BATCH if not len(self.jpeg) else BATCH * 3 // 4)
        if len(self.jpeg):
            x = torch.cat([x, self._augmented(self.jpeg, BATCH // 4)])
        return x.contiguous(memory_format=torch.channels_last)

    def _augmented(self, images: np.ndarray, count: int) -> Tensor:
        """Random images, flipped or not, shifted by up to 4 pixels."""
        chosen = torch.randint(len(images), (count,), generator=self.generator)
        x = F.pad(normalised(images[chosen.numpy()]), (4, 4, 4, 4))
        rows, columns = torch.randint(0, 9, (2, count, 1), generator=self.generator) + torch.arange(32)
        every = torch.arange(count)[:, None, None, None]
        x = x[every, torch.arange(3)[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]
        flipped = torch.rand(count, generator=self.generator) < 0.5
        x[flipped] = x[flipped].flip(3)
        return x


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


def train(rounded: RoundedNetwork, teacher: nn.Module, images: Images, steps: int, growth: float) -> None:
    """Distil the teacher; the estimated bits may grow by the factor `growth`."""
    groups = [{"params": list(rounded.x), "lr": 1e-3}, {"params": rounded.others, "lr": 3e-4}]
    groups[1]["params"] = [p for p in rounded.others if p.requires_grad]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / max(1, 0.03 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    wanted, price = growth * rounded.refresh(), 1e-6
    for step in range(steps):
        x = images.batch()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target = teacher(x)
            output = rounded(x)
        if step % 10 == 0:
            excess = (rounded.refresh() - wanted) / sum(latent.numel() for latent in rounded.x)
            price = min(max(price * math.exp(min(max(6 * excess, -0.25), 0.25)), 1e-8), 2e-5)
        loss = 4 * divergence(output / 2, target / 2) + price * rounded.rate()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def divergence(output: Tensor, target: Tensor) -> Tensor:
    """KL(target || output) of logits [N, classes], mean over N."""
    p, q = F.log_softmax(target.float(), 1), F.log_softmax(output.float(), 1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("TERSOR_DATA") or ROOT.parent / "shared" / "data") / "cifar10"
    parser.add_argument("--data", type=Path, default=data, help="resnet32.safetensors, train.npz, test.npz")
    parser.add_argument("--out", type=Path, default=Path("resnet32.tersor"))
    parser.add_argument("--bits", type=float, default=1.4, help="bits/weight to start from")
    parser.add_argument("--growth", type=float, default=1.0, help="of the bits while training")
    parser.add_argument("--steps", type=int, default=912)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    original = load(CifarResNet(32), options.data / "resnet32.safetensors")
    with np.load(options.data / "train.npz") as file:
        lossless = file["images"]
    held_out = normalised(lossless[-HELD_OUT:])
    with np.load(options.data / "test.npz") as file:
        test, labels = normalised(file["images"]), torch.from_numpy(file["labels"].astype(np.int64))

    def report(stage: str, data: bytes) -> None:
        model = tersor.restore(data, into=CifarResNet(32)).eval()
        kept, seen = (
            evaluate.compare(evaluate.logits(original, x.split(256)), evaluate.logits(model, x.split(256)), y)
            for x, y in ((held_out, None), (test, labels))
        )
        print(f"{stage:9} {len(data):,} bytes  {4 * 464_154 / len(data):.2f}x  held out KL {kept.kl:.4f}  "
              f"test KL {seen.kl:.4f}  top-1 {seen.top1:.2%} ({seen.top1_change:+.2%} +- "
              f"{seen.top1_change_error:.2%})", flush=True)  # fmt: skip

    statistics = tersor.calibrate(original, normalised(lossless[:320]).split(64))
    packed = tersor.compress(original, statistics, bits=options.bits)
    report("compress", packed.data)
    restored = tersor.restore(packed.data, into=CifarResNet(32)).eval()
    rounded = integers_of(restored, original)
    assert len(file_of(rounded)) > 0
    jpeg = jpeg_images(options.data / "jpeg_train.npz", 25_000)
    teacher = copy.deepcopy(original).to(memory_format=torch.channels_last)
    images = Images(lossless[:-HELD_OUT], jpeg, options.seed)
    train(rounded, teacher, images, options.steps, options.growth)
    data_out = file_of(rounded)
    options.out.write_bytes(data_out)
    report("train", data_out)


if __name__ == "__main__":
    main()
