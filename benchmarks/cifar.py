"""Rate-distortion of tersor and its peers on CIFAR-10 ResNets: `python benchmarks/cifar.py`.

Calibrates on training images, compresses at several rates, restores each *file* into a network of random
weights, and measures on the test images. Sizes are those of files. Writes benchmarks/results/cifar.json
and prints tables; the last one holds the figures that the project asks of itself.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import nncodec_peer
import peers
import torch
from common import (
    RESULTS,
    Subject,
    bytes_at,
    data_folder,
    environment,
    subject,
    write_json,
)
from rich.console import Console
from rich.table import Table
from torch import nn

import tersor

BITS = (4.0, 3.5, 3.0, 2.7, 2.4, 2.2, 2.0, 1.8, 1.6, 1.3)
NAMES = ("resnet20", "resnet32", "resnet56")
LEVELS = (0.01, 0.03, 0.1)  # of KL, for "bytes at equal KL"
console = Console(width=None if Console().is_terminal else 160)


def main() -> None:
    """Run everything that the options ask for."""
    options = arguments()
    torch.set_num_threads(options.threads)
    data = data_folder(options.data)
    chosen = {name: getattr(options, name) for name in ("bits", "calibration", "effort", "threads", "fresh")}
    results: dict[str, Any] = {"environment": environment(), "options": chosen, "networks": {}}
    for name in options.networks:
        tested = subject(name, data, options.calibration)
        entry = run(tested, options)
        results["networks"][name] = entry
        console.print(rate_table(name, entry), peer_table(name, entry))
    console.print(goal_table(results["networks"]))
    path = Path(options.output)
    write_json(path, results)
    console.print(f"wrote {path}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--bits", type=float, nargs="+", default=list(BITS), help="bits/weight, all in")
    parser.add_argument("--calibration", type=int, default=320, help="training images to calibrate on")
    parser.add_argument("--effort", type=int, help="1..9; tersor's default if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="folder with cifar10/ (benchmarks/README.md)")
    parser.add_argument("--no-peers", action="store_true", help="measure tersor only")
    parser.add_argument(
        "--fresh", action="store_true", help="measure NNCodec again instead of reading its results"
    )
    parser.add_argument("--output", default=str(RESULTS / "cifar.json"))
    return parser.parse_args()


def run(tested: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one network."""
    start = time.perf_counter()
    stats = tersor.calibrate(tested.model, tested.calibration.split(80))
    calibrate_seconds = time.perf_counter() - start
    extra = {} if options.effort is None else {"effort": options.effort}
    points = [measure(tested, stats, bits, extra) for bits in options.bits]
    entry: dict[str, Any] = {
        "parameters": tested.parameters,
        "fp32_bytes": tested.file_bytes,
        "fp32_top1": points[0]["top1_reference"] if points else None,
        "images": len(tested.labels),
        "calibrate_seconds": round(calibrate_seconds, 2),
        "tersor": points,
    }
    if not options.no_peers:
        entry["peers"] = simple_peers(tested)
        entry["nncodec"] = {
            "installed": nncodec_peer.version(),
            "points": nncodec_peer.curve(tested, fresh=options.fresh),
        }
    entry["bytes_at_kl"] = {str(kl): at_equal_kl(entry, kl) for kl in LEVELS}
    return entry


def measure(tested: Subject, stats: Any, bits: float, extra: dict[str, Any]) -> dict[str, Any]:
    """Compress, save, restore the file into a network of random weights, evaluate."""
    start = time.perf_counter()
    packed = tersor.compress(tested.model, stats, bits=bits, **extra)
    encoded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.tersor"
        packed.save(path)
        size = path.stat().st_size
        blank = randomised(tested.model)
        decoding = time.perf_counter()
        restored = tersor.restore(path, into=blank)
        decoded = time.perf_counter()
    report = packed.report()
    return {
        "asked_bits": bits,
        "bytes": size,
        "bits": 8 * size / tested.parameters,
        "ratio": tested.file_bytes / size,
        "overhead_share": (report["side_bytes"] + report["header_bytes"]) / report["total_bytes"],
        "report": {
            name: report[name] for name in ("payload_bytes", "side_bytes", "header_bytes", "total_bytes")
        },
        "encode_seconds": round(encoded - start, 3),
        "decode_seconds": round(decoded - decoding, 4),
        **tested.measure(restored).as_dict(),
    }


def randomised(model: nn.Module) -> nn.Module:
    """A copy in which nothing is left of the trained network: every float is noise."""
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*blank.parameters(), *blank.buffers()):
            if tensor.is_floating_point():
                tensor.normal_()
    return blank


def simple_peers(tested: Subject) -> list[dict[str, Any]]:
    """Every point of the curves of peers.py, measured."""
    rows = []
    for coded in peers.curves(tested.tensors):
        result = tested.measure(coded.tensors)
        rows.append(
            {
                "peer": coded.peer,
                "setting": coded.setting,
                "ideal": coded.ideal,
                "bytes": coded.size,
                "kl": result.kl,
                "top1": result.top1,
                "agreement": result.agreement,
                "snr": result.snr,
            }
        )
    return rows


