"""Bytes at no loss and at one point, without tuning, with label-free recovery, with fine-tuning:
`python benchmarks/finetuned.py [CASE ...]`.

A case is NETWORK:BITS. *Without tuning*: the network compressed at the default effort, calibrated on 640 training
images. *Recovered*: that file after a short distillation on 320 of those images (`tersor.training.recovery`).
*Fine-tuned*: a file of the same bytes without a trellis, trained on views of training images (`tersor.finetune`). All
three files are restored into networks of random weights and measured on test images, which nothing else has seen. An
interrupted case goes on from its checkpoints. Writes benchmarks/results/finetuned.json and docs/finetuned.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from common import Case, Cases, data_folder, read_json
from finetuned_networks import BATCH, CALIBRATION, JUDGES, LABELS, Bench, bench

import tersor
from tersor import evaluate
from tersor.packed import Packed
from tersor.training.loop import finetune
from tersor.training.reconstruction import reconstruct
from tersor.training.recovery import recover

RATES = {
    "lenet5": (0.2, 0.12), "resnet20": (1.3, 1.0, 0.8), "resnet32": (1.0, 0.8), "vgg16_bn_cifar": (0.6, 0.4, 0.32),
    "vgg16_bn_full": (0.32,), "resnet18_full": (0.78, 0.4), "resnet18_cifar": (0.8, 0.6, 0.5),
    "densenet_cifar": (1.25, 1.0),
}  # fmt: skip
ABLATION = ("resnet20:1.3:ablation", "resnet20:1.6:ablation", "resnet20:2:ablation")
CASES = Cases([*(f"{name}:{bits:g}" for name, every in RATES.items() for bits in every), *ABLATION],
              common.RESULTS / "finetuned.json", common.ROOT / "docs" / "finetuned.md")  # fmt: skip
RECOVERY, RECOVERED = 320, 768
"""Images for recovery without labels (in its ablation for calibration, too), and those that judge its steps."""
STEPS, LOOKS = 1500, 15
EFFORTS = {"error feedback on the statistics as measured, scales and biases re-fitted (effort 4)": 4,
           "targets corrected for the errors before them (effort 5)": 5, "trellis (6)": 6,
           "transforms of the taps (7)": 7}  # fmt: skip
DISTILLED = {"+ distillation: BatchNorms and biases": 0.0, "+ distillation: integers too": 1e-3}
COARSE = "error feedback (4), blocks reconstructed"
BLOCKS = "+ blocks reconstructed"
BOTH = "+ blocks reconstructed, then distillation"
PLAIN, PLAIN_BLOCKS = "effort 7 without a trellis", "effort 7 without a trellis, blocks reconstructed"
"""Steps of the ablation, beside efforts and `DISTILLED`."""
WAYS = {"plain": "without tuning", "recovered": "label-free recovery", "start": "without trellis or tuning",
        "tuned": "fine-tuned"}
FEW = {"resnet32": ("start", "tuned"), "vgg16_bn_full": ("start", "tuned"), "resnet18_full": ("plain",)}
"""Of the ways, where all of them would take too long."""
HEADROOM = {"vgg16_bn_full": 1.04}
"""Bytes of the file that training begins with, over those that it shall end with: training to labels saves bits of its
own accord. (VGG-16 of a quarter of the channels at 0.4 bits/weight: 3% of them, where no bit costs anything.)"""
HEAD = """# Fine-tuned

Networks on CIFAR-10 (LeNet-5: MNIST), compressed at the default effort with {calibration} calibration images (those
of full width: 256, ResNet-32: 3,000); the same files after label-free recovery on {recovery} of these; and files of
the same bytes after fine-tuning. Bytes are those of whole files, which are restored into networks of random weights
before they are measured. *No loss*: the 95% interval of the paired difference in top-1 to the fp32 network includes 0
(Agresti and Min). *1 point*: its mean is at most 1. Both are the smallest file of the rates that were tried (below):
a finer ladder finds smaller ones. No setting was chosen on test images; the rates of the ladder were, after a look at
what untrained files lose on them. An interval that includes 0 may be wide: 1,017 test images of the data folder tell
a loss of a point or two from none only now and then, 10,000 JPEG copies half a point. The rows of the narrow VGG-16
at 0.4 and 0.32 are of an encoder before its metrics were shrunk, the others of one whose second walk takes all
calibration images; those of ResNet-20 were calibrated on 640 images, and tuned without JPEG copies.

