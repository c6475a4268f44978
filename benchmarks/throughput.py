"""Seconds to encode without feedback, and from file to float32 arrays: `python benchmarks/throughput.py`.

The network is a ResNet-18 of 11.7 million parameters with made-up weights: per layer Gaussian or
Laplacian, with channels of different spread. All is scalar quantization of the same step rule. Speeds of different
codecs are measured in the same run, taking turns and best of several, in seconds of CPU time and of the clock; on a
busy machine only the former, and their *ratios*, mean something. The ceiling is a copy of as many floats into new
memory. Writes benchmarks/results/throughput.json.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import constriction
import nncodec_peer
import numpy as np
import peers
import torch
from common import RESULTS, Arrays, environment, write_json
from networks import ResNet18
from rich.console import Console
from rich.table import Table

import tersor

CEILING = "copy of float32"
NNCODEC = {"qp": -30, "use_dq": True, "nonweight_qp": -75, "opt_qp": False}  # 3.2 bits/weight


def made_up(seed: int = 0) -> ResNet18:
    """A ResNet-18 with heavy tails in every second layer and channels of unequal spread."""
    generator = np.random.default_rng(seed)
    model = ResNet18().eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            shape = tuple(parameter.shape)
            if len(shape) > 1:
                draw = generator.normal if number % 2 else generator.laplace
                spread = np.exp(generator.normal(0, 0.4, shape[0])) / math.sqrt(math.prod(shape[1:]))
                values = draw(0, 1, shape) * spread.reshape(-1, *[1] * (len(shape) - 1))
            else:
                values = generator.normal(1 if name.endswith("weight") else 0, 0.2, shape)
            parameter.copy_(torch.from_numpy(np.asarray(values, np.float32)))
    return model


class Clock:
    """Seconds of the process' CPU time and of the clock since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        return {"cpu_seconds": time.process_time() - self._cpu, "seconds": time.perf_counter() - self._wall}


