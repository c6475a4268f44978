"""docs/finetuned.md, from the figures of `finetuned.py`; and the names of its cases."""

from __future__ import annotations

from collections.abc import Callable

from common import RESULTS, Case, read_json
from finetuned_networks import BATCH, CALIBRATION, JUDGES, LABELS

RATES = {
    "lenet5": (0.5, 0.33, 0.2, 0.12), "alexnet_cifar": (1.0, 0.75, 0.5),
    "resnet20": (1.6, 0.8), "resnet32": (1.0, 0.8), "resnet56": (0.77,),
    "vgg16_bn_cifar": (1.0, 0.6, 0.4, 0.32), "vgg16_bn_full": (0.32,),
    "resnet18_cifar": (1.3, 1.0, 0.6), "resnet18_full": (0.78, 0.4),
    "densenet_cifar": (1.25,), "densenet_bc_100_12_cifar": (2.0, 1.25), "mobilenet_v2_cifar": (2.4, 1.6),
}  # fmt: skip
ABLATION = ("resnet20:1.3:ablation", "resnet20:1.6:ablation")
PEER = tuple(f"{name}:nncodec" for name in RATES if name not in ("vgg16_bn_full", "resnet18_full"))
NAMES = (*(f"{name}:{bits:g}" for name, every in RATES.items() for bits in every), *PEER, *ABLATION)
"""Of all cases: networks at rates, the peer, what the steps of recovery are worth."""
RECOVERY, RECOVERED = 320, 768
"""Images for recovery without labels (in its ablation for calibration, too), and those that judge its steps."""
STEPS = 1500
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
HEAD = """# Fine-tuned

Networks on CIFAR-10 (LeNet-5: MNIST), compressed at the default effort with {calibration} calibration images (those
of full width: 256; ResNet-20, -32 and -56: 3,000; LeNet-5, AlexNet: 5,000); the same files after label-free recovery on
{recovery} of these; and files of the same bytes after fine-tuning. Bytes are those of whole files, which are restored
into networks of random weights before they are measured. *No loss*: the 95% interval of the paired difference in top-1
to the fp32 network includes 0 (Agresti and Min). *1 point*: its mean is at most 1. Both are the smallest file of the
rates that were tried (below): a finer ladder finds smaller ones. No setting was chosen on test images; the rates of the
ladder were, after a look at what untrained files lose on them. An interval that includes 0 may be wide: 1,017 test
images of the data folder (ResNet-20, -32 and -56) tell a loss of a point or two from none only now and then, 10,000
JPEG copies half a point. The rows of the narrow VGG-16 at 0.4 and 0.32 are of an encoder before its metrics were
shrunk; those of ResNet-20 at 0.8 were calibrated on 640 images and tuned without JPEG copies.

NNCodec is 2.1.3 of the package index, with dependent quantization, with and without `opt_qp`, at every second of its
steps and at those beside the smallest files that are good enough; its files are judged in the same way on the same
images. (The fp32 weights of the networks of full width are not kept, so it was not tried on these.)

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
BESIDE = """\
Of each network the smallest file that has lost no more points than the paper's (where its loss is not known, none by
the interval). Data and networks are the same for LeNet-5 and for ResNet-32 only. All others here are of CIFAR-10's size
and trained for few epochs: their rows say which rates are in reach, and no more. Kernel quantization counts convolution
weights alone, we count whole files. *Trained as integers*: `examples/lnq_lenet5.py` and `examples/lnq_resnet32.py`
([Table 1 of LNQ](lnq_table1.md))."""
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
GOOD: tuple[Callable[[dict[str, float]], bool], ...] = (lambda d: d["low"] <= 0.0, lambda d: d["mean"] <= 1.0)
"""No loss, one point."""
PUBLISHED = (
    ("LNQ", "LeNet-5, MNIST", 51.25, -0.03, ("lenet5",)),
    ("LNQ", "ResNet-32, CIFAR-10", 22.17, -0.10, ("resnet32",)),
    ("LNQ", "AlexNet, ImageNet", 40.65, 0.96, ("alexnet_cifar",)),
    ("TQ, retrained", "AlexNet, ImageNet", 32 / 1.0, 0.4, ("alexnet_cifar",)),
    ("TQ, retrained", "AlexNet, ImageNet", 32 / 0.5, 2.7, ("alexnet_cifar",)),
    ("TQ, retrained", "ResNet-18, ImageNet", 32 / 1.9, 1.5, ("resnet18_full", "resnet18_cifar")),
    ("TQ, retrained", "ResNet-18, ImageNet", 32 / 1.0, 5.2, ("resnet18_full", "resnet18_cifar")),
    ("TQ", "DenseNet-121, ImageNet", 32 / 4.0, 2.4, ("densenet_bc_100_12_cifar", "densenet_cifar")),
    ("KQ", "VGG, ImageNet", 32 / 1.05, None, ("vgg16_bn_full", "vgg16_bn_cifar")),
    ("KQ", "ResNet-18, ImageNet", 32 / 1.62, None, ("resnet18_full", "resnet18_cifar")),
)
"""Rates of the three papers: whose, network and data, times smaller than float32, points of top-1 that were lost
(None: not known), and our networks of that kind."""
COLUMNS = "| network | bits/weight | way | bytes | drop of top-1 | KL | CPU seconds |"


def page(cases: dict[str, Case]) -> str:
    """docs/finetuned.md."""
    ablations = {key: cases[key] for key in ABLATION if key in cases}
    peers = {key.removesuffix(":nncodec"): cases[key]["points"] for key in PEER if key in cases}
    cases = {key: case for key, case in cases.items() if key not in (*ABLATION, *PEER)}
    networks = [name for name in RATES if any(case.startswith(f"{name}:") for case in cases)]
    recipe = RECIPE.format(steps=f"{STEPS:,}", batch=BATCH, labels=LABELS, judges=JUDGES)
    titles = [*WAYS.values(), "NNCodec"]
    lines = [HEAD.format(recipe=recipe, calibration=CALIBRATION, recovery=RECOVERY),
             "| network | fp32 top-1 | fp32 bytes | " + " | ".join(
                 f"{title}: no loss | 1 point" for title in titles) + " |",
             "|---|" + "---|" * (2 * len(titles) + 2)]  # fmt: skip
    for name in networks:
        own = [case for key, case in cases.items() if key.startswith(f"{name}:")]
        cells = [f"{100 * own[0]['fp32']:.2f}%", f"{own[0]['fp32_bytes']:,}"]
        for points in (*([case[way] for case in own if way in case] for way in WAYS), peers.get(name, [])):
            cells += [smallest(points, good, own[0]["fp32_bytes"]) for good in GOOD]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Every point; drops in points, with the 95% interval:", "",
              COLUMNS, "|---|---|---|---|---|---|---|"]
    for key in NAMES:
        for way, title in WAYS.items():
            if key in cases and way in cases[key]:
                point, (name, bits) = cases[key][way], key.split(":")
                drop = point["drop"]
                interval = f"{drop['mean']:+.2f} ({drop['low']:+.2f} to {drop['high']:+.2f})"
                title += f", {cases[key]['steps']:,} batches" if way == "tuned" else ""
                lines.append(f"| {name} | {bits} | {title} | {point['bytes']:,} | {interval} | {point['kl']:.4f} | "
                             f"{point['cpu_seconds'] or ''} |")  # fmt: skip
    lines += [*headlines(cases), *ablation(ablations)]
    return "\n".join([*lines, "", "Made by `python benchmarks/finetuned.py`.", ""])


def headlines(cases: dict[str, Case]) -> list[str]:
    """The papers' rates, and for each our smallest file that has lost no more."""
    lines = ["", "## Beside the papers' rates", "", BESIDE, "",
             "| paper | network, data | times smaller | lost | ours | way | times smaller | lost |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for paper, network, ratio, lost, ours in PUBLISHED:
        good = [file for name in ours for file in files_of(name, cases)
                if (file["drop"]["low"] <= 0.0 if lost is None else file["drop"]["mean"] <= lost)]  # fmt: skip
        cells = ["-"] * 4
        if good:
            best = max(good, key=lambda file: file["times"])
            drop = best["drop"]
            cells = [best["name"], best["way"], f"{best['times']:.1f}",
                     f"{drop['mean']:+.2f} ({drop['low']:+.2f} to {drop['high']:+.2f})"]  # fmt: skip
        told = "not known" if lost is None else f"{lost:+.2f}"
        lines.append(f"| {paper} | {network} | {ratio:.1f} | {told} | " + " | ".join(cells) + " |")
    return lines


def files_of(name: str, cases: dict[str, Case]) -> list[Case]:
    """Every file of a network: bytes, how many times smaller, drop, way. Those of examples/zoo that were trained as
    integers (docs/lnq_table1.md), too."""
    found = [{"name": name, "bytes": case[way]["bytes"], "times": case["fp32_bytes"] / case[way]["bytes"],
              "drop": case[way]["drop"], "way": title}
             for key, case in cases.items() if key.startswith(f"{name}:")
             for way, title in WAYS.items() if way in case]  # fmt: skip
    for row in read_json(RESULTS / "lnq_table1.json").get("networks", {}).get(name, ()):
        if row["method"] == "tersor's best":
            drop, half = -100 * row["change"], 196 * row["change_error"]
            found.append({"name": name, "bytes": row["bytes"], "times": row["ratio"], "way": "trained as integers",
                          "drop": {"mean": drop, "low": drop - half, "high": drop + half}})  # fmt: skip
    return found


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


def smallest(points: list[Case], good: Callable[[dict[str, float]], bool], whole: int) -> str:
    """The smallest of some files whose drop is good enough, with how many times smaller than `whole` it is."""
    size = min((point["bytes"] for point in points if good(point["drop"])), default=None)
    return "-" if size is None else f"{size:,} ({whole / size:.1f}x)"