{recipe}
"""
RECIPE = """Fine-tuning: {steps} batches (or as many as the table says) of {batch} crops and mirror images of training
images. Targets are the answers of the fp32 network; for the networks of examples/zoo, which were trained
for few epochs and do not know all training images by heart, labels count for {labels:.0%} of the loss. For those of
the data folder, of whose images there are few without loss, half of the views are JPEG copies of all training images,
half of all are blends of two, and integers learn at a fifth of the rate.
Training begins with a file of the same bytes without a trellis (`compress(..., trellis=False)`) and keeps its size
(that of VGG-16 of full width begins with 4% more, and shrinks); of the files on the way the one of the lowest loss
on held-out training images (at most {judges}) is taken."""
NOTE = """The first four are what `tersor.compress` does by itself, by its effort. Distillation on the calibration
samples (`tersor.training.recovery.recover`, 100 batches of 64 views) is not part of it: 320 images judge it better than
others do. (At effort 5 it lowered KL from 0.0245 to 0.0237 on 1,000 images, for 20 CPU seconds.)

Nor is the reconstruction of blocks (`tersor.training.reconstruction.reconstruct`, 200 batches of 64 per block). Equal
figures mean that the samples that it keeps to judge by refused its file. On top of the default effort it has not paid
for its time; on a cheap encoder's file it gained less than a higher effort does in a ninth of the time. Whether or not
its file was refused, judged on 2,000 others, it changed KL of files of the default effort for the worse: by +0.0136 +-
0.0047 from 0.1318 at 0.8 bits and +0.0010 +- 0.0003 from 0.0114 at 1.6 bits with 320 images (there the samples that it
keeps took it for better), and by +0.0091 +- 0.0039 from 0.1208 at 0.8 bits with 1,280. An earlier form (logits all
alike, 4 draws), with 1,280 images at 1.3 bits, lowered the loss of eight of eleven blocks by 2 to 9% on the samples
kept, and changed KL by -0.0000 +- 0.0011 from 0.0253; without a trellis, by +0.0019 +- 0.0018 from 0.0346. With the
curvature of answers that are not softened, and only BatchNorms and biases trained, KL rose by 0.0032 +- 0.0013.
(Errors of differences here are paired, in the table not. All measured with the encoder whose second walk took few
images.)

