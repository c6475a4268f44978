"""A model of a billion parameters, encoded on one core: time, and memory beside what `tersor.footprint` said.

    python benchmarks/billion.py --folder /tmp/big [--millions 1000] [--modes fast small] [--effort 3] [--bits 3]

The weights are synthetic (Gaussian with row scales and rare large values, as trained layers have them), in the shapes
of a decoder-only transformer of width 2048, bfloat16. They are written in pieces, encoded in a process of its own (so
that its peak memory can be read), decoded tensor by tensor, compared, and deleted. Results: results/billion.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

WIDTH, WORDS = 2048, 50304
RESULTS = Path(__file__).parent / "results" / "billion.json"


def shapes(millions: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of about so many million weights: an embedding of at most a tenth, then blocks."""
    words = min(WORDS, millions * 10**6 // 10 // WIDTH)
    yield "embedding.weight", (words, WIDTH)
    left, block = millions * 10**6 - words * WIDTH, 0
    while left > 0:
        for part, shape in (("query", (WIDTH, WIDTH)), ("key", (WIDTH, WIDTH)), ("value", (WIDTH, WIDTH)),
                            ("out", (WIDTH, WIDTH)), ("up", (4 * WIDTH, WIDTH)), ("down", (WIDTH, 4 * WIDTH))):
            yield f"blocks.{block}.{part}.weight", shape
        left, block = left - 12 * WIDTH * WIDTH, block + 1


@functools.cache
def pool() -> np.ndarray:
    """float32 [2^24 + 511]: Gaussian, one in a thousand six times as large."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1 << 24) + 511, dtype=np.float32)
    values[rng.integers(0, values.size, values.size // 1000)] *= 6
    return values


def rows_of(name: str, first: int, count: int, columns: int) -> np.ndarray:
    """bfloat16 [count, columns], always the same: stretches of the pool, each row with a scale of its own."""
    rng = np.random.default_rng([*name.encode(), first])
    starts = rng.integers(0, pool().size - columns, count)
    scales = np.float32(0.02) * np.exp(0.3 * rng.standard_normal(count, dtype=np.float32))
    values = np.stack([pool()[start : start + columns] for start in starts]) * scales[:, None]
    return values.astype(ml_dtypes.bfloat16)


def generate(path: Path, millions: int) -> int:
    """Write the model; its number of weights."""
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes(millions):
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (rows, columns) in shapes(millions):
            for first in range(0, rows, 512):
                file.write(rows_of(name, first, min(512, rows - first), columns).tobytes())
    return offset // 2


def encode(path: Path, output: Path, bits: float, mode: str, effort: int, state: Path | None) -> dict[str, object]:
    """In this process: time in CPU seconds, memory in bytes."""
    import tersor
    expected = tersor.footprint(path, mode=mode, effort=effort)
    trials: list[str] = []
    pieces = output.with_suffix(f".{mode}.pieces")  # of runs that were interrupted
    earlier = json.loads(pieces.read_text()) if state is not None and pieces.exists() else {"seconds": 0.0, "peak": 0}

    def used() -> dict[str, float]:
        now = resource.getrusage(resource.RUSAGE_SELF)
        return {"seconds": earlier["seconds"] + now.ru_utime + now.ru_stime,
                "peak": max(earlier["peak"], now.ru_maxrss * 1024)}

    def say(text: str) -> None:
        trials.append(text)
        print(f"  {text}", flush=True)

    extra = {} if state is None else {"state": state}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        packed = tersor.compress(path, bits=bits, mode=mode, effort=effort, progress=say, **extra)
    finally:
        if state is not None:
            pieces.write_text(json.dumps(used()))
    total = used()
    packed.save(output)
    seconds = total["seconds"]
    counted = sum("size in bytes" in text for text in trials)
    return {"mode": mode, "effort": effort, "weights": packed.parameters, "bits_per_weight": packed.bits_per_weight,
            "bytes": packed.size, "trials": counted, "cpu_seconds": round(seconds, 1),
            "weights_per_cpu_second": round(packed.parameters * counted / seconds),
            "peak_bytes": int(total["peak"]), "planned_bytes": expected.memory,
            "file_bytes": os.path.getsize(path)}


def check(path: Path, output: Path, millions: int) -> float:
    """Relative squared error, tensor by tensor."""
    import tersor
    error = energy = 0.0
    with tersor.load(output) as file:
        for name, (rows, columns) in shapes(millions):
            restored = file[name]
            for first in range(0, rows, 512):
                original = rows_of(name, first, min(512, rows - first), columns).astype(np.float32)
                error += float(((restored[first : first + 512].astype(np.float32) - original) ** 2).sum())
                energy += float((original**2).sum())
    return error / energy


def main() -> None:
    """Generate, encode in a process of its own, check, delete."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--millions", type=int, default=1000)
    parser.add_argument("--modes", nargs="+", default=["fast", "small"])
    parser.add_argument("--effort", type=int, default=3)
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--resume", action="store_true", help="keep the model and a state, and go on from it")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    source = options.folder / f"model-{options.millions}.safetensors"
    output = options.folder / f"model-{options.millions}.tersor"
    if options.child:
        state = options.folder / f"state-{options.millions}-{options.child}" if options.resume else None
        found = encode(source, output, options.bits, options.child, options.effort, state)
        print(json.dumps(found))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        print(f"{generate(source, options.millions):,} weights written", flush=True)
    try:
        for mode in options.modes:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", mode]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            result["relative_error"] = check(source, output, options.millions)
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            same = ("mode", "effort", "weights")
            results = [other for other in results if [other[key] for key in same] != [result[key] for key in same]]
            RESULTS.write_text(json.dumps([*results, result], indent=1) + "\n")
            print(json.dumps(result), flush=True)
    finally:
        for path in (output, *(() if options.resume else (source,))):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
