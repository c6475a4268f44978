"""docs/frontier.md and docs/frontier.svg from what `frontier.py` has measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import common
import numpy as np
from coding_gains_report import row
from frontier_ablation import RATES, TOOLS
from frontier_networks import TITLES

PAGE = common.ROOT / "docs" / "frontier.md"
PICTURE = common.ROOT / "docs" / "frontier.svg"
LEVELS = (0.03, 0.1)
DECIBELS = (20.0, 15.0)
GOALS = {"resnet20": ((44_000, 0.07), (70_000, 0.016)), "resnet56": ((108_000, 0.06), (185_000, 0.0125))}
"""Bytes, and the KL that was asked for at them."""
SHARES = {"resnet56": 0.45}
"""Of NNCodec's bytes at equal KL; 0.5 for the others."""
NEAR = (0.008, 0.15)
BEFORE = {"squeezenet1_1": 256}
"""Calibration images of cases that do not tell; 320 for the others."""
CODECS = ("tersor", "NNCodec, best setting", "DeepCABAC-style", "RTN per channel + ideal entropy",
          "RTN per layer + ideal entropy")  # fmt: skip

INTRODUCTION = """# The frontier: bytes against quality

Written by `python benchmarks/frontier.py` from `benchmarks/results/frontier.json`. No training and no labels: tersor
calibrates on training images (the table of files says how many). Whole files, every byte counted; each is restored
into a network of other weights and compared with fp32 on the test images. KL is the mean divergence of the outputs, in
nats.
NNCodec is 2.1.3 of the package index in its best setting (dependent quantization on or off, `opt_qp` on or off);
"DeepCABAC-style" is the same without dependent quantization, that is, rate-distortion-optimised quantization and CABAC.
Round-to-nearest (RTN) is charged its ideal entropy, tables free. Every codec is
measured at about as many rates, and its curve is of those that no other beats in both bytes and KL. Cases are kept as
they are measured, at several revisions of the encoder: those at effort 9 are from before metrics were shrunk, the
second walk cross-validated and layers' errors measured; those of the ResNets from before a calibration image counted
for three samples in the shrinking, which matters where images are few.
"""


def write_document(results: dict[str, Any]) -> None:
    """The page and its picture."""
    networks = {name: entry for name, entry in results.get("networks", {}).items() if entry.get("curve")}
    networks = {name: networks[name] for name in TITLES if name in networks}
    if not networks:
        return
    parts = [INTRODUCTION, "![Bytes against KL](frontier.svg)\n", equal_quality(networks),
             equal_by_lines(networks), equal_snr(networks),
             asked(networks),
             points(networks), ablation(networks), gaps(networks), times(networks)]  # fmt: skip
    PAGE.write_text("\n".join(part for part in parts if part))
    picture(networks)


def curves(entry: dict[str, Any], measure: Callable[[dict[str, Any]], float] = itemgetter("kl")
           ) -> dict[str, list[tuple[float, float]]]:
    """(bytes, KL or another measure) of every codec."""
    found = {"tersor": list(entry["curve"].values()), "tersor, effort 9": list(entry.get("best", {}).values())}
    for case in entry.get("nncodec", {}).values():
        setting = f"opt_qp={case['opt_qp']} nonweight_qp={case['nonweight_qp']}"
        found.setdefault(f"{'NNCodec' if case['use_dq'] else 'DeepCABAC-style'}, {setting}", []).append(case)
    for case in entry.get("peers", {}).values():
        found.setdefault(case["peer"], []).append(case)
    return {codec: [(p["bytes"], measure(p)) for p in cases] for codec, cases in found.items() if cases}


def size_at(found: dict[str, list[tuple[float, float]]], codec: str, level: float) -> float | None:
    """Bytes at a level; of several settings, which have a curve each, the least."""
    names = {"NNCodec, best setting": ("NNCodec", "DeepCABAC"), "DeepCABAC-style": ("DeepCABAC",)}.get(codec, (codec,))
    sizes = [common.bytes_at(points, level) for name, points in found.items()
             if name == codec or (name.startswith(names) and codec not in found)]  # fmt: skip
    return min((size for size in sizes if size is not None), default=None)


