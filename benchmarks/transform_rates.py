"""Output SNR and accuracy against real bits/weight of transforms, fixed-length as published and entropy-coded:
`python benchmarks/transform_rates.py [CASE ...]`.

A case is CODER:TRANSFORM:BITS, for example fixed:elt:3 or entropy:identity:1.4; without any, all that are missing are
run. Each file of ResNet-20 is restored into another network of the same kind and measured on the test images; training
images alone are used to encode. Results are kept in benchmarks/results/transform_rates.json, and
docs/transform_rates.md is written from all that are there. `--tables FOLDER` keeps what was measured of each layer
for the fixed-length coder, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import math
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, Case, Cases, CifarResNet, Subject, accuracy_cells, data_folder, subject
from torch import nn

import tersor
from tersor import encoder, published
from tersor.config import TransformConfig
from tersor.packed import Packed
from tersor.tools.block_depths import Table

BITS = {"fixed": (3.0, 2.0, 4.0), "entropy": (3.0, 2.0, 4.0, 1.4, 1.0)}
CODERS = tuple(BITS)
TRANSFORMS = ("elt", "klt", "identity", "elt+dct2", "dct2")
BLOCKS = {"elt+dct2": 5}
"""Of channels; each has a block for each of the nine frequencies, and 72 blocks to a layer would take hours."""
CALIBRATION = 320
CASES = Cases([f"{coder}:{name}:{bits:g}" for name in TRANSFORMS for coder in CODERS for bits in BITS[coder]],
              RESULTS / "transform_rates.json", ROOT / "docs" / "transform_rates.md")


def main() -> None:
    """Run what is asked for, case by case."""
    parser = CASES.arguments(__doc__)
    parser.add_argument("--tables", type=Path, help="folder for D(R) tables of layers")
    options = parser.parse_args()
    bench = Bench(options)
    CASES.run(options, lambda case, _: bench.measure(case), page)


class Bench:
    """The network, its statistics, and D(R) tables that serve all rates of a transform."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.kept: dict[str, published.Tables] = {}

    @cached_property
    def tested(self) -> Subject:
        return subject("resnet20", data_folder(self.options.data), CALIBRATION)

    @cached_property
    def statistics(self) -> tersor.Statistics:
        return tersor.calibrate(self.tested.model, self.tested.calibration.split(64))

    def measure(self, case: str) -> Case:
        """One coder, transform and rate."""
        coder, name, bits = case.split(":")
        blocks = BLOCKS.get(name, TransformConfig.blocks)
        transform = TransformConfig(transforms=(name,), coder=coder, blocks=blocks)  # type: ignore[arg-type]
        start = time.perf_counter()
        with self.measured_once(name):
            packed = tersor.compress(self.tested.model, self.statistics, bits=float(bits), tools=("transform",),
                                     effort=5, transform=transform)
        return figures(packed, self.tested) | {"seconds": round(time.perf_counter() - start, 1)}

    @contextmanager
    def measured_once(self, name: str) -> Iterator[None]:
        """Inside, `published.measure` gives the tables of this transform; layers measured before as they are."""
        original = published.measure

        def measure(plan: Any, model: nn.Module | None, progress: Any = None) -> published.Tables:
            if name not in self.kept:
                path = None if self.options.tables is None else self.options.tables / f"{name}.pkl"
                self.kept[name] = original(plan, model, print, known=Kept(path))
            found = self.kept[name]
            found.plan = plan
            return found

        encoder.measure = measure  # type: ignore[attr-defined]
        try:
            yield
        finally:
            encoder.measure = original  # type: ignore[attr-defined]


