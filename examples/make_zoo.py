"""Networks of the zoo as .tersor files of the same accuracy: `python examples/make_zoo.py [NAME[:BITS] ...]`.

    NAME.tersor: the smallest file (default effort, 320 training images for calibration, no labels) whose top-1 on
    2,000 held-out training images is at most a quarter of a point below that of the fp32 network

With BITS: a file of so many bits/weight (the search takes eight times as long). With `--steps` it is fine-tuned
(`tersor.finetune`) to give the answers of the fp32 network to views of training images, at no more bytes. Top-1 of the
file, restored into a network of random weights, is measured on test images that nothing else has seen. Prints a line of
examples/zoo/README.md for each. An interrupted search goes on from `--state`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from cifar_views import mixed
from image_data import HELD_OUT, Pair, batches_in_order, normalised, read, split
from networks import CIFAR, ZOO, CifarResNet, cifar, load, load_zoo
from torch import Tensor, nn

import tersor
from tersor import evaluate

GIVEN = ("resnet20", "resnet32", "resnet56")
"""Networks of the data folder, for lossless images; the project's own are for JPEG copies."""
NAMES = ("resnet20", "resnet56", "vgg16_bn_cifar", "resnet18_cifar", "densenet_cifar")
DROP = 0.25
"""Points of top-1 on held-out images."""
CALIBRATION, BATCH = 320, 64


def fresh(name: str) -> nn.Module:
    """A network of random weights."""
    return (CifarResNet(int(name[6:])) if name in GIVEN else cifar(name.removesuffix("_cifar"))).eval()


def ready(images: Tensor) -> Tensor:
    """uint8 [N, 3, 32, 32] -> float32, channels last in memory."""
    return normalised(images).contiguous(memory_format=torch.channels_last)


def views(images: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches without end: crops, mirror images and blends."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for batch in mixed([images], 512, generator):
            yield from (ready(part) for part in batch.split(BATCH))


def packed_of(name: str, bits: float | None, model: nn.Module, training: Tensor, held_out: Pair, state: Path,
              steps: int) -> tersor.Packed:  # fmt: skip
    """The smallest file of the accuracy wanted, or one of so many bits/weight; and fine-tuned."""
    statistics = tersor.calibrate(model, ready(training[:CALIBRATION]).split(80))

    def hits(network: nn.Module) -> Tensor:
        return evaluate.hits(network.eval(), batches_in_order(held_out, 250))

    wanted = {"max_drop": DROP, "drop_end": "mean", "evaluate": hits} if bits is None else {"bits": bits}
    packed = tersor.compress(model, statistics, **wanted, state=state / f"{name}_{bits}",
                             progress=lambda line: print(" ", line, flush=True))  # fmt: skip
    if steps == 0:
        return packed
    judges = [ready(part) for part in held_out[0].split(250)]
    return tersor.finetune(packed, model, lambda epoch: views(training, epoch), steps=steps, held_out=judges,
                           autocast=torch.bfloat16, checkpoint=state / f"{name}.checkpoint",
                           progress=lambda line: print(" ", line, flush=True))  # fmt: skip


def made(name: str, bits: float | None, data: Path, cache: Path | None, state: Path, steps: int) -> str:
    """Write ZOO/NAME.tersor; its line of the table."""
    kind = "" if name in GIVEN else "jpeg_"
    training, held_out = split(read(data / f"{kind}train.npz", cache), HELD_OUT)
    test = read(data / f"{kind}test.npz", cache)
    model = load(fresh(name), data / f"{name}.safetensors") if name in GIVEN else load_zoo(name)
    model = model.to(memory_format=torch.channels_last)
    path = ZOO / f"{name}.tersor"
    packed_of(name, bits, model, training[0], held_out, state, steps).save(path)
    restored = tersor.restore(path, into=fresh(name))
    kept = (evaluate.hits(network, batches_in_order(held_out, 250)) for network in (model, restored))
    print("  held out:", evaluate.paired_drop(*kept), flush=True)
    size, parameters = path.stat().st_size, sum(p.numel() for p in model.parameters())
    before, after = (evaluate.hits(network, batches_in_order(test, 250)) for network in (model, restored))
    drop = evaluate.paired_drop(before, after)
    return (f"| `{name}.tersor` | {size:,} | {4 * parameters / size:.1f} | {8 * size / parameters:.2f} | "
            f"{100 * before.mean():.2f}% | {100 * after.mean():.2f}% | {-drop.mean:+.2f} "
            f"({-drop.high:+.2f} to {-drop.low:+.2f}) |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*GIVEN, *(f"{name}_cifar" for name in CIFAR)]
    parser.add_argument("names", nargs="*", metavar="NAME[:BITS]", default=NAMES, help=", ".join(known))
    root = Path(__file__).resolve().parent.parent.parent
    data = Path(os.environ.get("TERSOR_DATA") or root / "shared" / "data") / "cifar10"
    parser.add_argument("--data", type=Path, default=data, help="train.npz, test.npz, jpeg_train.npz, jpeg_test.npz")
    parser.add_argument("--cache", type=Path, help="folder for decoded images")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "tersor-zoo")
    parser.add_argument("--steps", type=int, default=0, help="batches to fine-tune on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    options.state.mkdir(parents=True, exist_ok=True)
    for asked in options.names:
        name, _, bits = asked.partition(":")
        if name not in known:
            parser.error(f"there is no network {name}; there are {', '.join(known)}")
        rate = float(bits) if bits else None
        print(made(name, rate, options.data, options.cache, options.state, options.steps), flush=True)


if __name__ == "__main__":
    main()
