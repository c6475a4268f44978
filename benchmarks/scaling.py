"""How encoding grows with the network: CPU seconds, memory and bytes/weight from 0.3 to 138 million parameters.

    python benchmarks/scaling.py [--networks resnet20 resnet18 ...] [--ways data-free static walk]

Synthetic weights in the shapes of real networks, images of noise; nothing about accuracy. Three ways: no statistics, no
feedback (effort 2), calibrated with error feedback (effort 3), and with the second walk (effort 5), each one
encoding at 3 bits/weight (one trial, the first) after a calibration of 16 images. Every network and way runs in a
process of its own, whose peak memory is read. Exponents are slopes of a line through logarithms. Results:
results/scaling.json; docs/scaling.md has the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "scaling.json"
IMAGES = 16
EFFORT = {"data-free": 2, "static": 3, "walk": 5}


class Block(nn.Module):
    """A residual block, of two 3 x 3 convolutions or with a bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        plan = [(inputs, width, 1), (width, width, 3), (width, outputs, 1)] if bottleneck else \
            [(inputs, width, 3), (width, width, 3)]
        strided = 1 if bottleneck else 0
        layers: list[nn.Module] = []
        for i, (n, m, taps) in enumerate(plan):
            layers += [nn.Conv2d(n, m, taps, stride if i == strided else 1, taps // 2, bias=False), nn.BatchNorm2d(m)]
            layers += [nn.ReLU()] if i + 1 < len(plan) else []
        self.body = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.short = nn.Identity() if same else \
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def residual(widths: list[int], counts: list[int], bottleneck: bool, classes: int, small: bool) -> nn.Module:
    """A ResNet; `small` for 32 x 32 images."""
    first = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(3, first, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False),
                               nn.BatchNorm2d(first), nn.ReLU(), nn.Identity() if small else nn.MaxPool2d(3, 2, 1)]
    inputs = first
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
        for i in range(count):
            layers.append(Block(inputs, width, 2 if stage and not i else 1, bottleneck))
            inputs = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def plain(widths: list[int | str], dense: list[int], side: int, taps: list[int]) -> nn.Module:
    """AlexNet and VGG: convolutions and pools ("M"), then dense layers on side x side maps."""
    layers: list[nn.Module] = []
    inputs, number = 3, 0
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        kernel = taps[min(number, len(taps) - 1)]
        layers += [nn.Conv2d(inputs, width, kernel, 4 if kernel == 11 else 1, kernel // 2), nn.ReLU()]
        inputs, number = width, number + 1
    layers += [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    inputs *= side * side
    for i, width in enumerate(dense):
        layers += [nn.Linear(inputs, width)] + ([nn.ReLU()] if i + 1 < len(dense) else [])
        inputs = width
    return nn.Sequential(*layers)


VGG: list[int | str] = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: residual([16, 32, 64], [3, 3, 3], False, 10, True), 32),
    "resnet56-wide": (lambda: residual([18, 36, 72], [9, 9, 9], False, 10, True), 32),
    "resnet18": (lambda: residual([64, 128, 256, 512], [2, 2, 2, 2], False, 1000, False), 64),
    "resnet50": (lambda: residual([64, 128, 256, 512], [3, 4, 6, 3], True, 1000, False), 64),
    "alexnet": (lambda: plain([64, "M", 192, "M", 384, 256, 256, "M"], [4096, 4096, 1000], 6, [11, 5, 3]), 128),
    "vgg16": (lambda: plain(VGG, [4096, 4096, 1000], 7, [3]), 64),
}


def used() -> float:
    """CPU seconds of this process."""
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime


def measure(name: str, way: str) -> dict[str, object]:
    """In this process."""
    from tersor.config import Config
    from tersor.encoder import footprint, inventory_of
    from tersor.job import Job
    from tersor.plan import Plan
    from tersor.sensitivity import calibrate
    torch.manual_seed(0)
    make, side = NETWORKS[name]
    model = make().eval()
    stats, began = None, used()
    if way != "data-free":
        images = torch.randn(IMAGES, 3, side, side)
        one = used()
        y = model(images)
        torch.autograd.grad(y.sum(), list(model.parameters()), allow_unused=True)
        plain_pass = used() - one
        began = used()
        stats = calibrate(model, images.split(8), keep=IMAGES)
    calibration = used() - began
    config = Config(tools=("scalar",), effort=EFFORT[way])
    began = used()
    inventory = inventory_of(model)
    job = Job(Plan(inventory, stats, config), model)
    trial = job.encode(job.first_guess(3.0))
    seconds = used() - began
    largest = max((max(layer.A.shape[-1], layer.G.shape[-1]) for layer in stats.layers.values()), default=0) \
        if stats else 0
    return {"network": name, "way": way, "parameters": inventory.parameters, "cpu_seconds": round(seconds, 2),
            "calibration_cpu_seconds": round(calibration, 2),
            "calibration_per_pass": round(calibration / plain_pass, 2) if stats else None,
            "bytes_per_weight": round(len(trial.written.data) / inventory.parameters, 4),
            "largest_side": largest, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "planned_bytes": footprint(model, stats, bits=3.0, config=config).memory}


def exponents(results: list[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Slopes of log quantity over log parameters, of networks of a million parameters and more."""
    found: dict[str, dict[str, float]] = {}
    for way in EFFORT:
        rows = [row for row in results if row["way"] == way and int(str(row["parameters"])) >= 900_000]
        if len(rows) < 3:
            continue
        keys = ("cpu_seconds", "peak_bytes", "calibration_cpu_seconds")[: 2 if way == "data-free" else 3]
        columns = {key: np.log([max(1e-3, float(str(row[key]))) for row in rows]) for key in ("parameters", *keys)}
        found[way] = {key: round(float(np.polyfit(columns["parameters"], columns[key], 1)[0]), 2) for key in keys}
    return found


def main() -> None:
    """All networks and ways that are asked for; those measured before stay."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--ways", nargs="+", choices=EFFORT, default=list(EFFORT))
    parser.add_argument("--missing", action="store_true", help="leave out what has been measured")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child)))
        return
    for name in options.networks:
        for way in options.ways:
            results = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
            if options.missing and any((row["network"], row["way"]) == (name, way) for row in results):
                continue
            done = subprocess.run([sys.executable, __file__, "--child", name, way], check=True, stdout=subprocess.PIPE)
            row = json.loads(done.stdout)
            results = [other for other in results if (other["network"], other["way"]) != (name, way)]
            results = sorted([*results, row], key=lambda row: (list(EFFORT).index(row["way"]), row["parameters"]))
            RESULTS.write_text(json.dumps({"rows": results, "exponents": exponents(results)}, indent=1) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
