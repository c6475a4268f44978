"""Layers in the transform domain against the dense layers: `python benchmarks/transform_runtime.py`.

Layers of ResNet-18 with made-up weights of rank k = n/8, n/4, n/2 (n input channels): a basis over input channels;
bases over input and output channels; a joint basis over input channels and taps. Each beside the dense layer with the
same restored weights, in one run, taking turns, best of several: the *ratios* hold on a busy machine too. Beside them
the ratios of multiply-accumulates, ours and as the paper counts them. Writes benchmarks/results/transform_runtime.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tersor.runtime import TransformConv2d, TransformLinear
from tersor.runtime.transform import paper_ratio
from tersor.synthesis.scalar import ScalarCode
from tersor.synthesis.transform import TransformCode, extents

RESULT = Path(__file__).parent / "results" / "transform_runtime.json"
LAYERS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "layer1 3x3": ((64, 64, 3, 3), 56, 1), "layer2 3x3": ((128, 128, 3, 3), 28, 1),
    "layer3.0 3x3, stride 2": ((256, 128, 3, 3), 28, 2), "layer3 3x3": ((256, 256, 3, 3), 14, 1),
    "layer4 3x3": ((512, 512, 3, 3), 7, 1), "layer4.0 1x1": ((512, 256, 1, 1), 14, 1), "fc": ((1000, 512), 1, 1)}
"""Shape of the weight, height and width of the input, stride."""


def made_up(shape: tuple[int, ...], form: str, k: int) -> TransformCode:
    """A transform of rank k with Gaussian coefficients and bases."""
    rng = np.random.default_rng(0)
    of = extents(shape, False)
    joint = form == "joint"
    views = of.matrices([k if form == "both" else None, k, None], joint)
    matrices = [ScalarCode(np.rint(rng.normal(0, 3, (view.rows, view.columns))).astype(np.int32), -160)
                for view in views]
    rows = matrices[0] if form == "both" else None
    return TransformCode(matrices[-1], rows=rows, channels=matrices[-2], joint=joint)


def layers(shape: tuple[int, ...], stride: int, code: TransformCode) -> tuple[
        nn.Module, TransformConv2d | TransformLinear]:
    """The dense layer with the restored weights, and the one in the transform domain."""
    dense: nn.Conv2d | nn.Linear
    if len(shape) == 2:
        dense = nn.Linear(shape[1], shape[0])
    else:
        dense = nn.Conv2d(shape[1], shape[0], shape[2], stride, padding=shape[2] // 2, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(np.array(code.tensor(shape))))
    made = TransformLinear(dense, code) if isinstance(dense, nn.Linear) else TransformConv2d(dense, code)
    made.eval()
    return dense.eval(), made


def seconds_of(tasks: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Of the fastest of `rounds` turns of each task."""
    best = [math.inf] * len(tasks)
    for _ in range(rounds):
        for i, task in enumerate(tasks):
            start = time.perf_counter()
            task()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(name: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of one layer."""
    shape, side, stride = LAYERS[name]
    m, n, taps = shape[0], shape[1], math.prod(shape[2:])
    size = (batch, n) if len(shape) == 2 else (batch, n, side, side)
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    made = []
    for form in ("channels", "both", "joint") if taps > 1 else ("channels", "both"):
        for k in (n // 8, n // 4, n // 2):
            dense, layer = layers(shape, stride, made_up(shape, form, k))
            macs = layer.macs() if isinstance(layer, TransformLinear) else layer.macs((side, side))
            error = float((layer(x) - dense(x)).abs().max() / dense(x).abs().max())
            made.append((form, k, layer, dense, macs, error))
    rows = []
    for form, k, layer, dense, macs, error in made:
        fast, slow = seconds_of([lambda: layer(x), lambda: dense(x)], rounds)  # noqa: B023 (called at once)
        paper = paper_ratio(n, m, *(shape[2:] or (1, 1)), k) if form == "channels" else None
        rows.append({"layer": name, "form": form, "rank": k, "inputs": n, "dense_ms": 1e3 * slow,
                     "transform_ms": 1e3 * fast, "time_ratio": fast / slow,
                     "macs_ratio": macs.transformed / macs.dense, "paper_macs_ratio": paper,
                     "memory_ratio": layer.memory_bytes() / (4 * m * n * taps), "relative_error": error})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with torch.inference_mode():
        for name in LAYERS:
            for row in measure(name, arguments.batch, arguments.rounds):
                rows.append(row)
                print(f"{name:24} {row['form']:9} rank {row['rank']:3} of {row['inputs']:3}: "
                      f"time x {row['time_ratio']:.2f}, operations x {row['macs_ratio']:.2f}, "
                      f"error {row['relative_error']:.0e}")
    about = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine(),
             "threads": arguments.threads, "batch": arguments.batch, "rounds": arguments.rounds}
    RESULT.write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