def equal_quality(networks: dict[str, Any]) -> str:
    """Bytes at the two levels, and tersor's share of them."""
    lines = ["## Bytes at equal KL\n",
             "Interpolated on each codec's own curve (log KL over bytes); in brackets tersor's share.\n",
             row("network", "KL", *CODECS), "|---|---:|" + "---:|" * len(CODECS)]  # fmt: skip
    for name, entry in networks.items():
        found = curves(entry)
        for level in LEVELS:
            sizes = {codec: size_at(found, codec, level) for codec in CODECS}
            lines.append(row(TITLES[name], f"{level:g}", *shares(sizes)))
    return "\n".join(lines) + "\n"


def equal_by_lines(networks: dict[str, Any]) -> str:
    """Bytes at the two levels by a straight line through each curve, which no single lucky file decides."""
    lines = ["The same where a straight line is laid through log KL over bytes of *all* points of a curve with KL from "
             f"{NEAR[0]:g} to\n{NEAR[1]:g} (tersor's share of NNCodec's best line): one file is lucky or not by up to "
             "30% of its KL, and the best of many\nfiles is a lucky one.\n",
             row("network", *(f"KL {level:g}" for level in LEVELS)), "|---|" + "---:|" * len(LEVELS)]  # fmt: skip
    for name in (name for name in networks if name.startswith("resnet")):  # curves of others are bent, or short
        found = curves(networks[name])
        cells = []
        for level in LEVELS:
            own, *others = ([size for codec, points in found.items() if codec.startswith(names)
                             if (size := on_line(points, level)) is not None]
                            for names in (("tersor",), ("NNCodec", "DeepCABAC")))  # fmt: skip
            cells.append(f"{min(own) / min(others[0]):.3f}" if own and others[0] else "")
        if any(cells):
            lines.append(row(TITLES[name], *cells))
    return "\n".join(lines) + "\n"


def on_line(points: list[tuple[float, float]], level: float) -> float | None:
    """Bytes at a KL by least squares of log KL over bytes; None of fewer than five points."""
    near = [(size, np.log(kl)) for size, kl in points if NEAR[0] < kl < NEAR[1]]
    if len(near) < 5:
        return None
    slope, start = np.polyfit(*np.array(near).T, 1)
    return float((np.log(level) - start) / slope)


def equal_snr(networks: dict[str, Any]) -> str:
    """The same at equal signal-to-noise ratio of the outputs."""
    lines = ["## Bytes at equal signal-to-noise ratio of the outputs\n",
             "On the test images, over all outputs: repeats far better than KL on 1,017 images, where two encodings\n"
             "of one size differ by up to 30%.\n",
             row("network", "dB", *CODECS), "|---|---:|" + "---:|" * len(CODECS)]  # fmt: skip
    for name, entry in networks.items():
        found = curves(entry, lambda p: 10 ** (-p["snr"] / 10))
        for level in DECIBELS:
            sizes = {codec: size_at(found, codec, 10 ** (-level / 10)) for codec in CODECS}
            lines.append(row(TITLES[name], f"{level:g}", *shares(sizes)))
    return "\n".join(lines) + "\n"


def shares(sizes: dict[str, float | None]) -> list[str]:
    """Bytes, and in brackets tersor's share of them."""
    ours = sizes["tersor"]
    return [number(size) + (f" ({ours / size:.2f})" if ours and size and codec != "tersor" else "")
            for codec, size in sizes.items()]  # fmt: skip


def asked(networks: dict[str, Any]) -> str:
    """What the project asks of itself, and what came out."""
    lines = ["## Figures asked for\n", row("network", "figure", "asked", "measured", ""), "|---|---|---:|---:|---|"]
    for name, entry in networks.items():
        found = curves(entry)
        for level in LEVELS:
            ours, theirs = (size_at(found, codec, level) for codec in CODECS[:2])
            if ours and theirs:
                limit, share = SHARES.get(name, 0.5), ours / theirs
                lines.append(row(TITLES[name], f"bytes / NNCodec's best at KL {level:g}", f"at most {limit:g}",
                                 f"{share:.3f}", verdict(share <= limit)))  # fmt: skip
        for size, kl in GOALS.get(name, ()):
            needed = size_at(found, "tersor", kl)
            if needed:
                lines.append(row(TITLES[name], f"bytes at KL {kl:g}", f"at most {size:,}", number(needed),
                                 verdict(needed <= size)))  # fmt: skip
    return "\n".join(lines) + "\n"


