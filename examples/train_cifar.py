"""Train the networks of `examples/zoo` on CIFAR-10.

    python examples/train_cifar.py --network vgg16_bn --width 0.25 --epochs 20
    python examples/train_cifar.py --network resnet18 --width 0.25 --epochs 10
    python examples/train_cifar.py --network densenet --width 0.375 --epochs 8
    python examples/train_cifar.py --network resnet34 --width 0.125 --epochs 10
    python examples/train_cifar.py --network mobilenet_v2 --width 0.5 --epochs 12 --float32
    python examples/train_cifar.py --network resnet50 --width 0.125 --epochs 6
    python examples/train_cifar.py --network densenet121 --width 0.25 --epochs 5
    python examples/train_cifar.py --network densenet_bc_100_12 --epochs 8 --float32

The data are all of CIFAR-10 as JPEG copies (see `image_data.py`). SGD with Nesterov's momentum, one cycle of the
learning rate, label smoothing, flips and shifts by up to four pixels, bfloat16 autocast, fixed seeds, one thread: with
the same PyTorch on the same processor the script makes the same weights again. Weights are stored as fp16, and the
rounded network is the one that is tested: first on the held-out training images, then on the test images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import networks
import torch
import torch.nn.functional as F
from image_data import Pair, accuracy, batches, read, split
from safetensors.torch import save_file
from torch import Tensor, nn


def train(model: nn.Module, data: Pair, held_out: Pair, options: argparse.Namespace) -> None:
    """Train in place, with a line per epoch; goes on from `options.checkpoint` when that is there."""
    generator = torch.Generator().manual_seed(options.seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]  # biases and BatchNorm: no weight decay
    groups = [{"params": decayed, "weight_decay": options.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=options.rate, momentum=0.9, nesterov=True)
    total = options.epochs * (len(data[1]) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.rate, total, pct_start=0.25, cycle_momentum=False, final_div_factor=1000
    )
    first = resumed(options.checkpoint, model, optimizer, schedule, generator)
    started = time.perf_counter()
    for epoch in range(first, options.epochs):
        model.train()
        losses = []
        for x, y in batches(data, options.batch, generator, reach=4):
            with torch.autocast("cpu", torch.bfloat16, enabled=not options.float32):
                output = model(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(output.float(), y, label_smoothing=options.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}, held out {accuracy(model, held_out):.2%}, "
            f"{seconds:.0f} s",
            flush=True,
        )
        if options.checkpoint:
            parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "generator": generator.get_state(), "epochs": epoch + 1}, options.checkpoint)


def resumed(
    path: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
) -> int:
    """Everything as it was after the last whole epoch; how many epochs that were."""
    if path is None or not path.exists():
        return 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    generator.set_state(state["generator"])
    return int(state["epochs"])


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions and linear layers in fp16; biases, BatchNorm (small variances!) and counters as they are."""
    return {name: (t.half() if t.ndim > 1 else t).contiguous() for name, t in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(networks.CIFAR), required=True)
    parser.add_argument("--width", type=float, help="factor on the channels (default: that of examples/zoo)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--cache", type=Path, help="folder that keeps the decoded images")
    parser.add_argument("--out", type=Path, help="default: <network>_cifar.safetensors")
    parser.add_argument("--checkpoint", type=Path, help="file to go on from, written after every epoch")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.1, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=5e-4, help="weight decay")
    parser.add_argument("--smoothing", type=float, default=0.05, help="label smoothing")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    data, held_out = split(read(options.data / "jpeg_train.npz", options.cache))
    model = networks.cifar(options.network, options.width).to(memory_format=torch.channels_last)
    print(f"{options.network}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train(model, data, held_out, options)
    out = options.out or Path(f"{options.network}_cifar.safetensors")
    save_file(rounded(model.state_dict()), out)
    stored = networks.load(networks.cifar(options.network, options.width), out)
    test = read(options.data / "jpeg_test.npz", options.cache)
    print(
        f"{out.name}: held out {accuracy(stored, held_out):.2%}, "
        f"test {accuracy(stored, test):.2%} on {len(test[1]):,} images"
    )


if __name__ == "__main__":
    main()
