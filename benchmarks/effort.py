"""What each effort takes and gives: `python benchmarks/effort.py`, and docs/effort.md from its results.

ResNet-20 on CIFAR-10, calibrated on 320 training images. For each effort: bytes for the same signal-to-noise ratio at
the output, on 1,000 other training images, interpolated between files on both sides of it; CPU seconds of one core for
one call of `tersor.compress`. And how far `tersor compress --dry-run` is from what `compress` then gives. Points that
are in benchmarks/results/effort.json are kept.
"""

from __future__ import annotations

import argparse
import copy
import math
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, data_folder, environment, normalised, read_json, subject, write_json

import tersor
from tersor import evaluate
from tersor.predict import predict

SNR = 18.0
"""dB at which bytes are compared: within reach of every effort, about 2 bits/weight for the best."""
STARTS = {1: 3.0, 2: 2.1, 3: 1.75, 4: 1.75, 5: 1.62}
MEANS = {1: "each weight for itself", 2: "error feedback from column to column", 3: "and from row to row",
         4: "and a trellis", 5: "second walk, no trellis", 6: "second walk and trellis",
         7: "and two transforms of the taps", 8: "and all transforms of the taps",
         9: "and all transforms, kernels, layers' errors measured at the output"}
UNMEASURED = "9, unmeasured"
"""Effort 9 with `measured=False`."""
FORETOLD = (3.0, 2.0, 1.5)
DOCUMENT = ROOT / "docs" / "effort.md"