def points(networks: dict[str, Any]) -> str:
    """Every file of tersor, and int8 + zstd."""
    columns = ("calibration images", "bytes", "bits/weight", "times smaller", "KL", "top-1 %", "change, points",
               "SNR dB", "held-out SNR dB")  # fmt: skip
    lines = ["## tersor's files\n", "Held out: training images that calibration has not seen (SqueezeNet: of 744 "
             "calibration images, others than of 256).\n",
             row("network", *columns), "|---|" + "---:|" * len(columns)]  # fmt: skip
    for name, entry in networks.items():
        cases = [*entry["curve"].values(), *entry.get("best", {}).values()]
        labels = [TITLES[name]] * len(entry["curve"]) + [f"{TITLES[name]}, effort 9"] * len(entry.get("best", {}))
        cases += [case for case in entry.get("peers", {}).values() if "int8" in case["peer"]]
        labels += [f"{TITLES[name]}, {case['peer']}" for case in cases[len(labels) :]]
        for label, p in zip(labels, cases, strict=True):
            change = f"{100 * p['top1_change']:+.2f} ± {100 * p['top1_change_error']:.2f}"
            held = f"{p['held_out_snr']:.2f}" if "held_out_snr" in p else ""
            images = "" if "peer" in p else f"{p.get('calibration', BEFORE.get(name, 320)):,}"
            lines.append(row(label, images, f"{p['bytes']:,}", f"{8 * p['bytes'] / entry['parameters']:.2f}",
                             f"{entry['fp32_bytes'] / p['bytes']:.1f}", f"{p['kl']:.4f} ± {p['kl_error']:.4f}",
                             f"{100 * p['top1']:.2f}", change, f"{p['snr']:.1f}", held))  # fmt: skip
    return "\n".join(lines) + "\n"


def ablation(networks: dict[str, Any]) -> str:
    """% of the bytes at equal held-out SNR, per tool and rate."""
    shown = {name: entry["ablation"] for name, entry in networks.items()
             if "without contexts, 2" in entry.get("ablation", {})}  # fmt: skip
    if not shown:
        return ""
    rates = ", ".join(f"{bits:g}" for bits in sorted(RATES, reverse=True))
    lines = ["## What each tool saves\n",
             "% of the bytes at equal SNR of the outputs on held-out training images, at about "
             f"{rates} bits/weight, with 320\ncalibration images. *On top*: taken out of the whole encoder. *Alone*: "
             "added to an encoder with none of them (nearest\nrounding, steps by sensitivity, static rANS).\n",
             row("tool", *(f"{TITLES[name]}: {how}" for name in shown for how in ("on top", "alone"))),
             "|---|" + "---:|" * (2 * len(shown))]  # fmt: skip
    for tool, title in TOOLS.items():
        cells = [saved(cases, how, tool) for cases in shown.values() for how in ("without", "only")]
        lines.append(row(title, *cells))
    cells = [saved(cases, how, "") for cases in shown.values() for how in ("whole", "")]
    return "\n".join([*lines, row("all together", *cells)]) + "\n"


def saved(cases: dict[str, Any], how: str, tool: str) -> str:
    """Percent at each rate: "without" a tool, with "only" it, or the "whole" encoder against none."""
    base = [p for label, p in cases.items() if label.startswith("all," if how == "without" else "none,")]
    if len(base) < 2:
        return ""
    label = f"{how} {tool}" if how != "whole" else "all"
    found = []
    for bits in sorted(RATES, reverse=True) if how else ():
        p = cases.get(f"{label}, {bits:g}")
        if p is None:
            return ""
        same = bytes_at_snr(base, p["held_out_snr"])
        found.append(100 * (1 - same / p["bytes"] if how == "without" else 1 - p["bytes"] / same))
    return " / ".join(f"{value:.1f}" for value in found)


def bytes_at_snr(cases: Iterable[dict[str, Any]], snr: float) -> float:
    """Bytes of a curve at an SNR: bytes linear in dB between neighbours, and beyond the ends as in the last piece."""
    ordered = sorted((p["held_out_snr"], p["bytes"]) for p in cases)
    x, y = np.array(ordered).T
    k = int(np.clip(np.searchsorted(x, snr), 1, len(x) - 1))
    share = (snr - x[k - 1]) / (x[k] - x[k - 1])
    return float(y[k - 1] + share * (y[k] - y[k - 1]))


