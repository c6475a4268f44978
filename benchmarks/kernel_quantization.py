"""Kernels as the unit of quantization: `python benchmarks/kernel_quantization.py [CASE ...]`.

A case is NETWORK:RATE:TOOL, for example resnet20:1.6:kernels; TOOL is kernels, tuned (the same file after training
its codebooks), or scalar or transform, at the bytes of the file of kernels. "shapes" is arithmetic on the layers of
the full VGG-16 and ResNet-18. Without any, all that are missing are run. The rate of ResNet-20, 32, 56 is in
bits/weight of the whole file, that of the others in bits per weight of the 3x3 convolutions. Results are kept in
benchmarks/results/kernel_quantization.json, and docs/kernel_quantization.md is written from all that are there.

Files are restored into networks of random weights before they are measured. Codebooks are trained for the answers of
the fp32 network to training images; which of the files on the way is kept is decided on held-out training images.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, Case, Cases, CifarResNet, Subject, accuracy_cells, data_folder, subject
from image_data import calibration, normalised, read, split
from networks import IMAGENET, ZOO, cifar, load_zoo
from torch import Tensor, nn

import tersor
from tersor.config import TransformConfig
from tersor.packed import Packed
from tersor.training.loop import finetune

WAYS = ("kernels", "tuned", "scalar", "transform")
RATES = {"vgg16_bn_cifar": (1.05,), "resnet18_cifar": (1.62,), "resnet20": (1.6, 1.0), "resnet32": (1.6,),
         "resnet56": (1.6,)}
ZOO_NETWORKS = ("vgg16_bn_cifar", "resnet18_cifar")
TRANSFORMS = TransformConfig(transforms=("identity", "dct1", "klt-taps", "elt"))
SIDE_BITS = 6.5
"""First guess of what a weight costs that is in no 3x3 convolution."""
SLACK = 0.08
"""How much smaller than asked a file of kernels may be."""
ROOM = 0.002
"""How much larger than the untuned file a tuned one may be."""
EFFORT = 5
STEPS = 600
BATCH = 64
RATES_OF = {"values": 1.5, "small": 0.5, "latents": 0.0}
"""Learning rates of `Trainable.groups`, multiplied."""
JPEG_CALIBRATION = 256
HELD_OUT = 1_024
CASES = Cases(
    ["shapes", *(f"{name}:{rate:g}:{way}" for name, rates in RATES.items() for rate in rates for way in WAYS)],
    RESULTS / "kernel_quantization.json",
    ROOT / "docs" / "kernel_quantization.md",
)


@dataclass(frozen=True)
class Bench:
    """A network with all that its cases need. `training`: uint8 [N, 3, 32, 32]; `judge`: held out, normalised."""

    tested: Subject
    statistics: tersor.Statistics
    training: Tensor
    judge: Tensor

    def fresh(self) -> nn.Module:
        """The same architecture with random weights."""
        torch.manual_seed(1)
        name = self.tested.name
        return (cifar(name.removesuffix("_cifar")) if name in ZOO_NETWORKS else CifarResNet(int(name[6:]))).eval()

    def convolution_weights(self) -> int:
        """How many weights the 3x3 convolutions have."""
        return sum(p.numel() for p in self.tested.model.parameters() if p.shape[2:] == (3, 3))


def main() -> None:
    """Run what is asked for, case by case."""
    parser = CASES.arguments(__doc__)
    parser.add_argument("--files", default=str(Path(tempfile.gettempdir()) / "tersor-kernel-quantization"),
                        help="folder that keeps files of untuned codebooks, and where their training is")
    parser.add_argument("--cache", help="folder that keeps decoded images")
    options = parser.parse_args()
    benches: dict[str, Bench] = {}

    def measure(case: str, need: Callable[[str], Case]) -> Case:
        if case == "shapes":
            return shapes()
        network, rate, way = case.split(":")
        if network not in benches:
            benches[network] = bench(network, data_folder(options.data), options.cache)
        return run(benches[network], float(rate), way, need, Path(options.files))

    CASES.run(options, measure, page)


def bench(name: str, data: Path, cache: str | None) -> Bench:
    """Load a network and its images, and calibrate."""
    folder = data / "cifar10"
    if name not in ZOO_NETWORKS:
        tested = subject(name, data, 320)
        rest, held_out = split(read(folder / "train.npz"), HELD_OUT)
    else:
        # The zoo's networks have learnt from JPEG copies, and are tested on them.
        rest, held_out = split(read(folder / "jpeg_train.npz", cache), 2_000)  # they have not seen these 2,000
        test, labels = read(folder / "jpeg_test.npz", cache)
        chosen, _ = calibration(rest, JPEG_CALIBRATION)
        tested = Subject(name, load_zoo(name), normalised(chosen), normalised(test), labels,
                         (ZOO / f"{name}.safetensors").stat().st_size)
    statistics = tersor.calibrate(tested.model, tested.calibration.split(64))
    return Bench(tested, statistics, rest[0], normalised(held_out[0][-HELD_OUT:]))


def run(on: Bench, rate: float, way: str, need: Callable[[str], Case], folder: Path) -> Case:
    """One case."""
    stem = f"{on.tested.name}:{rate:g}"
    kept = folder / f"{stem.replace(':', '-')}.tersor"
    start = time.perf_counter()
    notes: dict[str, Any] = {}
    if way == "kernels":
        packed = by_kernels(on, rate)
        folder.mkdir(parents=True, exist_ok=True)
        packed.save(kept)
        notes["lambda"] = packed.price
    else:
        first = need(f"{stem}:kernels")
        if way == "tuned":
            if not kept.exists():
                sys.exit(f"{kept} is not there any more: run --again {stem}:kernels")
            packed = tune(on, Packed(kept.read_bytes(), on.tested.parameters, first["lambda"]),
                          kept.with_suffix(".checkpoint"))
            notes["notes"] = packed.notes
        else:
            packed = tersor.compress(on.tested.model, on.statistics, size=first["bytes"], tools=(way,), effort=EFFORT,
                                     transform=TRANSFORMS)
    seconds = time.perf_counter() - start
    compared = on.tested.measure(tersor.restore(packed.data, into=on.fresh()))
    section = packed.report()["bytes_by_tool"]
    assert isinstance(section, dict)
    per_weight = 8 * section["kernels"] / on.convolution_weights() if "kernels" in section else None
    return {"bytes": packed.size, "bits": packed.bits_per_weight, "convolution_bits": per_weight, "sections": section,
            "seconds": round(seconds, 1), "parameters": on.tested.parameters,
            "convolution_weights": on.convolution_weights(), **notes, **compared.as_dict()}  # fmt: skip


def by_kernels(on: Bench, rate: float) -> Packed:
    """A file by the kernel tool: at `rate` bits/weight of all, or, for the zoo, about so many per 3x3 weight."""
    weights = on.convolution_weights()
    size = rate * on.tested.parameters / 8
    if on.tested.name in ZOO_NETWORKS:
        size = (rate * weights + SIDE_BITS * (on.tested.parameters - weights)) / 8
    with Slack(SLACK):
        return tersor.compress(on.tested.model, on.statistics, size=int(size), tools=("kernels",), effort=EFFORT,
                               progress=lambda line: print(" ", line, flush=True))


class Slack:
    """Inside, a size is met where a file is at most this share smaller: the other tools are given the bytes that the
    kernels took, and each trial of kernels takes long."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __enter__(self) -> None:
        from tersor import allocation, encoder
        self.places, self.before = (allocation, encoder), allocation.TOLERANCE
        for place in self.places:
            place.TOLERANCE = self.share  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        for place in self.places:
            place.TOLERANCE = self.before  # type: ignore[attr-defined]


