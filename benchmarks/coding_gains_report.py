"""The document and the picture of coding_gains.py, from its results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import common

DOCUMENT = common.ROOT / "docs" / "coding_gains.md"
PICTURE = common.ROOT / "docs" / "coding_gains.svg"
TITLES = {"resnet20": "ResNet-20", "resnet32": "ResNet-32", "resnet56": "ResNet-56",
          "squeezenet1_1": "SqueezeNet 1.1", "lenet5": "LeNet-5"}  # fmt: skip
AXES = ("inputs: KLT", "inputs: ELT", "outputs: KLT", "outputs: ELT", "taps: DCT-I", "taps: DCT-II",
        "taps: learned taps")  # fmt: skip
JOINT = ("joint: KLT", "joint: ELT", "joint: DCT-I", "joint: DCT-II", "joint: learned taps", "joint: ELT x DCT-I",
         "joint: ELT x DCT-II", "joint: ELT x learned taps", "joint: joint ELT")  # fmt: skip
LINES = {"joint: KLT": "KLT", "joint: ELT": "ELT", "joint: DCT-I": "DCT-I", "joint: DCT-II": "DCT-II",
         "joint: ELT x DCT-I": "ELT x DCT-I"}  # fmt: skip
KINDS = {"whole": "whole gradients", "whole, centred": "whole gradients, centred", "factored": "A and G",
         "factored, centred": "A and G, centred"}  # fmt: skip
INTRODUCTION = """# Coding gains of transforms

What a transform of the weights is worth in dB of the output's squared error, at equal bits; 6.02 dB are one bit per
weight. Made by `python benchmarks/coding_gains.py` from trained weights and 320 training images; formulas in
[theory.md](theory.md). The storage of a learned basis is *not* in the gains; its numbers per weight have a column of
their own. A DCT needs none.

C_g is measured in four ways. *Whole gradients*, as published: outer products of d(v.y)/dW of each image. *A and G*:
from the factors of K-FAC, which take the positions of an image for independent. (tersor's encoder works with a mixture
of both.) Each with inputs as they are, and *centred*: without their mean, for an error of the mean is made up for by a
bias or BatchNorm.

