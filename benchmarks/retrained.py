"""Retrained at fixed rates, beside the drops of transform quantization: `python benchmarks/retrained.py [CASE ...]`.

A case is NETWORK:BITS, for example resnet20:1.4. The network is compressed (CIFAR-10), its file trained by
`tersor.finetune` to give the answers of the fp32 network to training images, at no more bytes; both files are restored
into networks of random weights and measured. The last 768 training images are held out, to choose by; test images are
for the table only. Writes benchmarks/results/retrained.json and docs/retrained.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common  # noqa: F401  (finds examples/)
import numpy as np
import torch
from cifar_views import mixed, ready
from common import RESULTS, ROOT, Case, Cases, CifarResNet, data_folder, normalised, subject
from torch import Tensor

import tersor
from tersor.packed import Packed
from tersor.training.loop import finetune

BITS = (1.0, 1.4, 2.0)
CASES = Cases([f"resnet20:{bits:g}" for bits in BITS], RESULTS / "retrained.json", ROOT / "docs" / "retrained.md")
CALIBRATION = 320
HELD_OUT = 768
BATCH = 128
STEPS = 400
PAPER: dict[str, dict[float, float]] = {
    "ResNet-18": {1.0: -5.2, 1.4: -2.5, 1.9: -1.5, 3.0: 0.1},
    "ResNet-34": {1.1: -3.7, 1.4: -1.9, 2.1: -0.5, 2.8: -0.3},
    "ResNet-50": {1.1: -3.1, 1.5: -1.8, 1.9: -0.8, 3.1: 0.0},
}
"""Young et al., TPAMI 2021, Table 2: bits/weight -> ImageNet top-1 after retraining less that of fp32, in points."""

HEAD = """\
# Retrained at fixed rates

ResNet-20 on CIFAR-10 (fp32: {top1:.1f}% on {count:,} test images), compressed at the default effort, before and after
`tersor.finetune`. Everything is counted: bits/weight are those of the whole file, which is restored into a network of
random weights before it is measured. Differences of top-1 to fp32 are paired and come with their standard errors, in
points; KL (to fp32, in nats) tells small changes apart much better.

| bits/weight | bytes | not retrained: top-1 | KL | retrained: bytes | top-1 | KL | KL after / before |
|---|---|---|---|---|---|---|---|"""
FOOT = """
Training: {steps} batches of {batch} views of lossless training images, the answers of the fp32 network as targets, no
labels; at most {seconds:.0f} seconds a rate on one core of a busy machine. Of the files on the way, none larger than
the first, that of the lowest KL on 768 held-out training images is taken.

What the paper has (Young et al., TPAMI 2021, Table 2: ImageNet, weights only, fixed-length codes; top-1 after
retraining with labels less that of fp32, in points):
"""
TAIL = """
Networks and data differ, so that only orders of magnitude may be compared. Made by `python benchmarks/retrained.py`.
"""


def main() -> None:
    """Run what is asked for, case by case."""
    parser = CASES.arguments(__doc__)
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "tersor-retrained",
                        help="folder for files and the state of their training, from which an interrupted run goes on")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} views to train on")
    options = parser.parse_args()
    CASES.run(options, lambda case, _: retrained(case, options), page)


def retrained(case: str, options: argparse.Namespace) -> Case:
    """One rate: the file before and after training, both restored and measured."""
    network, bits = case.split(":")
    data = data_folder(options.data)
    tested = subject(network, data, CALIBRATION)
    with np.load(data / "cifar10" / "train.npz") as train:
        images = torch.from_numpy(train["images"][:-HELD_OUT]).permute(0, 3, 1, 2).contiguous()
        judge = normalised(train["images"][-HELD_OUT:])
    options.files.mkdir(parents=True, exist_ok=True)
    kept = options.files / f"{network}-{bits}.packed"
    start = time.perf_counter()
    if not kept.exists():
        statistics = tersor.calibrate(tested.model, tested.calibration.split(80))
        found = tersor.compress(tested.model, statistics, bits=float(bits))
        torch.save((found.data, found.parameters, found.price), kept)
    packed = Packed(*torch.load(kept, weights_only=True))
    encoded = time.perf_counter()
    teacher = tested.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = finetune(packed, teacher, lambda epoch: views(images, epoch), steps=options.steps,
                       held_out=judge.split(256), autocast=torch.bfloat16, checkpoint=kept.with_suffix(".checkpoint"),
                       progress=lambda line: print(" ", line, flush=True))  # fmt: skip
    seconds = time.perf_counter() - encoded
    before, after = (tested.measure(tersor.restore(file.data, into=CifarResNet(int(network[6:])).eval()))
                     for file in (packed, trained))  # fmt: skip
    return {"bytes_before": packed.size, "bytes": trained.size, "bits": trained.bits_per_weight, "steps": options.steps,
            "before": before.as_dict(), "after": after.as_dict(), "notes": trained.notes,
            "compress_seconds": round(encoded - start, 1), "train_seconds": round(seconds, 1)}  # fmt: skip


def views(images: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches without end: shifted and mirrored training images, half of them blended with another."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (ready(batch) for batch in mixed([images], BATCH, generator))


def points(measured: dict[str, Any]) -> str:
    """A paired difference of top-1 to fp32, in points, with its standard error."""
    return f"{100 * measured['top1_change']:+.1f} +- {100 * measured['top1_change_error']:.1f}"


def page(cases: dict[str, Case]) -> str:
    """docs/retrained.md."""
    found = [(bits, cases[name]) for bits, name in zip(BITS, CASES.names, strict=True) if name in cases]
    if not found:
        return "# Retrained at fixed rates\n"
    first = found[0][1]["before"]
    lines = [HEAD.format(top1=100 * first["top1_reference"], count=first["count"])]
    for bits, r in found:
        before, after = r["before"], r["after"]
        lines.append(f"| {bits:g} | {r['bytes_before']:,} | {points(before)} | {before['kl']:.4f} | {r['bytes']:,} | "
                     f"{points(after)} | {after['kl']:.4f} | {after['kl'] / before['kl']:.2f} |")
    lines += [FOOT.format(steps=found[0][1]["steps"], batch=BATCH, seconds=max(r["train_seconds"] for _, r in found)),
              "| bits/weight | " + " | ".join(PAPER) + " |", "|---|" + "---|" * len(PAPER)]  # fmt: skip
    for low, high, label in ((1.0, 1.2, "1.0 to 1.1"), (1.3, 1.6, "1.4 to 1.5"), (1.8, 2.2, "1.9 to 2.1")):
        cells = [next(f"{drop:+.1f} ({bits:g})" for bits, drop in drops.items() if low <= bits <= high)
                 for drops in PAPER.values()]  # fmt: skip
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, TAIL])


if __name__ == "__main__":
    main()