# ---- training codebooks --------------------------------------------------------------------------------


def tune(on: Bench, packed: Packed, checkpoint: Path) -> Packed:
    """Codebooks, gains, BatchNorms and the scalar layers trained for the answers of the fp32 network; indexes stay."""
    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        for group in groups:
            group["lr"] *= RATES_OF[group["name"]]
        return torch.optim.Adam(groups)

    limit = int((1 + ROOM) * packed.size)
    return finetune(packed, on.tested.model, lambda _epoch: views(on.training), steps=STEPS, size=limit,
                    held_out=[(x,) for x in on.judge.split(256)], every=STEPS // 10, optimizer=optimizer,
                    autocast=torch.bfloat16, checkpoint=checkpoint,
                    progress=lambda line: print(" ", line, flush=True))  # fmt: skip


def views(images: Tensor) -> Iterator[Tensor]:
    """Batches of random training images, half of them mirrored, [BATCH, 3, 32, 32]."""
    while True:
        x = normalised(images[torch.randint(len(images), (BATCH,))])
        mirrored = torch.rand(BATCH, 1, 1, 1) < 0.5
        yield torch.where(mirrored, x.flip(3), x)


# ---- shapes of the full networks -----------------------------------------------------------------------


def shapes() -> dict[str, Any]:
    """Bits per weight of all 3x3 convolutions by the paper's formula, and the K of its operating points."""
    found = {}
    for name, target in (("vgg16", 1.05), ("resnet18", 1.62)):
        with torch.device("meta"):
            model = IMAGENET[name]()
        counts = [p.shape[0] * p.shape[1] for p in model.parameters() if p.shape[2:] == (3, 3)]
        low, high = 0.0, 16.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if formula(counts, 2**middle) < target else (low, middle)
        found[name] = {"layers": len(counts), "convolution_weights": 9 * sum(counts), "target": target,
                       "K": 2**low, "bits": {str(2**i): formula(counts, 2.0**i) for i in range(6, 15)}}  # fmt: skip
    return found