def at_equal_kl(entry: dict[str, Any], kl: float) -> dict[str, float | None]:
    """Interpolated bytes of every codec at one KL; None where its curve does not reach."""
    found = {"tersor": bytes_at(((point["bytes"], point["kl"]) for point in entry["tersor"]), kl)}
    if "nncodec" in entry:
        points = entry["nncodec"]["points"]
        found["NNCodec, best setting"] = nncodec_peer.best_bytes(points, kl)
        found["NNCodec, default"] = nncodec_peer.best_bytes(
            points, kl, use_dq=True, nonweight_qp=-75, opt_qp=False
        )
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for point in entry.get("peers", ()):
        curves[point["peer"]].append((point["bytes"], point["kl"]))
    for peer, points in curves.items():
        if len(points) > 1:
            found[peer] = bytes_at(points, kl)
    return found


def rate_table(name: str, entry: dict[str, Any]) -> Table:
    """tersor's points, one per row, and int8 + zstd for comparison."""
    title = (
        f"{name}: {entry['parameters']:,} parameters, fp32 {entry['fp32_bytes']:,} bytes, "
        f"calibrated in {entry['calibrate_seconds']} s"
    )
    columns = (
        "",
        "bytes",
        "bits/weight",
        "ratio",
        "top-1 %",
        "change ± s.e.",
        "KL",
        "SNR dB",
        "agree %",
        "overhead %",
        "encode s",
        "decode s",
    )
    table = Table(*columns, title=title)
    for point in entry["tersor"]:
        table.add_row(
            f"tersor {point['asked_bits']:g}",
            f"{point['bytes']:,}",
            f"{point['bits']:.3f}",
            f"{point['ratio']:.1f}",
            f"{100 * point['top1']:.2f}",
            f"{100 * point['top1_change']:+.2f} ± {100 * point['top1_change_error']:.2f}",
            f"{point['kl']:.4f} ± {point['kl_error']:.4f}",
            f"{point['snr']:.1f}",
            f"{100 * point['agreement']:.1f}",
            f"{100 * point['overhead_share']:.1f}",
            f"{point['encode_seconds']:.1f}",
            f"{point['decode_seconds']:.3f}",
        )
    for point in entry.get("peers", ())[:1]:
        change = 100 * (point["top1"] - entry["fp32_top1"])
        table.add_row(
            point["peer"],
            f"{point['bytes']:,}",
            f"{8 * point['bytes'] / entry['parameters']:.3f}",
            f"{entry['fp32_bytes'] / point['bytes']:.1f}",
            f"{100 * point['top1']:.2f}",
            f"{change:+.2f}",
            f"{point['kl']:.4f}",
            f"{point['snr']:.1f}",
            f"{100 * point['agreement']:.1f}",
        )
    return table


def peer_table(name: str, entry: dict[str, Any]) -> Table:
    """Bytes at equal KL, and how many times tersor's bytes that is."""
    table = Table("codec", *(f"KL {kl}" for kl in LEVELS), title=f"{name}: bytes at equal KL (interpolated)")
    for codec in entry["bytes_at_kl"][str(LEVELS[0])]:
        cells = []
        for kl in LEVELS:
            size, ours = (entry["bytes_at_kl"][str(kl)][who] for who in (codec, "tersor"))
            if size is None:
                cells.append("out of its range")
            else:
                cells.append(
                    f"{size:,.0f}" + (f"  ({ours / size:.2f}x)" if ours and codec != "tersor" else "")
                )
        table.add_row(codec, *cells)
    if "nncodec" in entry and entry["nncodec"]["installed"] is None:
        kept = len(entry["nncodec"]["points"])
        table.add_row("NNCodec", f"{nncodec_peer.NOT_INSTALLED}; {kept} points from its results file")
    table.caption = "in brackets: tersor's bytes / the peer's"
    return table


def goal_table(networks: dict[str, dict[str, Any]]) -> Table:
    """What was asked, what was measured, met or not."""
    table = Table("network", "figure", "asked", "measured", "", title="Figures asked for")
    for name, entry in networks.items():
        for figure, asked, measured in goals(name, entry):
            met = "met" if measured <= asked else "MISSED"
            table.add_row(name, figure, f"at most {asked:g}", f"{measured:.4g}", met)
    return table


def goals(name: str, entry: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(figure, upper bound, measured) for every figure that the measured rates allow to judge."""
    rates = {point["asked_bits"]: point for point in entry["tersor"]}
    found = []
    if 3.0 in rates:
        found += [
            ("points of top-1 lost at 3.0 bits/weight", 0.5, -100 * rates[3.0]["top1_change"]),
            ("KL at 3.0 bits/weight", 0.012, rates[3.0]["kl"]),
        ]
    found += [
        (f"KL at {bits} bits/weight", bound, rates[bits]["kl"])
        for bits, bound in ((2.4, 0.03), (1.6, 0.12))
        if bits in rates
    ]
    if 2.0 in rates and name == "resnet20":
        found.append(
            ("side information and header, % at 2.0 bits/weight", 4, 100 * rates[2.0]["overhead_share"])
        )
    sizes = entry["bytes_at_kl"]["0.03"]
    if sizes["tersor"] and sizes.get("NNCodec, best setting"):
        found.append(
            ("bytes / NNCodec's best at KL 0.03", 0.65, sizes["tersor"] / sizes["NNCodec, best setting"])
        )
    return found


if __name__ == "__main__":
    main()
