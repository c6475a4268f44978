"""The rate-distortion frontier of tersor and its peers on five networks: `python benchmarks/frontier.py`.

    python benchmarks/frontier.py                        # everything: hours; -> results/frontier.json, docs/frontier.*
    python benchmarks/frontier.py resnet20 --parts curve peers
    python benchmarks/frontier.py --table                # only write the document, from the results as they are

Parts: `curve` (bytes and KL of tersor), `best` (the same at effort 9), `peers`, `nncodec`, `ablation` (what each tool
saves), `gap` (to the limit, layer by layer), `time`. Every case is kept in the JSON as soon as it is measured: an
interrupted run goes on where it stopped, and `--minutes` ends one early. `--fresh` measures again.

No training, no labels: tersor calibrates on training images. Every file is restored into a network of other weights;
KL, agreement and accuracy are those of the test images, SNR also that of training images that calibration has not seen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import common
import nncodec_peer
import peers
import torch
from frontier_ablation import ablation_cases
from frontier_networks import NAMES, TIMED, Network, network
from frontier_report import write_document

import tersor
from tersor import Statistics
from tersor.tools import ruler

RESULT = common.RESULTS / "frontier.json"
PARTS = ("curve", "peers", "nncodec", "gap", "ablation", "best", "time")
SIZES: dict[str, tuple[int, ...]] = {
    "resnet20": (100_000, 70_000, 54_000, 44_000, 36_000, 32_000, 50_000, 29_500),
    "resnet32": (90_000, 60_000, 115_000, 54_000, 80_000, 70_000),
    "resnet56": (108_000, 145_000, 82_000, 76_000, 185_000, 135_000, 126_000, 155_000),
    "lenet5": (18_000, 12_000, 8_000, 6_000, 4_500, 3_800, 3_100),
    "squeezenet1_1": (380_000, 330_000, 560_000, 460_000, 680_000),
}
"""Bytes that tersor is asked for, around the KL that codecs are compared at."""
BEST = {"resnet20": (54_000, 36_000), "lenet5": (8_000, 4_500)}
"""The same at effort 9."""
GAP_BITS = {"squeezenet1_1": (2.15, 3.0)}
"""Bits/weight at which the distance to the limit is measured; 2 for the others."""
FEW = 320
"""Calibration images of the ablation, which encodes many times."""
RANGE = (0.006, 0.3)
"""KL of the settings of NNCodec that are shown, where `nncodec_peer.py` has measured them."""
GRID = {"lenet5": tuple(range(-22, -14)), "squeezenet1_1": (-24, -28, -26, -30)}
"""qp of NNCodec for the other networks."""

Case = tuple[str, Callable[[], dict[str, Any]]]


@dataclass
class Bench:
    """A network, its statistics (when they are needed), and where they are kept."""

    network: Network
    cache: Path

    @cached_property
    def statistics(self) -> Statistics:
        """Of all calibration images."""
        return self.network.statistics(self.cache)[0]

    @cached_property
    def few(self) -> Statistics:
        """Of FEW calibration images."""
        return self.network.statistics(self.cache, FEW)[0]


def main() -> None:
    """Measure what is missing, then write the document."""
    options = arguments()
    torch.set_num_threads(options.threads)
    if not options.table:
        measure(options)
    if options.results == RESULT:
        write_document(common.read_json(RESULT))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no second case after so many minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="folder with cifar10/, imagenet/ and mnist/ (benchmarks/README.md)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "tersor-frontier",
                        help="folder for statistics")  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULT, help="JSON; for another one no document is written")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--table", action="store_true", help="only write the document again")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    """Every case that is not in the results yet."""
    start, measured = time.monotonic(), 0
    for name in options.networks:
        bench = Bench(network(name, common.data_folder(options.data)), options.cache)
        facts = {"parameters": bench.network.parameters, "fp32_bytes": bench.network.file_bytes,
                 "images": len(bench.network.labels), "calibration": len(bench.network.calibration),
                 "held_out": len(bench.network.held_out)}  # fmt: skip
        for part in options.parts:
            known = common.read_json(options.results).get("networks", {}).get(name, {}).get(part, {})
            for label, case in cases(part, bench):
                late = measured > 0 and time.monotonic() - start > 60 * options.minutes
                if late or (label in known and not options.fresh):
                    continue
                found = case()
                measured += 1
                keep(options.results, name, facts, part, label, found)
                print(name, part, label, line(found), flush=True)


def keep(path: Path, name: str, facts: dict[str, Any], part: str, label: str, found: dict[str, Any]) -> None:
    """Add a case to the results as they are now: another run may have added its own."""
    results = common.read_json(path)
    entry = results.setdefault("networks", {}).setdefault(name, {})
    entry |= facts
    entry.setdefault(part, {})[label] = found
    results["environment"] = common.environment()
    common.write_json(path, results)


def cases(part: str, bench: Bench) -> Iterator[Case]:
    """(label, what to do) of one part for one network."""
    name = bench.network.name
    if part in ("curve", "best"):
        effort = 9 if part == "best" else 7
        for size in (BEST if part == "best" else SIZES).get(name, ()):
            yield f"{size:,} bytes, effort {effort}", lambda size=size: point(bench, size, effort)  # type: ignore[misc]
    elif part == "peers":
        yield from peer_cases(bench.network)
    elif part == "nncodec":
        yield from nncodec_cases(bench.network)
    elif part == "ablation":
        yield from ablation_cases(bench.network, lambda: bench.few)
    elif part == "gap":
        for bits in GAP_BITS.get(name, (2.0,)):
            yield f"{bits:g} bits/weight", lambda bits=bits: gaps(bench, bits)  # type: ignore[misc]
    else:
        for mode in ("small", "fast"):
            yield mode, lambda mode=mode: seconds(bench, mode)  # type: ignore[misc]


def point(bench: Bench, size: int, effort: int) -> dict[str, Any]:
    """Compress to a size, save, restore the file, compare."""
    start = time.process_time()
    packed = tersor.compress(bench.network.model, bench.statistics, size=size, effort=effort)
    encoded = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.tersor"
        packed.save(path)
        restored = tersor.restore(path, into=bench.network.blank()).eval()
        size = path.stat().st_size
    return {"bytes": size, "calibration": len(bench.network.calibration),
            "held_out_snr": bench.network.held_out_snr(restored),
            "encode_cpu_seconds": round(encoded - start, 1), **bench.network.measure(restored).as_dict()}  # fmt: skip


def peer_cases(tested: Network) -> Iterator[Case]:
    """int8 + zstd, and round-to-nearest with an entropy code that costs no table."""

    def measured(coded: peers.Coded) -> dict[str, Any]:
        return {"peer": coded.peer, "bytes": coded.size, "ideal": coded.ideal,
                **tested.measure(coded.tensors).as_dict()}  # fmt: skip

    yield "int8", lambda: measured(peers.int8_zstd(tested.tensors))
    for step in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2):
        for per in ("channel", "layer"):
            yield f"RTN per {per}, step {step}", lambda step=step, per=per: measured(  # type: ignore[misc]
                peers.rtn_entropy(tested.tensors, step, per))  # fmt: skip


def nncodec_cases(tested: Network) -> Iterator[Case]:
    """The settings near the wanted KL, as `nncodec_peer.py` has measured them (96, on the same images); a grid for
    networks that it has not."""
    if nncodec_peer.version() is None:
        print("NNCodec is", nncodec_peer.NOT_INSTALLED, file=sys.stderr)
        return
    stored = common.read_json(nncodec_peer.CACHE).get(tested.key, {}).get("points", {})
    found = [{key: p[key] for key in ("qp", "use_dq", "nonweight_qp", "opt_qp")} for p in stored.values()
             if RANGE[0] < p["kl"] < RANGE[1]]  # fmt: skip
    grid = [{"qp": qp, "use_dq": dq, "nonweight_qp": -40, "opt_qp": opt}
            for qp in GRID.get(tested.name, ()) for dq in (True, False) for opt in (True, False)]  # fmt: skip
    for settings in found or grid:
        label = " ".join(f"{key}={value}" for key, value in settings.items())
        if label in stored:
            yield label, lambda label=label: stored[label]  # type: ignore[misc]
        else:
            yield label, lambda settings=settings: nncodec_peer.measure(tested, settings)  # type: ignore[misc]


def gaps(bench: Bench, bits: float) -> dict[str, Any]:
    """The ruler beside every layer of a file."""
    packed = tersor.compress(bench.network.model, bench.statistics, bits=bits)
    rows = tersor.rate_limits(packed.data, bench.network.model, bench.statistics)
    kl = bench.network.measure(tersor.restore(packed.data, into=bench.network.blank()).eval()).kl
    layers = [{"name": row.name, "weights": row.weights, "bits": row.bits, "shannon": row.shannon,
               "scalar": row.scalar, "exact": row.exact} for row in (*rows, ruler.overall(rows))]  # fmt: skip
    return {"bytes": packed.size, "kl": kl, "layers": layers}


def seconds(bench: Bench, mode: str) -> dict[str, Any]:
    """CPU seconds of calibration and encoding, and weights per second of decoding, at 3 bits/weight."""
    tested, clock = bench.network, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found, calibration = tested.statistics(Path(folder), TIMED if tested.images.shape[-1] > 64 else 320)
    start = time.process_time()
    packed = tersor.compress(tested.model, found, bits=3.0, mode=mode)
    encode, clock = time.process_time() - start, time.monotonic() - clock
    rates = []
    for _ in range(5):
        start = time.process_time()
        tersor.load(packed.data, threads=1).read_all()
        rates.append(tested.parameters / (time.process_time() - start))
    return {"calibrate_cpu_seconds": calibration, "encode_cpu_seconds": encode, "bytes": packed.size,
            "wall_seconds": round(clock, 1), "threads": torch.get_num_threads(),
            "decode_weights_per_second": max(rates)}  # fmt: skip


def line(case: dict[str, Any]) -> str:
    """The numbers of a case that tell how it goes."""
    return ", ".join(f"{key} {value:,.4g}" for key, value in case.items() if isinstance(value, int | float))[:160]


if __name__ == "__main__":
    main()
