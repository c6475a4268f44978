"""Output SNR and accuracy against real bits/weight of transforms, fixed-length as published and entropy-coded:
`python benchmarks/transform_rates.py [CASE ...]`.

A case is CODER:TRANSFORM, for example fixed:elt or entropy:identity; without any, all that are missing are run. Each
file of ResNet-20 is restored into another network of the same kind and measured on the test images; training images
alone are used to encode. Results of a case are kept in benchmarks/results/transform_rates.json, and the
table in docs/transform_rates.md is written from all that are there.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from common import RESULTS, ROOT, CifarResNet, Subject, data_folder, environment, read_json, subject, write_json
from torch import nn

import tersor
from tersor import published
from tersor.config import Config, TransformConfig, make_config
from tersor.packed import Packed

BITS = {"fixed": (3.0, 2.0, 4.0), "entropy": (3.0, 2.0, 4.0, 1.4, 1.0)}
CODERS = tuple(BITS)
TRANSFORMS = ("elt", "klt", "identity", "elt+dct2", "dct2")
CALIBRATION = 320
RESULT = RESULTS / "transform_rates.json"
PAGE = ROOT / "docs" / "transform_rates.md"


def main() -> None:
    """Run what is asked for, case by case; the file is written after each point."""
    everything = [f"{coder}:{name}" for name in TRANSFORMS for coder in CODERS]
    options = arguments(everything)
    torch.set_num_threads(options.threads)
    found = read_json(RESULT)
    found.setdefault("cases", {})
    if not options.page_only:
        tested = subject("resnet20", data_folder(options.data), CALIBRATION)
        found |= {"environment": environment(), "network": "resnet20", "images": len(tested.images)}
        statistics = tersor.calibrate(tested.model, tested.calibration.split(64))
        for case in options.cases or everything:
            run(case, tested, statistics, found, options)
    PAGE.write_text(page(found["cases"], everything))
    print(f"wrote {PAGE}")


def arguments(everything: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(everything))
    parser.add_argument("--bits", type=float, nargs="+", help="bits/weight of whole files")
    parser.add_argument("--data", help="folder with the networks and images; see benchmarks/README.md")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="also what has been measured")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results")
    options = parser.parse_args()
    unknown = set(options.cases) - set(everything)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    return options


def run(case: str, tested: Subject, statistics: tersor.Statistics, found: dict[str, Any],
        options: argparse.Namespace) -> None:  # fmt: skip
    """One coder and transform at all rates that are not there yet."""
    points = found["cases"].setdefault(case, {})
    coder, _, name = case.partition(":")
    wanted = [bits for bits in options.bits or BITS[coder] if options.again or f"{bits:g}" not in points]
    if not wanted:
        return
    config = Config(tools=("transform",), transform=TransformConfig(transforms=(name,), coder=coder))  # type: ignore[arg-type]
    with MeasuredOnce():
        for bits in wanted:
            start = time.perf_counter()
            packed = tersor.compress(tested.model, statistics, bits=bits, config=make_config(config, {}))
            seconds = time.perf_counter() - start
            points[f"{bits:g}"] = figures(packed, tested) | {"seconds": round(seconds, 1)}
            print(case, bits, points[f"{bits:g}"], flush=True)
            write_json(RESULT, found)


class MeasuredOnce:
    """The tables of a case serve all its rates: inside, `published.measure` measures once."""

    def __enter__(self) -> None:
        from tersor import encoder
        self.place, self.original = encoder, published.measure
        kept: list[published.Tables] = []

        def measure(plan: Any, model: nn.Module | None, progress: Callable[[str], None] | None = None) -> Any:
            if not kept:
                kept.append(self.original(plan, model, progress))
            return kept[0]

        encoder.measure = measure  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        self.place.measure = self.original  # type: ignore[assignment]


def figures(packed: Packed, tested: Subject) -> dict[str, Any]:
    """Of a file: its size, and what a network restored from it does on the test images."""
    torch.manual_seed(1)
    restored = tersor.restore(packed.data, CifarResNet(20)).eval()
    compared = tested.measure(restored)
    names = ("snr", "kl", "kl_error", "top1", "top1_change", "top1_change_error")
    return {"bytes": packed.size, "bits": packed.bits_per_weight, "calibration_snr": packed.snr,
            "notes": packed.notes, **{name: getattr(compared, name) for name in names}}  # fmt: skip


# ---- the page ----------------------------------------------------------------------------------------


def page(cases: dict[str, Any], everything: list[str]) -> str:
    """docs/transform_rates.md."""
    lines = [INTRODUCTION, "| transform | coder | bits/weight | bytes | output SNR (dB) | KL | top-1 (%) | change |"]
    lines += ["|---" * 8 + "|"]
    for case in everything:
        coder, _, name = case.partition(":")
        for _, point in sorted(cases.get(case, {}).items()):
            shown = [name, coder, f"{point['bits']:.3f}", f"{point['bytes']:,}", f"{point['snr']:.2f}",
                     f"{point['kl']:.4f}", f"{100 * point['top1']:.2f}",
                     f"{100 * point['top1_change']:+.2f} +- {100 * point['top1_change_error']:.2f}"]  # fmt: skip
            lines.append(f"| {' | '.join(shown)} |")
    lines += ["", "## Bits saved by the entropy-coded mode at equal output SNR", "", EQUAL]
    lines += ["| transform | fixed length | SNR (dB) | entropy-coded | saved |", "|---" * 5 + "|"]
    for name in TRANSFORMS:
        fixed, entropy = (list(cases.get(f"{coder}:{name}", {}).values()) for coder in CODERS)
        for point in sorted(fixed, key=lambda p: p["bits"]):
            bits, bound = bits_at(entropy, point["snr"])
            if math.isfinite(bits):
                saved = f"{100 * (1 - bits / point['bits']):.0f}%"
                shown = [name, f"{point['bits']:.3f}", f"{point['snr']:.2f}", f"{'< ' * bound}{bits:.2f}",
                         f"{'> ' * bound}{saved}"]  # fmt: skip
                lines.append(f"| {' | '.join(shown)} |")
    missing = [f"* {case} at {', '.join(f'{bits:g}' for bits in left)} bits/weight" for case in everything
               if (left := [bits for bits in sorted(BITS[case.partition(":")[0]])
                           if f"{bits:g}" not in cases.get(case, {})])]  # fmt: skip
    lines += ["", "## Cost", "", *cost(cases), "", "## Not measured yet", "", *(missing or ["Nothing."])]
    return "\n".join(lines) + "\n"


INTRODUCTION = """# Transforms: fixed-length and entropy-coded