Means are weighted by the layers' weights. A layer in which an axis is longer than there are vectors along it has a
singular C_w, and its gain no limit at high rate: it is left out of that axis' means, and shown as "-".
"""
FINDINGS = (
    "## What the tables say\n",
    "* ELT beats KLT in every layer of every network; over input channels by 3.8 to 4.0 dB on the ResNets and 6 dB",
    "  on SqueezeNet (the paper's AlexNet: 1 to 2 dB). Most of its gain is the gradient's factor: 4.0 of 5.1 dB on",
    "  ResNet-20. (LeNet-5's row of learned channel transforms is its two convolutions only.)",
    "* A DCT over the taps, which costs no storage, is worth more than an ELT over the input channels on networks",
    "  of 3x3 kernels (8 to 14 dB against 5 to 10); DCT-II comes within 1 dB of a learned basis of the taps. There",
    "  DCT-II is 0.5 to 1 dB better than DCT-I; with C_g centred, or on LeNet-5's 5x5, they differ by 0.2.",
    "* The two together add up to less than their sum: on ResNet-20 8.2 and 5.0 give 9.9 dB, and a joint basis",
    "  11.0. At 2 bits/weight, where many coefficients are below the water level, 6.1 and 5.2 give 7.8.",
    "* tersor's encoder has less to gain, since means are made up for elsewhere: at 2 bits, centred, a DCT is worth",
    "  4.8 dB and ELT x DCT-I 5.9 dB by whole gradients on ResNet-20 (2.9 and 4.0 by A and G); 6.4 and 7.8 (4.8 and",
    "  6.3) on SqueezeNet. Error feedback, which needs no storage, takes a part of the same gain.",
    "* A basis over input channels has 0.11 numbers per weight on the ResNets: at 4 bits each 0.45 bits/weight,",
    "  more than the 0.32 that an ELT saves there by A and G, centred (1.9 dB), less than the 0.85 by whole",
    "  gradients (5.1 dB).",
    "* Random signs measure what all logits do: with one sign vector per image C_g over inputs differs by 2%, over",
    "  taps by 0.3%, over outputs by 19%, and the mean gain by 0.04, 0.03 and 0.13 dB. (All logits of only half of",
    "  the images: 4%, 0.4% and 7%.)",
    "* A and G do not: over the positions of an image, errors add up in step where inputs and gradients are alike,",
    "  which factors that take positions for independent cannot know. They see half of the gain in dB (2.7 of 5.1",
    "  over inputs, 4.1 of 9.2 over taps), and centred their trace is 1.6 times too large. The bases that follow",
    "  from them are nearly as good (0.1 dB lost over inputs, 0.2 over taps, 0.4 over outputs): where bits and",
    "  errors go is what suffers.",
    "* 320 training images, one network of each size: nothing is known of the spread. Part of a learned basis' gain",
    "  is that it was fitted to these very weights (64 x 64 covariances from 576 vectors).\n",
)
"""What the tables say; written by hand after reading them."""


def write_document(results: dict[str, Any]) -> None:
    """docs/coding_gains.md and its picture."""
    networks = {name: results["networks"][name] for name in TITLES if name in results["networks"]}
    parts = [INTRODUCTION, "\n".join(FINDINGS), "![Gain per layer](coding_gains.svg)\n", axis_means(networks),
             joint_means(networks)]  # fmt: skip
    if "all_logits" in results:
        parts.append(logits_table(results["all_logits"]))
    detailed = ("resnet20", "squeezenet1_1", "lenet5")
    parts += [layer_table(name, entry) for name, entry in networks.items() if name in detailed]
    DOCUMENT.write_text("\n".join(parts))
    picture(networks)


def total(layer: dict[str, Any], measure: str, kind: str = "whole") -> float:
    """Gain at high rate, dB."""
    weight, gradient, _ = layer[kind][measure]
    return weight + gradient


def mean(layers: Iterable[dict[str, Any]], measure: str, kind: str, low: bool = False) -> float | None:
    """Weighted mean over layers that have this measure: of the gain at high rate, where it has a limit, or `low`."""
    pairs = [(layer[kind][measure][2] if low else total(layer, measure, kind), layer["weights"]) for layer in layers
             if measure in layer[kind] and (low or usable(layer, measure))]  # fmt: skip
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs) if pairs else None


def usable(layer: dict[str, Any], measure: str) -> bool:
    """Whether the C_w that the transform is learned from has full rank."""
    axis, transform = measure.split(": ")
    learned = {axis} if axis in ("inputs", "outputs") else set()
    if axis == "joint" and ("LT" in transform):
        learned.add("inputs")
    if "taps" in transform or transform == "joint ELT":
        learned.add("taps")
    return not learned & set(layer["singular"])


def axis_means(networks: dict[str, Any]) -> str:
    """As in the paper: each along its own axis."""
    lines = ["## As published: each transform along its own axis, whole gradients, dB\n",
             row("", *AXES, "basis / weight"), "|---|" + "---:|" * (len(AXES) + 1)]  # fmt: skip
    for name, entry in networks.items():
        layers = entry["layers"]
        share = sum(layer["sizes"]["inputs"] ** 2 for layer in layers) / sum(layer["weights"] for layer in layers)
        lines.append(row(TITLES[name], *(number(mean(layers, m, "whole")) for m in AXES), f"{share:.2f}"))
    lines += ["| *AlexNet conv1 ... conv5 (paper, Table 6)* | 4.7, 6.3, 3.7, 1.6, 1.7 | 6.0, 7.5, 5.1, 3.0, 3.3 | | "
              "| 19.6, 6.9, 5.1, 3.7, 4.1 | | | |", "",
              "*basis / weight*: numbers of an input-channel basis, n^2, over all layers, per weight.\n"]  # fmt: skip
    return "\n".join(lines)


def joint_means(networks: dict[str, Any]) -> str:
    """Everything against the same baseline."""
    names = [m.removeprefix("joint: ") for m in JOINT]
    lines = ["## One baseline: no transform, a step of its own for each (input channel, tap), dB\n",
             row("", "C_g", "rate", *names), "|---|---|---|" + "---:|" * len(names)]  # fmt: skip
    for name, entry in networks.items():
        layers = [layer for layer in entry["layers"] if layer["sizes"]["taps"] > 1]
        for kind, said in KINDS.items():
            for title, low in (("high", False), ("2 bits", True)):
                values = (number(mean(layers, m, kind, low)) for m in JOINT)
                lines.append(row(TITLES[name], said, title, *values))
    lines += ["", "Layers of more than one tap only. *2 bits*: what reverse water-filling saves at the distortion of",
              "2 bits/weight without a transform. *joint ELT*: one basis over (channel, tap), from the full C_g and a",
              "C_w = C_w(channels) x C_w(taps)."]
    return "\n".join(lines) + "\n"


def logits_table(measured: dict[str, Any]) -> str:
    """Random signs and Kronecker factors against all logits, ResNet-20."""
    lines = ["## ResNet-20: random signs, all logits, and factors\n",
             f"Reference: dy_k/dW of each of 10 logits of {measured['images']} images, back-propagated one at a time,\n"
             "not factored. Means over layers, weighted. *dB lost*: by an ELT made from this C_g, judged by the\n"
             "reference.\n",
             row("inputs", "axis", "C_g from", "relative difference of C_g", "its trace / reference's",
                 "ELT's gain, dB", "reference's", "dB lost"), "|---|---|---|" + "---:|" * 5]  # fmt: skip
    keys = ("covariance", "trace_ratio", "gain", "exact_gain", "lost")
    for kind, title in (("plain", "as they are"), ("centred", "centred")):
        for axis, ways in measured[kind].items():
            for way, found in ways.items():
                weights = sum(item["weights"] for item in found)
                values = [sum(item[key] * item["weights"] for item in found) / weights for key in keys]
                cells = (f"{v:.{digits}f}" for v, digits in zip(values, (3, 3, 2, 2, 3), strict=True))
                lines.append(row(title, axis, way, *cells))
    return "\n".join(lines) + "\n"


def layer_table(name: str, entry: dict[str, Any]) -> str:
    """Every layer, in the two factors where it matters."""
    columns = ("inputs: KLT", "inputs: ELT", "outputs: ELT", "taps: DCT-I", "taps: DCT-II", "taps: learned taps",
               "joint: ELT x DCT-I", "joint: joint ELT")  # fmt: skip
    lines = [f"## {TITLES[name]}, layer by layer: whole gradients, dB\n",
             row("layer", "shape", *columns, "ELT over inputs: weight + gradient"),
             "|---|---|" + "---:|" * (len(columns) + 1)]  # fmt: skip
    for layer in entry["layers"]:
        cells = [number(total(layer, m)) if m in layer["whole"] and usable(layer, m) else "-" for m in columns]
        weight, gradient, _ = layer["whole"]["inputs: ELT"]
        split = f"{weight:.1f} + {gradient:.1f}" if usable(layer, "inputs: ELT") else "-"
        shape = "x".join(map(str, layer["shape"]))
        lines.append(row(layer["name"].removesuffix(".weight"), shape, *cells, split))
    return "\n".join(lines) + "\n"


def picture(networks: dict[str, Any]) -> None:
    """Gain per layer, one panel for each network, as the paper's Fig. 3 has it."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "tersor", "svg.fonttype": "none", "font.size": 8})
    shown = [name for name in networks if name != "lenet5"]
    figure, panels = plt.subplots(len(shown), 1, figsize=(7, 1.9 * len(shown)), squeeze=False)
    for panel, name in zip(panels[:, 0], shown, strict=True):
        layers = networks[name]["layers"]
        for measure, label in LINES.items():
            values = [total(layer, measure) if measure in layer["whole"] and usable(layer, measure) else float("nan")
                      for layer in layers]  # fmt: skip
            panel.plot(range(1, len(layers) + 1), values, ".-", label=label, linewidth=0.9, markersize=3)
        panel.set_ylabel("gain, dB")
        panel.set_title(TITLES[name], loc="left", fontsize=8)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(ncols=len(LINES), fontsize=7, frameon=False, loc="upper right")
    panels[-1, 0].set_xlabel("layer")
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})
    plt.close(figure)
    PICTURE.write_text(re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.1f}", PICTURE.read_text()))


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
