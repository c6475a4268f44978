"""How many calibration images are worth having: the same bytes, measured on images that calibration has not seen.

    python benchmarks/calibration_images.py

ResNet-20 at 1.3, 1.6 and 2.4 bits/weight, from 80 to 3,000 training images; all of them serve the second walk as well.
Writes benchmarks/results/calibration_images.json and docs/calibration_images.md. Cases are kept as they are measured.
"""

from __future__ import annotations

import time
from pathlib import Path

from common import RESULTS, ROOT, Case, Cases, accuracy_cells, data_folder, subject
from frontier_networks import Network, network

import tersor

IMAGES = (80, 320, 1280, 3000)
BITS = (1.3, 1.6, 2.4)
CASES = Cases([f"{count} images" for count in IMAGES], RESULTS / "calibration_images.json",
              ROOT / "docs" / "calibration_images.md")


def main() -> None:
    """Measure what is missing, then write the page."""
    options = CASES.arguments((__doc__ or "").splitlines()[0]).parse_args()
    data = data_folder(options.data)
    CASES.run(options, lambda case, need: measure(data, int(case.split()[0])), page)


def measure(data: Path, count: int) -> Case:
    """One calibration on `count` images, and a file at each rate."""
    tested = network("resnet20", data)
    images = subject("resnet20", data, count).calibration  # the first ones; those held out are the last
    start = time.process_time()
    stats = tersor.calibrate(tested.model, images.split(80), keep=count)
    seconds = time.process_time() - start
    points = {f"{bits:g}": point(tested, stats, bits) for bits in BITS}
    return {"images": count, "calibration_cpu_seconds": round(seconds, 1), "points": points}


def point(tested: Network, stats: tersor.Statistics, bits: float) -> Case:
    """One file, restored."""
    start = time.process_time()
    packed = tersor.compress(tested.model, stats, bits=bits)
    seconds = time.process_time() - start
    restored = tersor.restore(packed.data, into=tested.blank()).eval()
    return {"bytes": packed.size, "encode_cpu_seconds": round(seconds, 1), "calibration_snr": packed.snr,
            "held_out_snr": tested.held_out_snr(restored), **tested.measure(restored).as_dict()}


def page(cases: dict[str, Case]) -> str:
    """The document, from the cases that are there."""
    rows = [[f"{case['images']:,}", bits, f"{p['bytes']:,}", f"{p['calibration_snr']:.2f}", f"{p['held_out_snr']:.2f}",
             f"{p['kl']:.4f}", *accuracy_cells(p), f"{case['calibration_cpu_seconds'] + p['encode_cpu_seconds']:.0f}"]
            for case in sorted(cases.values(), key=lambda case: int(case["images"]))
            for bits, p in case["points"].items()]
    rows.sort(key=lambda row: (float(row[1]), int(row[0].replace(",", ""))))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([TEXT, *lines, ""])


TEXT = """# How many calibration images

Written by `python benchmarks/calibration_images.py`. ResNet-20, default effort, no labels, no training. "On them" is
the signal-to-noise ratio of the outputs on the calibration images, "held out" on 1,000 other training images: where
they are far apart, the encoder has fitted its corrections to the images rather than to the network. One bit is about
6 dB. KL and top-1 are on the 1,017 test images; time is of calibration and one encoding, processor seconds.

| images | bits/weight | bytes | on them, dB | held out, dB | KL | top-1 % | change, points | seconds |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


if __name__ == "__main__":
    main()
