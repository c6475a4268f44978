"""Renders the figures of README.md from benchmarks/results/frontier.json: `python benchmarks/readme_table.py`.

Replaces what stands between the two HTML comments. With --check it changes nothing and fails if README.md is
not what it would write.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from frontier_networks import TITLES
from frontier_report import CODECS, curves, size_at

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- figures: written by benchmarks/readme_table.py -->\n"
END = "<!-- end of figures -->"
LEVEL = 0.03
RESULTS = ROOT / "benchmarks" / "results" / "frontier.json"


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
    new = replaced(text, render(json.loads(options.results.read_text(encoding="utf-8"))))
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


def render(results: dict[str, Any]) -> str:
    """Markdown of what benchmarks/frontier.py measured and a first-time reader wants to know."""
    networks = {name: results["networks"][name] for name in TITLES if results["networks"].get(name, {}).get("curve")}
    parts = [
        "Compressed without training and without labels: calibrated on 256 to 3,000 training images, the file "
        "restored into a network of other weights and compared with fp32 on test images (CIFAR-10: 1,017; MNIST: "
        "10,000; ImageNet: 650). Whole files, every byte counted. KL is the mean divergence of the outputs, in nats; ± "
        "is the standard error of the paired difference.",
        rate_table(networks),
        f"Bytes for equal quality (KL {LEVEL}, interpolated on each codec's own curve; in brackets the multiple of "
        "tersor's bytes):",
        equal_quality_table(networks),
        "`python benchmarks/frontier.py` measures this; more, and what each tool saves, in "
        "[docs/frontier.md](docs/frontier.md).",
    ]
    return "\n\n".join(parts)


def rate_table(networks: dict[str, Any]) -> str:
    """One row for each network and rate, the uncompressed network first."""
    rows = []
    for name, entry in networks.items():
        points = sorted(entry["curve"].values(), key=lambda point: -point["bytes"])
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
