"""The AlexNet row of LNQ's Table 1 (Choi, El-Khamy, Lee, ICLR 2017), at the size of CIFAR-10.

    python examples/train_alexnet_cifar.py --out alexnet_cifar.safetensors
    python benchmarks/lnq_alexnet.py --weights alexnet_cifar.safetensors

`AlexNetCifar` (examples/networks.py: AlexNet's layers, 4.56 million parameters) is pruned to a tenth of its
weights while it is trained a little further, then compressed by each method with `tersor.compress`: all
layers share one codebook, indexes and gaps are Huffman-coded, shared values are not fine-tuned. Of each
method the rates of one ladder are tried, and the coarsest stands in the table at which the network loses at
most half a point against the pruned one on 2,000 held-out training images. The 10,000 test images are
measured at that rate only. Every row is a real file, restored into an empty network.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import torch.nn.functional as F
from image_data import Pair, batches, normalised, read, split
from lossless import lossless
from networks import AlexNetCifar, load
from safetensors.torch import save_file
from torch import Tensor, nn

import tersor
from tersor import evaluate
from tersor.config import CodebookConfig
from tersor.tools import pruning

RESULT = common.RESULTS / "lnq_alexnet.json"
DOCUMENT = common.ROOT / "docs" / "lnq_alexnet.md"
ZOO = common.ROOT / "examples" / "zoo" / "alexnet_cifar_pruned.tersor"
SPARSITY = 0.9
SLACK = 0.005
LADDER = (0.3, 0.36, 0.43, 0.52, 0.62, 0.75, 0.9, 1.1, 1.3, 1.6, 2.0)
"""Bits per weight, of all parameters, the whole file counted."""
CALIBRATION = 320
LEVELS = {"uniform": 32, "ecsq": 32, "kmeans": 256}
"""Most centres: ECSQ leaves most of them unused at these rates, k-means needs all to spend the bits."""


@dataclass(frozen=True)
class Row:
    """One file and what it does on the test images."""

    method: str
    bits: float
    bytes: int
    ratio: float
    accuracy: float
    change: float
    """Against the network as given; `change_error` is its standard error, from the same images."""
    change_error: float
    kl: float
    held_out: float
    tried: dict[str, float]
    """Rate -> held-out accuracy."""
    seconds: float


def lamp(w: np.ndarray) -> np.ndarray:
    """w^2 over the sum of all squares at least as large in its layer: makes one threshold for all layers fair,
    whatever their scale (Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", 2021)."""
    square = np.square(w.ravel(), dtype=np.float64)
    order = np.argsort(square)
    score = np.empty_like(square)
    score[order] = square[order] / np.maximum(np.cumsum(square[order][::-1])[::-1], 1e-300)
    return score.reshape(w.shape)


def pruned(given: nn.Module, data: Pair, steps: int, rate: float) -> nn.Module:
    """A copy with `SPARSITY` of the weights at zero: cubic schedule over the first quarter of the steps, then masks
    stay. Pruned weights stay pruned."""
    model = copy.deepcopy(given).train()
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    schedule = pruning.CubicSchedule(final=SPARSITY, end=max(steps // 4, 1), every=max(steps // 32, 1))
    kept: dict[str, np.ndarray] | None = None
    masks: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(2)
    for step, (x, y) in zip(range(steps), batches(data, 128, generator), strict=False):
        optimizer.param_groups[0]["lr"] = rate * min((1 - step / steps) / 0.75, 1)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        loss = F.cross_entropy(output.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (sparsity := schedule.step()) is not None:
            scores = {name: lamp(p.detach().numpy()) for name, p in weights.items()}
            kept = pruning.masks(scores, sparsity, within=kept)
            masks = {name: torch.from_numpy(mask) for name, mask in kept.items()}
            print(f"  step {step + 1}: {sparsity:.1%} pruned, loss {loss.item():.3f}", flush=True)
        with torch.no_grad():
            for name, mask in masks.items():
                weights[name].mul_(mask)
    return model.eval()


class Bench:
    """The network, its images, and what is shared by the rows."""

    def __init__(self, given: nn.Module, start: nn.Module, data: Path) -> None:
        self.given, self.start = given, start
        train, held_out = split(read(data / "jpeg_train.npz"))
        test = read(data / "jpeg_test.npz")
        self.held_out = normalised(held_out[0]), held_out[1]
        self.test = normalised(test[0]), test[1]
        self.parameters = sum(p.numel() for p in given.parameters())
        self.reference = evaluate.logits(given, self.test[0].split(250))
        self.path = common.RESULTS / ".alexnet.tersor"
        self.calibration = normalised(train[0][:CALIBRATION]).split(64)

    @cached_property
    def statistics(self) -> tersor.Statistics:
        return tersor.calibrate(self.start, self.calibration, keep=0)

    @cached_property
    def with_samples(self) -> tersor.Statistics:
        return tersor.calibrate(self.start, self.calibration, keep=CALIBRATION // 2)

    def restored(self, data: bytes) -> tuple[nn.Module, int]:
        """The file as a network that was empty before, and the file's size."""
        model = copy.deepcopy(self.given)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.zero_()
        self.path.write_bytes(data)
        tersor.restore(self.path, into=model)
        size = self.path.stat().st_size
        self.path.unlink()
        return model.eval(), size

    def held_out_accuracy(self, data: bytes) -> float:
        model, _ = self.restored(data)
        choice = evaluate.logits(model, self.held_out[0].split(250)).argmax(1)
        return float((choice == self.held_out[1]).double().mean())

    def row(self, method: str, data: bytes, tried: dict[str, float], held_out: float, started: float) -> Row:
        model, size = self.restored(data)
        found = evaluate.compare(self.reference, evaluate.logits(model, self.test[0].split(250)), self.test[1])
        assert found.top1 is not None and found.top1_change is not None and found.top1_change_error is not None
        row = Row(method, 8 * size / self.parameters, size, 4 * self.parameters / size, found.top1,
                  found.top1_change, found.top1_change_error, found.kl, held_out, tried,
                  time.perf_counter() - started)  # fmt: skip
        print(f"{method}: {size:,} bytes, {row.ratio:.1f}x, {row.accuracy:.2%} ({row.change:+.2%} ± "
              f"{row.change_error:.2%}), held out {held_out:.2%}, {row.seconds:.0f} s", flush=True)  # fmt: skip
        return row


def search(bench: Bench, encode: Callable[[float], bytes], first: int,
           floor: float) -> tuple[int, bytes, dict[str, float]]:  # fmt: skip
    """From rung `first` to the coarsest rung that keeps `floor` on the held-out images (the finest if none does).

    Rungs between are not skipped, so a lucky one further down does not count.
    """
    tried: dict[str, float] = {}

    def attempt(i: int) -> tuple[bytes, bool]:
        data = encode(LADDER[i])
        accuracy = tried[str(LADDER[i])] = bench.held_out_accuracy(data)
        print(f"  {LADDER[i]} bits: {len(data):,} bytes, held out {accuracy:.2%}", flush=True)
        return data, accuracy >= floor

    i = first
    best, good = attempt(i)
    if good:
        while i > 0 and good:
            data, good = attempt(i - 1)
            if good:
                best, i = data, i - 1
    else:
        while not good and i + 1 < len(LADDER):
            i += 1
            best, good = attempt(i)
    return i, best, tried


def methods(bench: Bench) -> dict[str, Callable[[float], bytes]]:
    """Method -> file at a rate."""

    def shared(method: Any, weighted: bool) -> Callable[[float], bytes]:
        options = CodebookConfig(method=method, weighted=weighted, coder="huffman", levels=LEVELS[method])

        def encode(bits: float) -> bytes:
            return tersor.compress(bench.start, bench.statistics, bits=bits, tools=("codebook",),
                                   codebook=options).data  # fmt: skip

        return encode

    return {
        "uniform": shared("uniform", True),
        "tersor's best": lambda bits: tersor.compress(bench.start, bench.with_samples, bits=bits).data,
        "Hessian-weighted k-means": shared("kmeans", True),
        "k-means": shared("kmeans", False),
        "iterative ECSQ": shared("ecsq", True),
    }


ORDER = ("given", "pruned", "k-means", "Hessian-weighted k-means", "uniform", "iterative ECSQ", "tersor's best")


def document(content: dict[str, Any]) -> str:
    rows = {row["method"]: row for row in content["rows"]}
    lines = [
        "# AlexNet's layers at the size of CIFAR-10: the methods of LNQ's Table 1",
        "",
        "**Not ImageNet, and not AlexNet at full size.** CIFAR-10 images of 32x32 (JPEG copies, which costs accuracy),",
        f"a network of {content['parameters']:,} parameters trained for {content['epochs']} epochs on a shared "
        "two-core machine,",
        "far from what such a network can reach. The paper's row (AlexNet, ImageNet: 40.65x at 56.20%) stays open.",
        "",
        *(__doc__ or "").split("\n\n")[2].strip().splitlines(),
        "",
        f"Pruning: {content['sparsity']:.0%} of the weights, {content['prune_steps']} training steps of 128 images, "
        "which also train the network further:",
        "changes are against the network as given, before them. Ratios are against 32 bits a parameter, the whole file",
        "counted; errors are the paired standard errors on the 10,000 test images.",
        "",
        "**The pruned network was trained too briefly**, about one epoch: most of the loss is that of pruning, which",
        "so few steps do not win back. Compare the rows below *pruned* with that row, not with the paper's.",
        "",
        "| method | bits/weight | bytes | ratio | test accuracy | change | held out |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ORDER:
        if name in rows:
            r = rows[name]
            lines.append(
                f"| {name} | {r['bits']:.3f} | {r['bytes']:,} | {r['ratio']:.2f}x | {r['accuracy']:.2%} | "
                f"{r['change']:+.2%} ± {r['change_error']:.2%} | {r['held_out']:.2%} |"
            )
    missing = [name for name in ORDER if name not in rows]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join([*lines, "", "`python benchmarks/lnq_alexnet.py` makes this page.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the networks and images")
    parser.add_argument("--weights", type=Path, default=Path("alexnet_cifar.safetensors"))
    parser.add_argument("--epochs", type=int, default=5, help="for the document: how long it was trained")
    parser.add_argument("--steps", type=int, default=370, help="training steps while pruning")
    parser.add_argument("--first", type=float, default=0.75, help="rung of the ladder to begin at")
    parser.add_argument("--only", nargs="*", help="measure these methods, keep the other rows")
    parser.add_argument("--table", action="store_true", help="only write the document, from the results as they are")
    parser.add_argument("--keep", action="store_true", help="write tersor's best to examples/zoo")
    options = parser.parse_args()
    if options.table:
        DOCUMENT.write_text(document(common.read_json(RESULT)))
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = common.data_folder(options.data) / "cifar10"
    given = load(AlexNetCifar(), options.weights)
    sparse = options.weights.with_suffix(".pruned.safetensors")
    if not sparse.exists():
        train, _ = split(read(data / "jpeg_train.npz"))
        save_file(pruned(given, train, options.steps, 5e-4).state_dict(), sparse)
    bench = Bench(given, load(AlexNetCifar(), sparse), data)
    rows = {row["method"]: Row(**row) for row in common.read_json(RESULT).get("rows", [])} if options.only else {}

    def keep(row: Row) -> None:
        rows[row.method] = row
        content = {"rows": [asdict(rows[name]) for name in ORDER if name in rows], "parameters": bench.parameters,
                   "epochs": options.epochs, "prune_steps": options.steps, "sparsity": SPARSITY, "slack": SLACK,
                   "environment": common.environment()}  # fmt: skip
        common.write_json(RESULT, content)
        DOCUMENT.write_text(document(content))

    for name, model in (("given", bench.given), ("pruned", bench.start)):
        if name not in rows:
            started, file = time.perf_counter(), lossless(model)
            keep(bench.row(name, file, {}, bench.held_out_accuracy(file), started))
    floor = rows["pruned"].held_out - SLACK
    for name, encode in methods(bench).items():
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        rung, file, tried = search(bench, encode, LADDER.index(options.first), floor)
        if options.keep and name == "tersor's best":
            ZOO.write_bytes(file)
        keep(bench.row(name, file, tried, tried[str(LADDER[rung])], started))


if __name__ == "__main__":
    main()