ResNet-20 (CIFAR-10), measured on 1,017 test images; encoded with 320 training images (D(R) on 32 of them). Sizes are
those of whole files: bases, steps, BatchNorm and names included. Nothing was retrained.

* "fixed": bit depths as published (`TransformConfig(coder="fixed")`): 8 blocks of coefficients and of basis vectors per
  layer, D(R) measured at the output, no entropy coding, no error feedback, BatchNorm left as it is.
* "entropy": `tools=("transform",)` at effort 5: one lambda, adaptive contexts, error feedback, BatchNorm
  re-fitted. So the two differ in more than their coder.

Blocks in the container are of whole input channels: a DCT over the taps cannot have a depth for each frequency there,
and in fixed length does not show what it is worth. In output SNR at fixed length, ELT is better than
KLT, and both are better than no transform. Entropy-coded, with error feedback, ELT is not better than no transform on
this network. Seconds were measured on a busy machine. Written by `python benchmarks/transform_rates.py`.
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


def cost(cases: dict[str, Any]) -> list[str]:
    """What the measurements of the published allocation took."""
    lines = []
    for case, points in cases.items():
        notes = [note for point in points.values() for note in point["notes"] if "runs of the network" in note]
        lines += [f"* {case}: {note}" for note in notes[:1]]
    return lines or ["Nothing measured."]


if __name__ == "__main__":
    main()