Another sweep over the rows of a layer after its encoding, each row searched anew given the errors of all others, was
tried as well: it lowers the distortion of a layer by 1 to 3% for more time than the encoding, and was left out."""
COLUMNS = "| network | bits/weight | way | bytes | drop of top-1 | KL | CPU seconds |"


def main() -> None:
    """Run what is asked for, case by case."""
    parser = CASES.arguments(__doc__)
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "tersor-finetuned",
                        help="folder for files and the state of their training")
    parser.add_argument("--cache", type=Path, help="folder for decoded images")
    parser.add_argument("--full", type=Path,
                        help="weights of vgg16_bn_full or resnet18_full, by examples/train_cifar.py")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} views to train on")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    CASES.run(options, lambda case, _: (ablated if case in ABLATION else measured)(case, options), page)


def measured(case: str, options: argparse.Namespace) -> Case:
    """One network at one rate, in three ways."""
    name, bits = case.split(":")
    on = bench(name, data_folder(options.data), options.cache, options.full)
    options.files.mkdir(parents=True, exist_ok=True)

    def path(ending: str) -> Path:
        return Path(options.files / f"{name}_{bits}{ending}")

    reference = evaluate.logits(on.model, on.test[0].split(250))
    found: Case = {"steps": options.steps, "fp32_bytes": on.file_bytes(), "count": len(on.test[1]),
                   "fp32": float((reference.argmax(1) == on.test[1]).double().mean())}  # fmt: skip
    ways = {
        "plain": lambda: compressed(on, float(bits)),
        "recovered": lambda: recover(files["plain"], on.model, torch.cat(on.calibration)[:RECOVERY],
                                     autocast=torch.bfloat16, progress=print),
        "start": lambda: compressed(on, float(bits) * HEADROOM.get(name, 1.0), trellis=False),
        "tuned": lambda: tuned(on, files["start"], size(), options.steps, path),
    }  # fmt: skip
    files: dict[str, Packed] = {}

    def size() -> int:
        if name in HEADROOM:
            return int(float(bits) * files["start"].parameters / 8.0)
        return files.get("plain", files["start"]).size

    for way in FEW.get(name, tuple(WAYS)):
        begun = time.process_time()
        packed = files[way] = kept(path(f".{way}.tersor"), ways[way])
        seconds = time.process_time() - begun
        restored = tersor.restore(packed.data, into=on.fresh())
        logits = evaluate.logits(restored, on.test[0].split(250))
        right = [(y.argmax(1) == on.test[1]).float() for y in (reference, logits)]
        compared = evaluate.compare(reference, logits, on.test[1])
        found[way] = {"bytes": packed.size, "cpu_seconds": round(seconds, 1), "kl": compared.kl, "top1": compared.top1,
                      "drop": asdict(evaluate.paired_drop(*right))}  # fmt: skip
    return found


def ablated(case: str, options: argparse.Namespace) -> Case:
    """What each step of recovery without labels is worth: KL on held-out training images, one rate."""
    name, bits, _ = case.split(":")
    on = bench(name, data_folder(options.data), options.cache)
    samples = torch.cat(on.calibration)[:RECOVERY]
    statistics = tersor.calibrate(on.model, samples.split(80))
    judging = torch.cat([x for x, _ in on.judging])[:RECOVERED].split(256)
    reference = evaluate.logits(on.model, judging)
    found: Case = {}

    def judge(label: str, make: Any) -> Packed:
        begun = time.process_time()
        packed: Packed = make()
        seconds = time.process_time() - begun
        restored = tersor.restore(packed.data, into=on.fresh())
        compared = evaluate.compare(reference, evaluate.logits(restored, judging))
        found[label] = {"bytes": packed.size, "kl": compared.kl, "kl_error": compared.kl_error,
                        "cpu_seconds": round(seconds, 1)}  # fmt: skip
        print(" ", label, found[label], flush=True)
        return packed

    compress = partial(tersor.compress, on.model, statistics, bits=float(bits))
    files = {effort: judge(label, partial(compress, effort=effort)) for label, effort in EFFORTS.items()}
    best, fast = files[max(files)], {"autocast": torch.bfloat16}
    for label, rate in DISTILLED.items():
        judge(label, partial(recover, best, on.model, samples, latents=rate, **fast))
    blocks = judge(BLOCKS, partial(reconstruct, best, on.model, samples, **fast))
    judge(BOTH, partial(recover, blocks, on.model, samples, **fast))
    judge(COARSE, partial(reconstruct, files[min(files)], on.model, samples, **fast))
    plain = judge(PLAIN, partial(compress, trellis=False))
    judge(PLAIN_BLOCKS, partial(reconstruct, plain, on.model, samples, **fast))
    return found


def kept(path: Path, make: Any) -> Packed:
    """A file that was made before, or is made now."""
    if not path.exists():
        make().save(path)
    data = path.read_bytes()
    with tersor.load(data) as file:
        return Packed(data, file.manifest.parameters, 1.0)


def compressed(on: Bench, bits: float, **options: Any) -> Packed:
    statistics = tersor.calibrate(on.model, on.calibration)
    return tersor.compress(on.model, statistics, bits=bits, **options)


def tuned(on: Bench, packed: Packed, size: int, steps: int, path: Callable[[str], Path]) -> Packed:
    """Trained on views of training images, to `size` bytes."""
    return finetune(packed, on.model, on.batches, loss=on.loss, steps=steps, size=size, held_out=on.judging,
                    optimizer=on.optimizer, every=max(1, steps // LOOKS), autocast=torch.bfloat16,
                    checkpoint=path(".checkpoint"), progress=lambda line: print(" ", line, flush=True))


def page(cases: dict[str, Case]) -> str:
    """docs/finetuned.md."""
    ablations = {key: cases[key] for key in ABLATION if key in cases}
    cases = {key: case for key, case in cases.items() if key not in ABLATION}
    networks = [name for name in RATES if any(case.startswith(f"{name}:") for case in cases)]
    recipe = RECIPE.format(steps=f"{STEPS:,}", batch=BATCH, labels=LABELS, judges=JUDGES)
    lines = [HEAD.format(recipe=recipe, calibration=CALIBRATION, recovery=RECOVERY),
             "| network | fp32 top-1 | fp32 bytes | " + " | ".join(
                 f"{title}: no loss | 1 point" for title in WAYS.values()) + " | NNCodec: no loss | 1 point |",
             "|---|" + "---|" * (2 * len(WAYS) + 4)]  # fmt: skip
    for name in networks:
        own = [case for key, case in cases.items() if key.startswith(f"{name}:")]
        cells = [f"{100 * own[0]['fp32']:.2f}%", f"{own[0]['fp32_bytes']:,}"]
        for way in WAYS:
            cells += [smallest(own, way, lambda d: d["low"] <= 0.0), smallest(own, way, lambda d: d["mean"] <= 1.0)]
        cells += nncodec(name, own[0])
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Every point; drops in points, with the 95% interval:", "",
              COLUMNS, "|---|---|---|---|---|---|---|"]
    for key in CASES.names:
        for way, title in WAYS.items():
            if key in cases and way in cases[key]:
                point, (name, bits) = cases[key][way], key.split(":")
                drop = point["drop"]
                interval = f"{drop['mean']:+.2f} ({drop['low']:+.2f} to {drop['high']:+.2f})"
                title += f", {cases[key]['steps']:,} batches" if way == "tuned" else ""
                lines.append(f"| {name} | {bits} | {title} | {point['bytes']:,} | {interval} | {point['kl']:.4f} | "
                             f"{point['cpu_seconds'] or ''} |")  # fmt: skip
    return "\n".join([*lines, *ablation(ablations), "", "Made by `python benchmarks/finetuned.py`.", ""])


def ablation(cases: dict[str, Case]) -> list[str]:
    """What the steps of recovery are worth."""
    if not cases:
        return []
    lines = ["", "## Recovery without labels, step by step", "",
             f"KL to fp32 on {RECOVERED} held-out training images, at the same bytes, calibrated on {RECOVERY}; in "
             "brackets CPU seconds.",
             "",
             "| | " + " | ".join(f"{name}, {bits} bits" for name, bits, _ in (key.split(":") for key in cases)) + " |",
             "|---|" + "---|" * len(cases)]  # fmt: skip
    for label in (*EFFORTS, *DISTILLED, BLOCKS, BOTH, COARSE, PLAIN, PLAIN_BLOCKS):
        cells = [f"{case[label]['kl']:.4f} +- {case[label]['kl_error']:.4f} ({case[label]['cpu_seconds']:.0f})"
                 if label in case else "" for case in cases.values()]  # fmt: skip
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return [*lines, "", NOTE]


def smallest(cases: list[Case], way: str, good: Any) -> str:
    """The smallest file of one way whose drop is good enough, with how many times smaller it is."""
    sizes = [(case[way]["bytes"], case["fp32_bytes"]) for case in cases if way in case and good(case[way]["drop"])]
    if not sizes:
        return "-"
    size, whole = min(sizes)
    return f"{size:,} ({whole / size:.1f}x)"


def nncodec(name: str, case: Case) -> list[str]:
    """Smallest files of NNCodec's curve whose top-1 is not below that of fp32, and by at most one point."""
    points = next((list(entry["points"].values()) for entry in read_json(common.RESULTS / "nncodec.json").values()
                   if entry.get("network") == name), [])  # fmt: skip
    cells = []
    for allowed in (0.0, 0.01):
        sizes = [point["bytes"] for point in points if point["top1"] >= case["fp32"] - allowed - 1e-9]
        cells.append(f"{min(sizes):,} ({case['fp32_bytes'] / min(sizes):.1f}x)" if sizes else "-")
    return cells


if __name__ == "__main__":
    main()