def gaps(networks: dict[str, Any]) -> str:
    """Bits above the limits, overall and the range over layers."""
    shown = [(name, case) for name, entry in networks.items() for case in entry.get("gap", {}).values()]
    if not shown:
        return ""
    columns = ("bits/weight", "reverse water-filling", "gap", "scalar bound", "gap to it", "gap of layers: smallest",
               "median", "largest", "KL", "least bytes over NNCodec's")  # fmt: skip
    lines = ["## Distance to the limit\n",
             "`tersor inspect --limits`: for a Gaussian model of each layer's weights and the layer's own metric, the\n"
             "least bits/weight of any code at the distortion that was reached (reverse water-filling), and of ideal\n"
             "entropy-coded scalar quantization. Layers of 2,048 weights and more. *Least bytes over NNCodec's*: what\n"
             "the file would take if all layers were coded at the former limit, over NNCodec's best at equal KL.\n",
             row("network", *columns), "|---|" + "---:|" * len(columns)]  # fmt: skip
    for name, case in shown:
        *parts, whole = case["layers"]
        each = sorted(layer["bits"] - layer["shannon"] for layer in parts if layer["weights"] >= 2048)
        cells = (whole["bits"], whole["shannon"], whole["bits"] - whole["shannon"], whole["scalar"],
                 whole["bits"] - whole["scalar"], each[0], each[len(each) // 2], each[-1])  # fmt: skip
        lines.append(row(TITLES[name], *(f"{value:.3f}" for value in cells), *least(networks[name], case)))
    return "\n".join(lines) + "\n"


def least(entry: dict[str, Any], case: dict[str, Any]) -> tuple[str, str]:
    """KL of a file whose distance to the limit is known, and its bytes at the limit over those of NNCodec."""
    if "kl" not in case:
        return "", ""
    whole = case["layers"][-1]
    size = case["bytes"] - (whole["bits"] - whole["shannon"]) * whole["weights"] / 8.0
    other = size_at(curves(entry), CODECS[1], case["kl"])
    return f"{case['kl']:.4f}", "out of range" if other is None else f"{size / other:.3f}"


def times(networks: dict[str, Any]) -> str:
    """CPU seconds at 3 bits/weight."""
    shown = {name: entry["time"] for name, entry in networks.items() if entry.get("time")}
    if not shown:
        return ""
    columns = ("threads", "calibration, CPU s", "encoding, CPU s", "together, CPU s", "by the clock, s",
               "decoding, million weights/s")  # fmt: skip
    lines = ["## Time\n", "At 3 bits/weight and the default effort; decoding on one core.\n",
             row("network", "mode", *columns), "|---|---|" + "---:|" * len(columns)]  # fmt: skip
    for name, modes in shown.items():
        for mode, case in modes.items():
            first, second = case["calibrate_cpu_seconds"], case["encode_cpu_seconds"]
            cells = (str(case.get("threads", 1)), f"{first:.0f}", f"{second:.0f}", f"{first + second:.0f}",
                     f"{case['wall_seconds']:.0f}" if "wall_seconds" in case else "",
                     f"{case['decode_weights_per_second'] / 1e6:.0f}")  # fmt: skip
            lines.append(row(TITLES[name], mode, *cells))
    return "\n".join(lines) + "\n"


def picture(networks: dict[str, Any]) -> None:
    """One panel for each network: KL over bits/weight."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "tersor", "svg.fonttype": "none", "font.size": 8})
    rows = math.ceil(len(networks) / 2)
    figure, panels = plt.subplots(rows, 2, figsize=(7.5, 2.6 * rows), squeeze=False)
    for panel in panels.flat[len(networks) :]:
        panel.set_visible(False)
    for panel, (name, entry) in zip(panels.flat, networks.items(), strict=False):
        for codec, found in drawn(curves(entry)).items():
            front = [p for p in sorted(found) if 1e-3 < p[1] < 1]
            front = [p for i, p in enumerate(front) if all(p[1] < q[1] for q in front[:i])]
            if front:
                x, y = np.array(front).T
                panel.plot(8 * x / entry["parameters"], y, ".-", label=codec, linewidth=0.9, markersize=4)
        panel.set(yscale="log", xlabel="bits/weight", ylabel="KL", ylim=(2e-3, 0.5))
        panel.set_title(TITLES[name], loc="left", fontsize=8)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=6, frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})
    plt.close(figure)
    PICTURE.write_text(re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.1f}", PICTURE.read_text()))


def drawn(found: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """The curves with all settings of NNCodec as one."""
    merged: dict[str, list[tuple[float, float]]] = {}
    for codec, points in found.items():
        merged.setdefault("NNCodec" if codec.startswith(("NNCodec", "DeepCABAC")) else codec, []).extend(points)
    return merged


def number(value: float | None) -> str:
    return "out of range" if value is None else f"{value:,.0f}"


def verdict(met: bool) -> str:
    return "met" if met else "missed"