def formula(counts: list[int], size: float) -> float:
    """[sum N_l log2 K_l + 6 * 9 K_l] / [9 sum N_l], K_l = min(K, N_l): indexes of a fixed length, 6-bit values."""
    sizes = np.minimum(size, counts)
    return float((np.array(counts) * np.log2(sizes) + 54 * sizes).sum() / (9 * sum(counts)))


# ---- the page ------------------------------------------------------------------------------------------


INTRODUCTION = """# Kernel quantization

Kernels as the unit of quantization: `tools=("kernels",)` (entropy-coded indexes, 6-bit codebook values, sizes of the
codebooks by rate-distortion), with trained codebooks, and beside other tools at equal file bytes. Effort 5, encoded
with training images only; all files are restored into networks of random weights before they are measured. "conv"
is bits per weight of the 3x3 convolutions: bytes of the kernels section (indexes, gains, codebooks, steps), times 8,
by their weights; "file" counts every byte of the file by all parameters. Change of top-1 in points to fp32, paired,
with its standard error; KL to fp32 in nats. Files of kernels were accepted up to {slack:.0f}% below the size asked for.

"tuned": `tersor.finetune` for {steps} batches of {batch} training images, for the answers of the fp32 network, without
labels; trained are codebook values (6 bits, straight-through), gains, BatchNorms and biases. Of the files on the way,
the one of the lowest KL on held-out training images is taken: there a tuned file is never worse than the untuned one.

{findings}

Written by `python benchmarks/kernel_quantization.py`; seconds are of a busy machine.
"""
FINDINGS = """Below one point is lost at both of the paper's rates: by VGG, at 1.0 bit per convolution weight, after
training, by ResNet-18, at 1.6, already before it (training takes its KL on held-out images from 0.0106 to
0.0089). What pays in training was measured on VGG (400 batches, another file; KL on held-out
images 0.0282 before): entries and gains 0.0250, entries alone 0.0260; with new indexes after every 100 batches (rate
0.03) 0.0252, after a rise to 0.0323 in between. So gains are trained, and indexes stay. Entries move only where
gradients agree for some tens of batches, so that shorter training does nothing. On ResNet-20, of 270,000 parameters
and 8,000 training images, it does next to nothing: 0.0353 to 0.0349 on held-out images, no change within its error on
test images.

Kernels win nowhere at equal bytes: see "Which tool at equal bytes"."""

