"""The nearest peer: NNCodec 2.1.3 (Fraunhofer HHI), an implementation of the NNC standard ISO/IEC 15938-17.

`python benchmarks/nncodec_peer.py` measures its curve on the CIFAR networks and keeps every point in
benchmarks/results/nncodec.json, under a hash of network and images: a second run costs nothing, `--fresh`
measures again. How to install it (the ordinary way would replace torch): benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from common import (
    RESULTS,
    Arrays,
    Subject,
    bytes_at,
    data_folder,
    environment,
    read_json,
    subject,
    write_json,
)

CACHE = RESULTS / "nncodec.json"
NOT_INSTALLED = "not installed: see benchmarks/README.md"
QP = tuple(range(-38, -15, 2))

# What its data-set helpers and training loops import; encode and decode never call it.
UNUSED = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.transforms",
    "torchmetrics",
    "cv2",
    "ptflops",
    "tensorflow",
    "h5py",
    "pandas",
    "tqdm",
    "wandb",
    "flwr",
)


def version() -> str | None:
    """The installed version of NNCodec, or None."""
    try:
        return metadata.version("nncodec")
    except metadata.PackageNotFoundError:
        return None


@cache
def _module() -> Any:
    """`nncodec.nn`, imported with stand-ins for the modules in UNUSED (removed again afterwards)."""
    absent = [name for name in UNUSED if name not in sys.modules]
    for name in absent:
        sys.modules[name] = MagicMock(name=name, __spec__=ModuleSpec(name, None))
    try:
        return importlib.import_module("nncodec.nn")
    finally:
        for name in absent:
            del sys.modules[name]


def encode(tensors: Arrays, settings: dict[str, Any]) -> bytes:
    """Compress float32 tensors to one NNC bitstream; `settings` as in `all_settings`."""
    with tempfile.TemporaryDirectory() as folder:
        return bytes(_module().encode(dict(tensors), {"results": folder, "verbose": False, **settings}))


def decode(stream: bytes, settings: dict[str, Any]) -> Arrays:
    """The tensors of an NNC bitstream."""
    return {name: np.asarray(array) for name, array in _module().decode(bytearray(stream), settings).items()}


def all_settings() -> Iterator[dict[str, Any]]:
    """Everything that "best setting" searches: 96 settings, of which qp sets the rate."""
    for dq, nonweight, opt, qp in itertools.product((True, False), (-75, -40), (False, True), QP):
        yield {"qp": qp, "use_dq": dq, "nonweight_qp": nonweight, "opt_qp": opt}


def curve(subject: Subject, *, fresh: bool = False, verbose: bool = False) -> list[dict[str, Any]]:
    """Measure (or read) all settings: dicts of setting, bytes, kl, kl_error, top1, snr, agreement, seconds.

    Stored after every point, so an interrupted run goes on where it stopped. Points that are neither
    stored nor measurable, because NNCodec is not installed, are left out.
    """
    stored = read_json(CACHE)
    entry = stored.get(subject.key, {})
    points: dict[str, dict[str, Any]] = {} if fresh else dict(entry.get("points", {}))
    for settings in all_settings():
        label = " ".join(f"{name}={value}" for name, value in settings.items())
        if label in points or version() is None:
            continue
        points[label] = measure(subject, settings)
        if verbose:
            print(
                f"{subject.name} {label}: {points[label]['bytes']:,} bytes, KL {points[label]['kl']:.4f}",
                flush=True,
            )
        stored[subject.key] = {
            "network": subject.name,
            "version": version(),
            "environment": environment(),
            "points": points,
        }
        write_json(CACHE, stored)
    return list(points.values())


def measure(subject: Subject, settings: dict[str, Any]) -> dict[str, Any]:
    """One point: encode, decode, compare on the test images."""
    start = time.perf_counter()
    stream = encode(subject.tensors, settings)
    encoded = time.perf_counter()
    restored = decode(stream, settings)
    decoded = time.perf_counter()
    result = subject.measure(restored)
    return {
        **settings,
        "bytes": len(stream),
        "kl": result.kl,
        "kl_error": result.kl_error,
        "top1": result.top1,
        "snr": result.snr,
        "agreement": result.agreement,
        "encode_seconds": round(encoded - start, 3),
        "decode_seconds": round(decoded - encoded, 3),
    }


def best_bytes(points: list[dict[str, Any]], kl: float, **only: Any) -> float | None:
    """Lowest bytes at `kl` over all settings (or those that agree with `only`), one curve over qp each.

    Points of different settings are not mixed in one interpolation: between settings there is nothing.
    """
    curves: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for point in points:
        if all(point[name] == value for name, value in only.items()):
            setting = point["use_dq"], point["nonweight_qp"], point["opt_qp"]
            curves.setdefault(setting, []).append((point["bytes"], point["kl"]))
    found = [size for line in curves.values() if (size := bytes_at(line, kl)) is not None]
    return min(found, default=None)


def main() -> None:
    """Measure the curves of the CIFAR networks and print bytes at equal KL."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet20", "resnet32", "resnet56"])
    parser.add_argument("--data", help="folder with cifar10/ (benchmarks/README.md)")
    parser.add_argument("--fresh", action="store_true", help="measure again what is stored already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if version() is None:
        print(f"NNCodec {NOT_INSTALLED}; showing stored points only")
    for name in options.networks:
        points = curve(subject(name, data_folder(options.data)), fresh=options.fresh, verbose=True)
        for kl in (0.01, 0.03, 0.05, 0.1):
            default = best_bytes(points, kl, use_dq=True, nonweight_qp=-75, opt_qp=False)
            best = best_bytes(points, kl)
            print(f"{name}: bytes at KL {kl}: default {_number(default)}, best setting {_number(best)}")


def _number(value: float | None) -> str:
    return "out of its range" if value is None else f"{value:,.0f}"


if __name__ == "__main__":
    main()
