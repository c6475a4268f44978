"""What the benchmarks share: the networks and images, one ruler for all codecs, curves, and JSON results.

The data folder (`--data`, or the environment variable TERSOR_DATA, or ../shared/data beside the checkout)
holds cifar10/resnet{20,32,56}.safetensors, cifar10/train.npz and cifar10/test.npz; benchmarks/README.md
describes them.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path[:0] = [str(ROOT / "examples")]

from networks import CifarResNet, load  # noqa: E402  (examples/ is no package)

from tersor import evaluate  # noqa: E402

Arrays = dict[str, np.ndarray]


def data_folder(chosen: str | None = None) -> Path:
    """The folder with the networks and images; exits with a hint when it is not there."""
    folder = Path(chosen or os.environ.get("TERSOR_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "cifar10").is_dir():
        sys.exit(f"{folder} has no cifar10 folder: see benchmarks/README.md, then give --data or TERSOR_DATA")
    return folder


@dataclass
class Subject:
    """A trained CIFAR-10 network with its calibration and evaluation images (kept apart)."""

    name: str
    model: nn.Module
    calibration: Tensor  # float32 [N, 3, 32, 32], training images
    images: Tensor  # float32 [N, 3, 32, 32], test images
    labels: Tensor  # int64 [N]
    file_bytes: int

    @cached_property
    def reference(self) -> Tensor:
        """Logits of the fp32 network on the test images, float32 [N, 10]."""
        return evaluate.logits(self.model, self.images.split(128))

    @cached_property
    def parameters(self) -> int:
        """The denominator of bits/weight: number of elements of all parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def tensors(self) -> Arrays:
        """All floating-point tensors (float32); `num_batches_tracked` is left out, to the peers' benefit."""
        state = self.model.state_dict()
        return {name: tensor.numpy().copy() for name, tensor in state.items() if tensor.is_floating_point()}

    @cached_property
    def key(self) -> str:
        """A hash of the weights and the test images: results cached under it stay valid for it only."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        for name, array in sorted(self.tensors.items()):
            digest.update(f"{name} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def measure(self, restored: nn.Module | Mapping[str, np.ndarray]) -> evaluate.Comparison:
        """Compare a restored network, or the same network with `restored` tensors, on the test images."""
        model = restored
        if not isinstance(model, nn.Module):
            model = copy.deepcopy(self.model)
            state = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in restored.items()}
            unknown = model.load_state_dict(state, strict=False).unexpected_keys
            missing = self.tensors.keys() - state.keys()
            if unknown or missing:
                raise KeyError(f"{self.name}: unknown tensors {unknown}, missing tensors {sorted(missing)}")
        return evaluate.compare(self.reference, evaluate.logits(model, self.images.split(128)), self.labels)


def normalised(images: np.ndarray) -> Tensor:
    """uint8 [N, 32, 32, 3] -> float32 [N, 3, 32, 32] with the networks' mean and standard deviation."""
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def subject(name: str, data: Path, calibration: int = 320) -> Subject:
    """Load "resnet20", "resnet32" or "resnet56" with the first `calibration` training images."""
    folder = data / "cifar10"
    weights = folder / f"{name}.safetensors"
    model = load(CifarResNet(int(name.removeprefix("resnet"))), weights)
    with np.load(folder / "train.npz") as train, np.load(folder / "test.npz") as test:
        return Subject(
            name,
            model,
            calibration=normalised(train["images"][:calibration]),
            images=normalised(test["images"]),
            labels=torch.from_numpy(test["labels"].astype(np.int64)),
            file_bytes=weights.stat().st_size,
        )


def accuracy_cells(point: Mapping[str, Any]) -> list[str]:
    """Top-1 in percent, and its paired change to fp32 in points with the standard error."""
    change, error = 100 * point["top1_change"], 100 * point["top1_change_error"]
    return [f"{100 * point['top1']:.2f}", f"{change:+.2f} +- {error:.2f}"]


Case = dict[str, Any]
"""The figures of a case."""


@dataclass
class Cases:
    """Named cases of a benchmark. Each is measured once and kept in `result` (JSON) at once, so that a run can be
    interrupted, and shared out to several programs; `page` is written from all that are there."""

    names: Sequence[str]
    result: Path
    page: Path

    def arguments(self, description: str | None) -> argparse.ArgumentParser:
        """The options that all such benchmarks have."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("cases", nargs="*", metavar="CASE", type=self._known, help=", ".join(self.names))
        parser.add_argument("--data", help="folder with the networks and images; see benchmarks/README.md")
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--again", action="store_true", help="also what has been measured")
        parser.add_argument("--page-only", action="store_true", help="write the page from the results")
        return parser

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise argparse.ArgumentTypeError(f"there is no case {name}; there are {', '.join(self.names)}")
        return name

    def run(self, options: argparse.Namespace, measure: Callable[[str, Callable[[str], Case]], Case],
            page: Callable[[dict[str, Case]], str]) -> None:
        """Measure the cases that are asked for, or all that are missing, and write the page.

        measure(case, need): its figures; need(other) gives those of a case that it builds on, measured where missing.
        """
        torch.set_num_threads(options.threads)
        cases: dict[str, Case] = read_json(self.result).get("cases", {})

        def need(case: str) -> Case:
            if case not in cases:
                take(case)
            return cases[case]

        def take(case: str) -> None:
            point = measure(case, need)
            print(case, point, flush=True)
            cases.update(read_json(self.result).get("cases", {}))  # another program may have added some meanwhile
            cases[case] = point
            write_json(self.result, {"environment": environment(), "cases": cases})

        for case in [] if options.page_only else options.cases or self.names:
            if options.again or case not in cases:
                take(case)
        missing = [f"* {name}" for name in self.names if name not in cases]
        text = page(cases)
        if missing:
            text += "\n".join(["", "## Not run", "", *missing, ""])
        self.page.write_text(text)
        print(f"wrote {self.page}")


def bytes_at(points: Iterable[tuple[float, float]], kl: float) -> float | None:
    """Bytes that a codec needs to reach `kl`, from (bytes, KL) points; None if its curve does not span `kl`.

    Points that another one beats in both numbers are dropped (a user would not take them); between the rest,
    log KL is interpolated linearly over bytes.

    >>> bytes_at([(100, 0.1), (200, 0.001), (210, 0.5)], 0.01)
    150.0
    """
    front: list[tuple[float, float]] = []
    for size, value in sorted(point for point in points if point[1] > 0 and math.isfinite(point[1])):
        if not front or value < front[-1][1]:
            front.append((size, value))
    for (size_a, kl_a), (size_b, kl_b) in itertools.pairwise(front):
        if kl_a >= kl >= kl_b:
            share = math.log(kl_a / kl) / math.log(kl_a / kl_b)
            return size_a + share * (size_b - size_a)
    return None


def environment() -> dict[str, Any]:
    """What a reader needs to judge seconds by: versions, processor architecture, threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, or {} if there is no such file."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON in one step, so that an interrupted run leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    partial.replace(path)