def main() -> None:
    """Measure what is missing, write results and document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--efforts", nargs="+", default=[*map(str, range(1, 10)), UNMEASURED])
    parser.add_argument("--data", help="folder with cifar10/ (benchmarks/README.md)")
    parser.add_argument("--statistics", help="of ResNet-20, if they have been saved before")
    parser.add_argument("--output", default=str(RESULTS / "effort.json"))
    parser.add_argument("--no-dry-runs", action="store_true", help="measure the efforts only")
    parser.add_argument("--document-only", action="store_true")
    options = parser.parse_args()
    path = Path(options.output)
    results = read_json(path) or {"environment": environment(), "efforts": {}, "foretold": []}
    if not options.document_only:
        torch.set_num_threads(1)
        bench = Bench(options)
        tersor.compress(bench.model, bench.stats, bits=3, effort=1)  # what is loaded and cached at first use
        for effort in options.efforts:
            if effort not in results["efforts"]:
                results["efforts"][effort] = bench.at_equal_snr(effort)
                write_json(path, results)
                print(effort, results["efforts"][effort], flush=True)
        if not results["foretold"] and not options.no_dry_runs:
            results["foretold"] = [bench.foretold(bits) for bits in FORETOLD]
            write_json(path, results)
    DOCUMENT.write_text(document(results), encoding="utf-8")


class Bench:
    """The network, its statistics, and images that neither calibration nor tests have seen."""

    def __init__(self, options: argparse.Namespace) -> None:
        data = data_folder(options.data)
        tested = subject("resnet20", data, 320)
        self.model, self.parameters = tested.model, tested.parameters
        self.stats = (tersor.Statistics.load(options.statistics) if options.statistics
                      else tersor.calibrate(self.model, tested.calibration.split(80)))
        with np.load(data / "cifar10" / "train.npz") as train:
            self.images = normalised(train["images"][4000:5000]).split(100)
        self.reference = evaluate.logits(self.model, self.images)

    def point(self, effort: str, bits: float) -> dict[str, float]:
        """One file: its bytes, its signal-to-noise ratio, the time that it took."""
        start = cpu()
        measured = False if effort == UNMEASURED else None
        packed = tersor.compress(self.model, self.stats, bits=bits, effort=int(effort[0]), measured=measured)
        seconds = cpu() - start
        restored = tersor.restore(packed.data, into=copy.deepcopy(self.model))
        found = evaluate.compare(self.reference, evaluate.logits(restored, self.images))
        return {"bits": bits, "bytes": packed.size, "snr": found.snr, "kl": found.kl, "cpu_seconds": round(seconds, 3),
                "snr_calibration": packed.snr or math.nan}

    def at_equal_snr(self, effort: str) -> dict[str, Any]:
        """Files on both sides of SNR, and the bytes between them."""
        points = [self.point(effort, STARTS.get(int(effort[0]), 1.5))]
        while len(points) < 5 and not (spans := between(points)):
            bits, snr = points[-1]["bits"], points[-1]["snr"]
            points.append(self.point(effort, max(0.5, bits + math.copysign(max(abs(SNR - snr) / 6, 0.08), SNR - snr))))
        spans = between(points)
        return {"points": points, "bytes": spans, "cpu_seconds": float(np.mean([p["cpu_seconds"] for p in points]))}

    def foretold(self, bits: float) -> dict[str, float]:
        """--dry-run against the file, at the default effort."""
        start = cpu()
        guess = predict(self.model, self.stats, bits=bits)
        middle = cpu()
        packed = tersor.compress(self.model, self.stats, bits=bits)
        end = cpu()
        assert packed.snr is not None
        at_snr = predict(self.model, self.stats, snr=packed.snr)
        return {"bits": bits, "snr": packed.snr, "snr_foretold": guess.snr or math.nan, "bytes": packed.size,
                "bytes_foretold": at_snr.bytes, "time_share": round((middle - start) / (end - middle), 3)}


def between(points: Sequence[dict[str, float]]) -> float:
    """Bytes at SNR, linear between the nearest files below and above it; 0 where it is not between any."""
    below = [point for point in points if point["snr"] <= SNR]
    above = [point for point in points if point["snr"] > SNR]
    if not below or not above:
        return 0.0
    low, high = max(below, key=lambda p: p["snr"]), min(above, key=lambda p: p["snr"])
    share = (SNR - low["snr"]) / (high["snr"] - low["snr"])
    return low["bytes"] + share * (high["bytes"] - low["bytes"])


def cpu() -> float:
    """Seconds of processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def document(results: dict[str, Any]) -> str:
    """docs/effort.md."""
    found = {effort: entry for effort, entry in results["efforts"].items() if entry["bytes"]}
    base = found["7"]["bytes"] if "7" in found else math.nan
    means = {**{str(effort): text for effort, text in MEANS.items()}, "7, default": MEANS[7],
             UNMEASURED: "and all transforms, kernels"}
    rows = []
    for effort, entry in sorted(found.items()):
        name = "7, default" if effort == "7" else effort
        rows.append(f"| {name} | {means[name]} | {entry['bytes']:,.0f} | {entry['bytes'] / base:.3f} | "
                    f"{entry['cpu_seconds']:.1f} |")
    text = INTRODUCTION.format(snr=SNR) + "\n".join(rows) + REMARK
    if results["foretold"]:
        told = [f"| {row['bits']:g} | {row['snr_foretold']:.1f} | {row['snr']:.1f} | {row['bytes_foretold']:,} | "
                f"{row['bytes']:,} ({row['bytes_foretold'] / row['bytes'] - 1:+.1%}) | {row['time_share']:.2f} |"
                for row in results["foretold"]]
        text += FORETOLD_HEAD + "\n".join(told) + FORETOLD_REMARK
    return text


INTRODUCTION = """# Effort

Written by `python benchmarks/effort.py`.

ResNet-20 on CIFAR-10, 269,722 parameters, 320 calibration images: bytes for {snr:g} dB at the output on 1,000 other
training images, and CPU seconds of one core for one file, on a machine with other work: take them as ratios. Two
encodings of one size differ by about 0.1 dB, or 1% of the bytes: differences below that say little.

| effort | what it adds | bytes | over effort 7 | CPU s |
| ---: | --- | ---: | ---: | ---: |
"""
REMARK = """

Without samples in the statistics, or without a network to run, there is no second walk: efforts from 5 on then differ
by trellis, transforms and kernels alone.
"""
FORETOLD_HEAD = """
## What `--dry-run` foretells

At the default effort, for the same network. SNR is that on the calibration samples, as `compress` reports it.

| bits/weight | SNR foretold, dB | SNR, dB | bytes foretold for it | bytes | time over that of compress |
| ---: | ---: | ---: | ---: | ---: | ---: |
"""
FORETOLD_REMARK = """

What efforts gain, which it reckons with (`tersor.predict.GAIN`), was measured on this very network. On others, with
more or fewer weights for each calibration position, expect it to be off by 1 to 2 dB.
"""


if __name__ == "__main__":
    main()
