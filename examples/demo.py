"""What `make demo` runs: a trained network, three .tersor files, the same network back, a table, a picture, a report.

Calibrates on training images; restores each file in a *fresh process*, into a network of random weights,
and tests it there on images that were never used before. The int8 and round-to-nearest rows come from
benchmarks/peers.py.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_data import calibration_batches, test_split
from networks import DigitsNet, load
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tersor
from tersor import evaluate, report
from tersor.sweep import sweep

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "benchmarks"))
import peers  # noqa: E402  (benchmarks/ is no package)

NAME = "digits"
WEIGHTS = HERE / "digits.safetensors"
RATES = (3.0, 2.0, 1.3)
MORE_RATES = (4.0, 2.5, 1.6)  # for the picture only


@dataclass
class Row:
    """One line of the table; `ideal` sizes are code lengths, not files."""

    codec: str
    bytes: int
    result: evaluate.Comparison
    encode: float | None = None
    decode: float | None = None
    ideal: bool = False


def main() -> None:
    """The demo; with --restore, the fresh process that it starts for each file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "demo-out")
    parser.add_argument(
        "--restore", type=Path, metavar="FILE", help="restore FILE, test it, write its logits"
    )
    options = parser.parse_args()
    if options.restore is not None:
        restore(options.restore)
    else:
        demo(options.output)


def demo(output: Path) -> None:
    """Compress, restore elsewhere, compare, print, draw."""
    output.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if Console().is_terminal else 130)
    model = load(DigitsNet(), WEIGHTS)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    images, labels = test_split()
    reference = evaluate.logits(model, [images])
    start = time.perf_counter()
    stats = tersor.calibrate(model, calibration_batches())
    console.print(f"calibrated on 320 training images in {time.perf_counter() - start:.1f} s")

    ours = [compress(model, stats, bits, output, reference, labels) for bits in RATES]
    others = baselines(model, [row.bytes for row in ours], reference, labels)
    console.print(table(ours, others, parameters))
    more = [compress(model, stats, bits, output, reference, labels) for bits in MORE_RATES]
    picture = output / "rate_distortion.png"
    draw(picture, sorted(ours + more, key=lambda row: row.bytes), curve(model, reference, labels), parameters)
    sweep(model, stats, RATES, output / "sweep", batches=[(images, labels)], name=NAME)  # and baselines
    report.write([output / "sweep"], output / "report.html")
    console.print(f"files, {picture.name} and report.html are in {output}")


def compress(
    model: nn.Module, stats: Any, bits: float, folder: Path, reference: Tensor, labels: Tensor
) -> Row:
    """Write folder/digits-<bits>.tersor, restore and run it in a fresh process, compare its logits.

    Each rate is a point of one sweep, of which the report is made.
    """
    path = folder / f"digits-{bits:g}.tersor"
    document = sweep(model, stats, [bits], folder / "sweep", batches=[test_split()], name=NAME, peers=False)
    point = next(point for point in document["points"] if point["asked_bits"] == bits)
    shutil.copyfile(folder / "sweep" / point["file"], path)
    seconds = point["encode_seconds"]
    done = subprocess.run(
        [sys.executable, __file__, "--restore", str(path)], check=True, capture_output=True, text=True
    )
    logits = torch.from_numpy(np.load(path.with_suffix(".npy")))
    path.with_suffix(".npy").unlink()
    result = evaluate.compare(reference, logits, labels)
    return Row(
        f"tersor, {bits:g} bits/weight",
        path.stat().st_size,
        result,
        seconds,
        json.loads(done.stdout)["seconds"],
    )


def restore(path: Path) -> None:
    """In the fresh process: file -> network -> logits of the test images in a file; seconds on stdout."""
    blank = DigitsNet()
    start = time.perf_counter()
    model = tersor.restore(path, into=blank)
    seconds = time.perf_counter() - start
    np.save(path.with_suffix(".npy"), evaluate.logits(model, [test_split()[0]]).numpy())
    print(json.dumps({"seconds": seconds}))


