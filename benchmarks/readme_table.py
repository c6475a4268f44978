"""Renders the figures of README.md from frontier.json and finetuned.json in benchmarks/results:
`python benchmarks/readme_table.py`.

Replaces what stands between the two HTML comments. With --check it changes nothing and fails if README.md is
not what it would write.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from finetuned_report import GOOD, RATES, WAYS, files_of
from frontier_networks import TITLES
from frontier_report import CODECS, curves, size_at

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- figures: written by benchmarks/readme_table.py -->\n"
END = "<!-- end of figures -->"
LEVEL = 0.03
HALF = 0.5
SHOWN = (0.01, 0.03, 0.1)
"""KL of the points of a curve that are shown."""
RESULTS = ROOT / "benchmarks" / "results" / "frontier.json"
TUNED = RESULTS.with_name("finetuned.json")
MADE = {WAYS["plain"]: "compressed", WAYS["recovered"]: "compressed, recovered", WAYS["start"]: "compressed",
        WAYS["tuned"]: "fine-tuned"}  # fmt: skip
FULL_TITLES = {"alexnet_cifar": "AlexNet (CIFAR size)", "vgg16_bn_cifar": "VGG-16-BN, narrow",
               "vgg16_bn_full": "VGG-16-BN", "resnet18_cifar": "ResNet-18, narrow", "resnet18_full": "ResNet-18",
               "densenet_cifar": "DenseNet, small", "densenet_bc_100_12_cifar": "DenseNet-BC-100-12",
               "mobilenet_v2_cifar": "MobileNetV2, half width", **TITLES}  # fmt: skip


def main() -> None:
    """Write the table, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="fail if README.md is out of date")
    options = parser.parse_args()
    if not options.results.exists():
        sys.exit(f"{options.results} is not there: run python benchmarks/frontier.py first")
    text = options.readme.read_text(encoding="utf-8")
    new = replaced(text, render(json.loads(options.results.read_text(encoding="utf-8")), tuned_cases()))
    if options.check and new != text:
        sys.exit(f"{options.readme} is out of date: run python benchmarks/readme_table.py")
    if new != text:
        options.readme.write_text(new, encoding="utf-8")


