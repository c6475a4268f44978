"""From nothing to a compressed file: what installing takes, and what the first command takes.

    python benchmarks/first_success.py [--install] [--threads 1 2]

`tersor compress` without data, at the default effort and 4 bits/weight, on synthetic weights in the shapes of a
ResNet-18 (11.7 million, Laplacian, with scales by channel and correlated taps, as trained ones have them). With
--install: a fresh copy of this checkout, a fresh environment, `pip install` of PyTorch and tersor. Seconds of processor
time and of the clock, in benchmarks/results/first_success.json; docs/scaling.md tells them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, environment
from safetensors.numpy import save_file
from scaling import NETWORKS

TORCH = "torch==2.13.0"
BITS = 4.0


def main() -> None:
    """Measure what was asked for, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--install", action="store_true", help="also time an installation from nothing")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    path = RESULTS / "first_success.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found["environment"] = environment()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "resnet18.safetensors"
        save_file(synthetic(), weights)
        python = sys.executable
        if options.install:
            python = installed(Path(folder), found)
        sizes = set()
        for threads in options.threads:
            out = Path(folder) / "out.tersor"
            found[f"compress, {threads} threads"] = timed(
                [python, "-m", "tersor", "compress", str(weights), "-o", str(out), "-f", "--bits", str(BITS),
                 "-j", str(threads)])
            sizes.add(out.read_bytes())
        found["file"] = {"input_bytes": weights.stat().st_size, "bytes": len(next(iter(sizes))),
                         "same_from_all_threads": len(sizes) == 1}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def installed(folder: Path, found: dict[str, Any]) -> str:
    """The interpreter of a new environment with tersor in it."""
    copy = folder / "tersor"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    python = str(copy / ".venv" / "bin" / "python")
    found["environment made"] = timed([sys.executable, "-m", "venv", str(copy / ".venv")])
    found["pip install torch"] = timed([python, "-m", "pip", "install", "--quiet", TORCH])
    found["pip install tersor"] = timed([python, "-m", "pip", "install", "--quiet", f"{copy}[torch]"])
    return python


def timed(command: Sequence[str]) -> dict[str, float]:
    """Seconds of a command and its children; run outside the checkout, with PYTHONPATH in this environment only."""
    own = sys.executable == command[0]
    variables = {key: value for key, value in os.environ.items() if own or key != "PYTHONPATH"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=variables, cwd=tempfile.gettempdir())
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
            "wall_seconds": round(wall, 1)}


def synthetic() -> dict[str, np.ndarray]:
    """A state dict of float32 arrays."""
    rng = np.random.default_rng(0)
    found = {}
    for name, tensor in NETWORKS["resnet18"][0]().state_dict().items():
        shape = tuple(tensor.shape)
        if len(shape) < 2:
            found[name] = tensor.numpy()
            continue
        w = rng.laplace(size=shape)
        if len(shape) == 4 and shape[2] > 1:
            place = np.stack(np.meshgrid(range(shape[2]), range(shape[3])), -1).reshape(-1, 2)
            distance = np.abs(place[:, None] - place[None]).sum(-1)
            w = (w.reshape(-1, len(place)) @ np.linalg.cholesky(0.5**distance).T).reshape(shape)
        for axis in (0, 1):
            w *= np.exp(0.4 * rng.normal(size=[n if i == axis else 1 for i, n in enumerate(shape)]))
        found[name] = (w * np.sqrt(2 / np.prod(shape[1:])) / w.std()).astype(np.float32)
    return found


if __name__ == "__main__":
    main()