def best_of(rounds: int, tasks: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Both times of the fastest of `rounds` runs of each task, each for itself; the tasks take turns."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, task in tasks.items():
            clock = Clock()
            kept = task()  # let go of after the clock was read
            times = clock.read()
            del kept
            best[name] = {key: min(value, best.get(name, times)[key]) for key, value in times.items()}
    return best


def constriction_file(tensors: Arrays, step: float) -> tuple[int, Callable[[], Arrays]]:
    """Round-to-nearest symbols coded by constriction's ANS coder, one categorical model per layer.

    Returns the bytes of its words (tables not counted) and a function that decodes and dequantises them.
    """
    layers = []
    for name, array in tensors.items():
        if peers.is_weight(array):
            width = float(array.std()) * step
            symbols = np.rint(array.ravel() / width).astype(np.int32)
            low = int(symbols.min())
            counts = np.bincount(symbols - low).astype(np.float64)
            model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
            coder = constriction.stream.stack.AnsCoder()
            coder.encode_reverse(symbols - low, model)
            layers.append((name, array.shape, coder.get_compressed(), model, low, width))

    def decode() -> Arrays:
        restored = {}
        for name, shape, words, model, low, width in layers:
            symbols = constriction.stream.stack.AnsCoder(words).decode(model, math.prod(shape))
            restored[name] = ((symbols + low) * np.float32(width)).reshape(shape)
        return restored

    return sum(words.nbytes for _, _, words, *_ in layers), decode


def decode_file(path: Path, threads: int) -> Arrays:
    """Every tensor of a .tersor file as an array in memory."""
    with tersor.load(path, threads=threads) as file:
        return {name: np.asarray(array) for name, array in file.read_all().items()}


def decode_into(path: Path, out: Arrays) -> None:
    """The same, into memory that is there already."""
    with tersor.load(path, threads=1) as file:
        file.read_into(out)


def decode_stream(path: Path) -> Arrays:
    """The same, from front to back without seeking."""
    with open(path, "rb") as file:
        return dict(tersor.stream(file, threads=1))


def with_simd(level: int, task: Callable[[], object]) -> Callable[[], object]:
    """`task` with at most these instructions: 0 portable, 1 AVX2."""

    def run() -> object:
        os.environ["TERSOR_SIMD"] = str(level)
        try:
            return task()
        finally:
            del os.environ["TERSOR_SIMD"]

    return run


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", type=float, default=3.0, help="bits/weight of the files that are decoded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "throughput.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = made_up()
    tensors = {
        name: tensor.numpy() for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    weights = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        rows = encode_rows(model, Path(folder), options.bits)
        rows += decode_rows(tensors, Path(folder), options.rounds)
    for row in rows:
        row["million_weights_per_second"] = round(weights / row["seconds"] / 1e6, 2)
        row["million_weights_per_cpu_second"] = round(weights / row["cpu_seconds"] / 1e6, 2)
        row["bits"] = round(8 * row["bytes"] / weights, 3)
    write_json(options.output, {"environment": environment(), "parameters": weights, "rows": rows})
    Console(width=None if Console().is_terminal else 120).print(table(rows, weights))


def encode_rows(model: ResNet18, folder: Path, bits: float) -> list[dict[str, Any]]:
    """Encode without statistics (hence without feedback) in both modes, leaving the files in `folder`."""
    rows = []
    for mode in ("fast", "small"):
        clock = Clock()
        packed = tersor.compress(model, None, bits=bits, mode=mode, tools=("scalar",), effort=3)
        packed.save(folder / f"{mode}.tersor")
        rows.append(
            {
                "what": "encode",
                "codec": f"tersor {mode}",
                "threads": 1,
                "bytes": (folder / f"{mode}.tersor").stat().st_size,
                **clock.read(),
            }
        )
    return rows


def decode_rows(tensors: Arrays, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Decode tersor's files and those of the peers, all in turns; NNCodec once, it takes seconds."""
    clock = Clock()
    int8 = peers.int8_zstd(tensors)
    rows = [
        {
            "what": "encode",
            "codec": int8.peer,
            "threads": 1,
            "bytes": int8.size,
            **clock.read(),
        }
    ]
    words, decode_words = constriction_file(tensors, 0.45)
    whole = {name: array for name, array in tensors.items() if array.ndim > 1}
    raw = sum(array.nbytes for array in whole.values())
    sizes = {CEILING: (1, raw), int8.peer: (1, int8.size), "constriction ANS, categorical per layer": (1, words)}
    tasks: dict[str, Callable[[], object]] = {
        CEILING: lambda: {name: array.copy() for name, array in whole.items()},
        int8.peer: lambda: peers.decode(int8.blob),
        "constriction ANS, categorical per layer": decode_words,
    }
    for mode in ("fast", "small"):
        path = folder / f"{mode}.tersor"
        for threads in sorted({1, os.cpu_count() or 1}):
            label = f"tersor {mode}, {threads} thread{'s' * (threads > 1)}"
            sizes[label] = threads, path.stat().st_size
            tasks[label] = lambda path=path, threads=threads: decode_file(path, threads)  # type: ignore[misc]
    path = folder / "fast.tersor"
    out = {name: np.array(array) for name, array in decode_file(path, 1).items()}
    more: dict[str, Callable[[], object]] = {
        "tersor fast, into given memory": lambda: decode_into(path, out),
        "tersor fast, as a stream": lambda: decode_stream(path),
        "tersor fast, AVX2 at most": with_simd(1, lambda: decode_file(path, 1)),
        "tersor fast, portable": with_simd(0, lambda: decode_file(path, 1)),
    }
    sizes |= dict.fromkeys(more, (1, path.stat().st_size))
    tasks |= more
    if nncodec_peer.version() is not None:
        clock = Clock()
        stream = nncodec_peer.encode(tensors, NNCODEC)
        encoding, clock = clock.read(), Clock()
        nncodec_peer.decode(stream, NNCODEC)
        rows += [
            {"what": what, "codec": "NNCodec", "threads": 1, "bytes": len(stream), **times}
            for what, times in (("encode", encoding), ("decode", clock.read()))
        ]
    for label, times in best_of(rounds, tasks).items():
        threads, size = sizes[label]
        rows.append({"what": "decode", "codec": label, "threads": threads, "bytes": size, **times})
    return rows


def table(rows: list[dict[str, Any]], weights: int) -> Table:
    """One row per measurement, each with its speed as a multiple of constriction's (decoding)."""
    found = Table(
        "",
        "codec",
        "bits/weight",
        "CPU s",
        "clock s",
        "Mweights/CPU s",
        "x constriction",
        title=f"{weights:,} parameters",
    )
    decode = {row["codec"]: row["cpu_seconds"] for row in rows if row["what"] == "decode"}
    slow = decode["constriction ANS, categorical per layer"]
    for row in rows:
        found.add_row(
            row["what"],
            row["codec"],
            f"{row['bits']:.2f}",
            f"{row['cpu_seconds']:.3f}",
            f"{row['seconds']:.3f}",
            f"{row['million_weights_per_cpu_second']:,.1f}",
            f"{slow / row['cpu_seconds']:.1f}" if row["what"] == "decode" else "",
        )
    if nncodec_peer.version() is None:
        found.add_row("", "NNCodec", nncodec_peer.NOT_INSTALLED)
    return found


if __name__ == "__main__":
    main()