def replaced(text: str, figures: str) -> str:
    """`text` with `figures` between the two comments."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"the README has no lines {BEGIN.strip()} and {END}")
    return before + begin + figures.rstrip("\n") + "\n" + end + after


def tuned_cases() -> dict[str, Any]:
    """What benchmarks/finetuned.py measured."""
    return dict(json.loads(TUNED.read_text(encoding="utf-8"))["cases"]) if TUNED.exists() else {}


def render(results: dict[str, Any], tuned: dict[str, Any]) -> str:
    """Markdown of what benchmarks/frontier.py and finetuned.py measured and a first-time reader wants to know."""
    networks = {name: results["networks"][name] for name in TITLES if results["networks"].get(name, {}).get("curve")}
    parts = [
        "Smallest files without a loss of accuracy: the 95% interval of the paired difference in top-1 includes 0, and "
        f"its mean is at most {HALF:g} points. "
        "CIFAR-10 (LeNet-5: MNIST), whole files against float32 .safetensors files, measured on test images after the "
        "file was restored into a network of random weights. *Compressed*: without training or labels.",
        lossless_table(tuned),
        "ResNet-20, -32 and -56 have 1,017 test images, the others 10,000. All but those three and LeNet-5 were "
        "trained by this project, for a few epochs. More files, and those that lose up to a point: "
        "[docs/finetuned.md](docs/finetuned.md).",
        "At other rates, without training and without labels, calibrated on 256 to 3,000 training images (SqueezeNet: "
        "ImageNet, 650 test images). KL is the mean divergence of the outputs, in nats; ± is the standard error of "
        "the paired difference:",
        rate_table(networks),
        f"Bytes for equal quality (KL {LEVEL}, interpolated on each codec's own curve; in brackets the multiple of "
        "tersor's bytes):",
        equal_quality_table(networks),
        "`python benchmarks/frontier.py` measures this; all rates, and what each tool saves, in "
        "[docs/frontier.md](docs/frontier.md).",
    ]
    return "\n\n".join(parts)


def lossless(drop: dict[str, float]) -> bool:
    """Whether nothing was lost. An interval of 1,017 images that includes 0 is not enough."""
    return GOOD[0](drop) and drop["mean"] <= HALF


def lossless_table(cases: dict[str, Any]) -> str:
    """One row for each network that has a file of no loss: the smallest, and NNCodec's smallest."""
    rows = []
    for name in RATES:
        own = [case for key, case in cases.items() if key.startswith(f"{name}:") and "fp32" in case]
        files = [file for file in files_of(name, cases) if lossless(file["drop"])]
        if not files or not own:
            continue
        best, whole = min(files, key=lambda file: file["bytes"]), own[0]["fp32_bytes"]
        size, drop = best["bytes"], best["drop"]
        peers = [point["bytes"] for point in cases.get(f"{name}:nncodec", {}).get("points", [])
                 if lossless(point["drop"])]  # fmt: skip
        rows.append([FULL_TITLES[name], f"{100 * own[0]['fp32']:.2f}", f"{whole:,}", f"{size:,}", f"{whole / size:.1f}",
                     f"{-drop['mean']:+.2f} ({-drop['high']:+.2f} to {-drop['low']:+.2f})",
                     MADE.get(best["way"], best["way"]),
                     f"{min(peers):,} ({whole / min(peers):.1f})" if peers else ""])  # fmt: skip
    header = ["network", "top-1 %", "fp32 bytes", "bytes", "times smaller", "change, points", "how", "NNCodec"]
    return markdown(header, rows)


def rate_table(networks: dict[str, Any]) -> str:
    """One row for each network and rate, the uncompressed network first."""
    rows = []
    for name, entry in networks.items():
        every = [point for point in entry["curve"].values() if point["kl"] > 0.0]
        nearest = [min(every, key=lambda point: abs(math.log(point["kl"] / kl))) for kl in SHOWN]
        points = sorted({point["bytes"]: point for point in nearest}.values(), key=lambda point: -point["bytes"])
        bits = 8 * entry["fp32_bytes"] / entry["parameters"]
        rows.append([f"{TITLES[name]}, fp32", f"{entry['fp32_bytes']:,}", f"{bits:.2f}", "1",
                     f"{100 * points[0]['top1_reference']:.2f}", "", ""])
        for point in points:
            change = f"{100 * point['top1_change']:+.2f} ± {100 * point['top1_change_error']:.2f}"
            rows.append([TITLES[name], f"{point['bytes']:,}", f"{8 * point['bytes'] / entry['parameters']:.2f}",
                         f"{entry['fp32_bytes'] / point['bytes']:.1f}", f"{100 * point['top1']:.2f}", change,
                         f"{point['kl']:.4f}"])
    header = ["network", "bytes", "bits/weight", "times smaller", "top-1 %", "change, points", "KL"]
    return markdown(header, rows)


def equal_quality_table(networks: dict[str, Any]) -> str:
    """One row for each codec, one column for each network."""
    sizes = {name: {codec: size_at(found, codec, LEVEL) for codec in CODECS}
             for name, found in ((name, curves(entry)) for name, entry in networks.items())}
    rows = []
    for codec in CODECS:
        cells = []
        for of_network in sizes.values():
            size, ours = of_network[codec], of_network["tersor"]
            multiple = f" ({size / ours:.2f}x)" if size and ours and codec != "tersor" else ""
            cells.append(f"{size:,.0f}{multiple}" if size else "out of its range")
        rows.append([codec, *cells])
    return markdown(["codec", *(TITLES[name] for name in sizes)], rows)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table; all columns but the first to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