ABOUT = {
    "resnet20": "ResNet-20, CIFAR-10: 1,017 lossless test images, calibrated on 320 lossless training images.",
    "resnet32": "ResNet-32, as above.",
    "resnet56": "ResNet-56, as above.",
    "vgg16_bn_cifar": """VGG-16-BN with a quarter of its channels (16 to 128; 924,186 parameters),
trained by this project on JPEG copies of CIFAR-10; 10,000 JPEG test images,
calibrated on 256 JPEG training images. Not the paper's network:
1/16 of its convolution weights, and CIFAR-10 in place of ImageNet. So narrow a network has less redundancy,
and a codebook weighs more in it.""",
    "resnet18_cifar": """ResNet-18 with a quarter of its channels (16 to 128; 701,466 parameters),
trained by this project on JPEG copies of CIFAR-10; 10,000 JPEG test images,
calibrated on 256 JPEG training images. Not the paper's network,
as above.""",
}


def page(cases: dict[str, Case]) -> str:
    """docs/kernel_quantization.md."""
    lines = [INTRODUCTION.format(steps=STEPS, batch=BATCH, slack=100 * SLACK, findings=FINDINGS)]
    for network, rates in RATES.items():
        lines += [f"## {network}", "", ABOUT[network], ""]
        lines += ["| asked | tool | bytes | file | conv | top-1 (%) | change | KL | seconds |", "|---" * 9 + "|"]
        notes = []
        for rate in rates:
            for way in WAYS:
                point = cases.get(f"{network}:{rate:g}:{way}")
                if point is not None:
                    lines.append(f"| {rate:g} | {way} | {' | '.join(row(point))} |")
                    notes += [f"* {way} at {rate:g}: {note}" for note in point.get("notes", [])]
        lines += ["", *notes, ""]
    lines += ["## Which tool at equal bytes", "", *comparison(cases)]
    return "\n".join([*lines, "## Shapes of the full networks", "", *shape_lines(cases.get("shapes")), ""])


def comparison(cases: dict[str, Case]) -> list[str]:
    """KL of all tools at the bytes of the file of kernels, the least in bold."""
    lines = [f"| network, rate | bytes | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 2) + "|"]
    for network, rates in RATES.items():
        for rate in rates:
            found = [cases.get(f"{network}:{rate:g}:{way}") for way in WAYS]
            known = [point["kl"] for point in found if point is not None]
            if len(known) > 1:
                cells = ["" if point is None else f"**{point['kl']:.4f}**" if point["kl"] == min(known) else
                         f"{point['kl']:.4f}" for point in found]  # fmt: skip
                size = next(point["bytes"] for point in found if point is not None)
                lines.append(f"| {network}, {rate:g} | {size:,} | {' | '.join(cells)} |")
    return [*lines, ""]


def row(point: Case) -> list[str]:
    """The cells of one case behind its name."""
    conv = point["convolution_bits"]
    return [f"{point['bytes']:,}", f"{point['bits']:.3f}", "" if conv is None else f"{conv:.3f}",
            *accuracy_cells(point), f"{point['kl']:.4f}", f"{point['seconds']:.0f}"]  # fmt: skip


def shape_lines(found: dict[str, Any] | None) -> list[str]:
    """The table of exact rates."""
    if found is None:
        return ["Not run."]
    names = list(found)
    lines = ["Bits per weight of the 3x3 convolutions with K kernels per layer (at most as many as it has), indexes",
             "of a fixed length, 6-bit values: arithmetic on the exact shapes of torchvision's networks.", "",
             f"| K | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]  # fmt: skip
    for size in found[names[0]]["bits"]:
        cells = [f"{found[name]['bits'][size]:.3f}" for name in names]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    lines += [f"\n{name}: {one['layers']} convolutions of 3x3, {one['convolution_weights']:,} weights; "
              f"{one['target']:g} bits at K = {one['K']:.0f}." for name, one in found.items()]  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