class Kept(dict[str, list[Table]]):
    """Tables of layers by name, each written to a file at once."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(pickle.loads(path.read_bytes()) if path is not None and path.exists() else {})
        self.path = path

    def __setitem__(self, name: str, tables: list[Table]) -> None:
        super().__setitem__(name, tables)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(pickle.dumps(dict(self)))


def figures(packed: Packed, tested: Subject) -> dict[str, Any]:
    """Of a file: its size, and what a network restored from it does on the test images."""
    torch.manual_seed(1)
    restored = tersor.restore(packed.data, CifarResNet(20)).eval()
    compared = tested.measure(restored)
    names = ("snr", "kl", "kl_error", "top1", "top1_change", "top1_change_error")
    return {"bytes": packed.size, "bits": packed.bits_per_weight, "calibration_snr": packed.snr,
            "notes": packed.notes, **{name: getattr(compared, name) for name in names}}  # fmt: skip


# ---- the page ----------------------------------------------------------------------------------------


def page(cases: dict[str, Case]) -> str:
    """docs/transform_rates.md."""
    lines = [INTRODUCTION, "| transform | coder | bits/weight | bytes | output SNR (dB) | KL | top-1 (%) | change |"]
    lines += ["|---" * 8 + "|"]
    for name in TRANSFORMS:
        for coder in CODERS:
            for point in points(cases, coder, name):
                shown = [name, coder, f"{point['bits']:.3f}", f"{point['bytes']:,}", f"{point['snr']:.2f}",
                         f"{point['kl']:.4f}", *accuracy_cells(point)]  # fmt: skip
                lines.append(f"| {' | '.join(shown)} |")
    lines += ["", "## Bits saved by the entropy-coded mode at equal output SNR", "", EQUAL]
    lines += ["| transform | fixed length | SNR (dB) | entropy-coded | saved |", "|---" * 5 + "|"]
    for name in TRANSFORMS:
        entropy = points(cases, "entropy", name)
        for point in points(cases, "fixed", name):
            bits, bound = bits_at(entropy, point["snr"])
            if math.isfinite(bits):
                saved = f"{100 * (1 - bits / point['bits']):.0f}%"
                shown = [name, f"{point['bits']:.3f}", f"{point['snr']:.2f}", f"{'< ' * bound}{bits:.2f}",
                         f"{'> ' * bound}{saved}"]  # fmt: skip
                lines.append(f"| {' | '.join(shown)} |")
    return "\n".join([*lines, "", "## Cost", "", *cost(cases), ""])


def points(cases: dict[str, Case], coder: str, name: str) -> list[Case]:
    """Of a coder and a transform, those that were measured, by rate."""
    found = [cases.get(f"{coder}:{name}:{bits:g}") for bits in sorted(BITS[coder])]
    return [point for point in found if point is not None]


INTRODUCTION = """# Transforms: fixed-length and entropy-coded

ResNet-20 (CIFAR-10), measured on 1,017 test images; encoded with 320 training images (D(R) on 32 of them). Sizes are
those of whole files: bases, steps, BatchNorm and names included. Nothing was retrained.

* "fixed": bit depths as published (`TransformConfig(coder="fixed")`): 8 blocks of coefficients and of basis vectors per
  layer, D(R) measured at the output, no entropy coding, no error feedback, BatchNorm left as it is.
* "entropy": `tools=("transform",)` at effort 5: one lambda, adaptive contexts, error feedback, BatchNorm
  re-fitted. So the two differ in more than their coder.

Under a DCT each of the nine frequencies has a bit depth of its own (of elt+dct2, in each of five groups of
channels). At fixed length and all three rates the DCT, which stores nothing, is 4.8 to 5.5 dB better than ELT, ELT 1 to
2 dB better than KLT, and all are better than no transform. ELT and DCT together are better than ELT alone and not than
the DCT alone: in layers of 16 to 64 channels the bases cost more than they bring. Before frequencies had depths of
their own the DCT was no better than no transform (1.4 dB at 2 bits instead of 10.7); what depths for each tap without a
DCT would bring was not measured. Entropy-coded, with error feedback, the DCT gains a little and ELT nothing on this
network. Seconds were measured on a busy machine. Written by `python benchmarks/transform_rates.py`.
"""

EQUAL = """Bits/weight of the entropy-coded file at the SNR of each fixed-length one: straight lines between measured
points. Where all entropy-coded files are better than the fixed-length one, a bound: the smallest of them.
"""


def bits_at(points: list[dict[str, Any]], snr: float) -> tuple[float, bool]:
    """Bits/weight at an output SNR by interpolation; below all points, the fewest bits, and True: an upper bound.

    nan above all points, and without any.
    """
    curve = sorted((point["snr"], point["bits"]) for point in points)
    if not curve or snr > curve[-1][0]:
        return math.nan, False
    if snr < curve[0][0]:
        return curve[0][1], True
    above = next(i for i, (level, _) in enumerate(curve) if level >= snr)
    (low, first), (high, second) = curve[max(above - 1, 0)], curve[above]
    return (second if high == low else first + (snr - low) / (high - low) * (second - first)), False


def cost(cases: dict[str, Case]) -> list[str]:
    """What the measurements of the published allocation took."""
    lines = []
    for name in TRANSFORMS:
        notes = [note for point in points(cases, "fixed", name) for note in point["notes"] if "runs of" in note]
        lines += [f"* {name}: {note}" for note in notes[:1]]
    return lines or ["Nothing measured."]


if __name__ == "__main__":
    main()