def baselines(model: nn.Module, sizes: list[int], reference: Tensor, labels: Tensor) -> list[Row]:
    """int8 + zstd, and round-to-nearest with a perfect entropy coder at each of our sizes (in bytes)."""
    tensors = float_tensors(model)
    start = time.perf_counter()
    coded = peers.int8_zstd(tensors)
    middle = time.perf_counter()
    peers.decode(coded.blob)
    rows = [measured(coded, model, reference, labels, middle - start, time.perf_counter() - middle)]
    for size in sizes:
        coded = peers.at_bytes(partial(peers.rtn_entropy, tensors), size, low=0.01, high=30)
        rows.append(measured(coded, model, reference, labels))
    return rows


def curve(model: nn.Module, reference: Tensor, labels: Tensor) -> dict[str, list[Row]]:
    """The peers' rate-distortion curves for the picture."""
    tensors = float_tensors(model)
    steps = np.geomspace(0.1, 1.6, 13)
    coded = {
        "RTN per layer + zstd -19": [peers.rtn_zstd(tensors, float(step), "layer") for step in steps],
        "RTN per layer + ideal entropy": [peers.rtn_entropy(tensors, float(step)) for step in steps],
        "int8 per channel + zstd -19": [peers.int8_zstd(tensors)],
    }
    return {
        name: [measured(point, model, reference, labels) for point in points]
        for name, points in coded.items()
    }


def float_tensors(model: nn.Module) -> dict[str, np.ndarray]:
    """State dict without integer counters, as float32 arrays."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def measured(
    coded: peers.Coded,
    model: nn.Module,
    reference: Tensor,
    labels: Tensor,
    encode: float | None = None,
    decode: float | None = None,
) -> Row:
    """Put a peer's tensors into a new network and compare."""
    other = DigitsNet()
    other.load_state_dict(
        model.state_dict() | {name: torch.from_numpy(a.copy()) for name, a in coded.tensors.items()}
    )
    result = evaluate.compare(reference, evaluate.logits(other, [test_split()[0]]), labels)
    return Row(coded.peer, coded.size, result, encode, decode, coded.ideal)


def table(ours: list[Row], others: list[Row], parameters: int) -> Table:
    """Everything side by side: int8 first, then each rate followed by round-to-nearest of the same size."""
    original = WEIGHTS.stat().st_size
    found = Table(
        title=f"Digits network, {parameters:,} parameters, {original:,} bytes as .safetensors",
        caption="RTN: round to nearest. KL to the original in nats. Bytes in italics: an ideal code "
        "length, no file",
    )
    found.add_column("codec")
    for name in ("bytes", "bits/weight", "ratio", "top-1 before", "after", "KL", "encode s", "decode s"):
        found.add_column(name, justify="right")
    rows = [others[0]]
    for row, same_size in zip(ours, others[1:], strict=True):
        rows += [row, same_size]
    for row in rows:
        mark = "bold" if row.codec.startswith("tersor") else ""
        size = f"[italic]{row.bytes:,}[/]" if row.ideal else f"{row.bytes:,}"
        found.add_row(
            row.codec,
            size,
            f"{8 * row.bytes / parameters:.3f}",
            f"{original / row.bytes:.1f}",
            percent(row.result.top1_reference),
            percent(row.result.top1),
            f"{row.result.kl:.5f}",
            seconds(row.encode),
            seconds(row.decode),
            style=mark,
        )
    return found


def percent(share: float | None) -> str:
    """0.9962 -> 99.62%."""
    return "" if share is None else f"{share:.2%}"


def seconds(value: float | None) -> str:
    """Three significant digits, or nothing where nothing was timed."""
    return "" if value is None else f"{value:.3g}"


def draw(path: Path, ours: list[Row], others: dict[str, list[Row]], parameters: int) -> None:
    """KL and accuracy over bits/weight."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, rows in {"tersor": ours, **others}.items():
        style = {"marker": "o", "linewidth": 2.2 if name == "tersor" else 1.2, "markersize": 4, "label": name}
        bits = [8 * row.bytes / parameters for row in rows]
        left.plot(bits, [max(row.result.kl, 1e-7) for row in rows], **style)
        right.plot(bits, [100 * (row.result.top1 or math.nan) for row in rows], **style)
    left.set(yscale="log", ylabel="mean KL to the original network (nats)")
    right.set(ylabel="top-1 on 797 test images (%)")
    for axes in (left, right):
        axes.set(xlabel="bits/weight, everything in the file counted", xlim=(0, 9))
        axes.grid(alpha=0.3)
    right.axhline(
        100 * (ours[0].result.top1_reference or math.nan), color="grey", linewidth=0.8, linestyle="--"
    )
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
