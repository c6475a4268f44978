"""Decoding on a GPU beside the CPU: `python benchmarks/gpu_decode.py [--bits 3]`; needs Triton and a GPU.

Files in mode fast of made-up weights in the shapes of ResNet-18 (11.7 million) and VGG-16 (138 million parameters).
Both ways end with all tensors in the memory of the GPU, bit for bit the same: decoded there from the coded words, or on
the CPU, with all its cores, and copied. Seconds of the clock, best of several, after a first run that compiles the
kernels. Writes benchmarks/results/gpu_decode.json, and nothing where there is no GPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, environment, write_json
from scaling import NETWORKS
from throughput import made_up

import tersor
from tersor import gpu


def best_of(rounds: int, device: str, task: Callable[[], object]) -> float:
    """Seconds of the clock of the fastest run, the device's work included."""
    best, wait = float("inf"), torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        task()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def measure(path: Path, rounds: int, device: str) -> dict[str, object]:
    """One file."""
    with tersor.load(path) as file:
        host = {name: torch.empty(file[name].shape) for name in file if file.record(name).dtype == "F32"}
        file.forget()
        there = {name: tensor.to(device, copy=True) for name, tensor in host.items()}
        sections = gpu.read_into(file, there)
        file.read_into(host)
        assert all(torch.equal(there[name].cpu(), tensor) for name, tensor in host.items()), "other bits"

        def by_cpu() -> None:
            file.read_into(host)
            for name, tensor in host.items():
                there[name].copy_(tensor)

        return {"parameters": file.manifest.parameters, "bytes": path.stat().st_size,
                "sections_by_kernels": len(sections),
                "gpu_seconds": best_of(rounds, device, lambda: gpu.read_into(file, there)),
                "cpu_seconds": best_of(rounds, device, by_cpu)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available() or not gpu.decodes_on("cuda"):
        print("no GPU, or no Triton: nothing was measured")
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("resnet18", made_up()), ("vgg16", NETWORKS["vgg16"][0]())):
            path = Path(folder) / f"{name}.tersor"
            tersor.compress(model, None, bits=options.bits, mode="fast", tools=("scalar",), effort=3).save(path)
            rows.append({"network": name, **measure(path, options.rounds, "cuda")})
            print(rows[-1], flush=True)
    write_json(RESULTS / "gpu_decode.json",
               {"environment": environment(), "gpu": torch.cuda.get_device_name(), "rows": rows})


if __name__ == "__main__":
    main()
