"""The static entropy coder against the ideal code length and constriction, single-threaded, in one run.

    python benchmarks/entropy_coder.py [--symbols 4194304] [--repeat 7]

Sources are rounded Laplacians of about 1, 2, 3 and 4 bits. Both coders use the same integer model. `over` is
the whole payload (header, table, states, words) over the ideal: the empirical entropy of the symbols, and
the code length of the model (escape codes included). Speeds are the best of the repeats, in million symbols
per second; `float32` is decoding fused with the reconstruction: bytes in, scaled float32 rows out. Prints a
table, writes benchmarks/results/entropy_coder.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import constriction
import numpy as np

from tersor.bitstream import native, rans, rans_plan, rans_tables

RESULT = Path(__file__).parent / "results" / "entropy_coder.json"
SCALES = {1: 0.31, 2: 0.70, 3: 1.44, 4: 2.93}  # entropy in bits, about: scale of the Laplacian


def best(function: Callable[[], object], repeat: int) -> float:
    """Least seconds of `repeat` calls."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(scale: float, symbols: int, repeat: int) -> dict[str, float]:
    """One source: sizes in bits per symbol, speeds in million symbols per second."""
    q = np.round(np.random.default_rng(0).laplace(0, scale, (symbols // 4096, 4096))).astype(np.int32)
    plan = rans.plan([q])
    payload = rans.encode([q], plan)
    table = plan.tables[0]
    index = np.where((q < table.first) | (q >= table.first + table.size), table.size, q - table.first).ravel()
    counts = np.bincount(index, minlength=table.frequencies.size)
    used = counts > 0
    escapes = rans_tables.escape_bits(rans_plan.beyond(q, table), plan.order).sum()
    model = (float(counts[used] @ table.code_lengths()[used]) + int(escapes)) / q.size
    _, exact = np.unique(q, return_counts=True)
    entropy = float(exact @ (np.log2(q.size) - np.log2(exact))) / q.size
    bits = 8 * len(payload) / q.size
    result = {"symbols": q.size, "entropy": entropy, "bits": bits, "classes": len(plan.tables),
              "precision": plan.precision, "lanes": plan.lanes,
              "over_entropy_percent": 100 * (bits / entropy - 1),
              "over_model_percent": 100 * (bits / model - 1)}
    result |= speeds(q, plan, payload, repeat)
    result |= constriction_speeds(index, table.frequencies, repeat)
    result["decode_ratio"] = result["decode"] / result["constriction_decode"]
    result["decode_ratio_portable"] = result["decode_portable"] / result["constriction_decode"]
    result["encode_ratio"] = result["encode"] / result["constriction_encode"]
    result["bytes_over_constriction_percent"] = 100 * (len(payload) / result["constriction_bytes"] - 1)
    return result


def speeds(q: np.ndarray, plan: rans.Plan, payload: bytes, repeat: int) -> dict[str, float]:
    """Plan, encode, and decode to int32 and float32, by AVX2 where there is one and portable."""
    million = q.size / 1e6
    scales, out = [np.ones(q.shape[0], np.float32)], [np.empty(q.shape, np.float32)]
    (back,) = rans.decode(payload, [q.shape])
    if not np.array_equal(back, q):
        raise SystemExit("decoded integers differ from the encoded ones")
    result = {"plan": million / best(lambda: rans.plan([q]), 2),
              "encode": million / best(lambda: rans.encode([q], plan), 3)}
    for suffix, portable in (("", "0"), ("_portable", "1")):
        os.environ["TERSOR_PORTABLE"] = portable
        result["decode" + suffix] = million / best(lambda: rans.decode(payload, [q.shape]), repeat)
        result["decode_float32" + suffix] = million / best(
            lambda: rans.decode_float32(payload, [q.shape], scales, out), repeat)
    os.environ["TERSOR_PORTABLE"] = "0"
    return result


def constriction_speeds(index: np.ndarray, frequencies: np.ndarray, repeat: int) -> dict[str, float]:
    """constriction's ANS coder with a categorical model of the same frequencies."""
    used = frequencies > 0
    model = constriction.stream.model.Categorical(frequencies[used] / frequencies.sum(), perfect=False)
    symbols = (np.cumsum(used) - 1)[index].astype(np.int32)
    coder = constriction.stream.stack.AnsCoder()
    seconds = best(lambda: (coder.clear(), coder.encode_reverse(symbols, model)), 3)
    words = coder.get_compressed()
    back = constriction.stream.stack.AnsCoder(words).decode(model, symbols.size)
    if not np.array_equal(back, symbols):
        raise SystemExit("constriction decoded other symbols")
    decode = best(lambda: constriction.stream.stack.AnsCoder(words).decode(model, symbols.size), repeat)
    return {"constriction_bytes": 4 * words.size, "constriction_encode": symbols.size / 1e6 / seconds,
            "constriction_decode": symbols.size / 1e6 / decode}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=1 << 22)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    rows = {bits: measure(scale, options.symbols, options.repeat) for bits, scale in SCALES.items()}
    print("bits  over entropy  over model  decode  float32  portable  constriction  ratio (portable)  encode")
    for row in rows.values():
        print("{entropy:4.2f}  {over_entropy_percent:11.3f}%  {over_model_percent:9.3f}%  {decode:6.0f}  "
              "{decode_float32:7.0f}  {decode_float32_portable:8.0f}  {constriction_decode:12.0f}  "
              "{decode_ratio:5.1f} ({decode_ratio_portable:7.1f})  {encode:9.0f}".format(**row))
    machine = {"machine": platform.machine(), "avx2": native.simd_level() > 0,
               "python": platform.python_version(), "numpy": np.__version__}
    report = {"command": "python benchmarks/entropy_coder.py", "unit": "million symbols per second",
              "machine": machine, "sources": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
