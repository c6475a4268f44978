"""Bytes at no loss and at one point, without tuning, with label-free recovery, with fine-tuning:
`python benchmarks/finetuned.py [CASE ...]`.

A case is NETWORK:BITS. *Without tuning*: the network compressed at the default effort, calibrated on 640 training
images. *Recovered*: that file after a short distillation on 320 of those images (`tersor.training.recovery`).
*Fine-tuned*: a file of the same bytes without a trellis, trained on views of training images (`tersor.finetune`). All
three files are restored into networks of random weights and measured on test images, which nothing else has seen. An
interrupted case goes on from its checkpoints. NETWORK:nncodec: the nearest peer on the same network and test images
(benchmarks/README.md says how to install it). Writes benchmarks/results/finetuned.json and docs/finetuned.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import common
import finetuned_report as report
import nncodec_peer
import numpy as np
import torch
from common import Case, Cases, data_folder
from finetuned_networks import BATCH, Bench, bench
from finetuned_report import GOOD, NAMES, STEPS, WAYS, page
from torch import Tensor, nn

import tersor
from tersor import evaluate
from tersor.packed import Packed
from tersor.training.loop import finetune
from tersor.training.reconstruction import reconstruct
from tersor.training.recovery import recover

CASES = Cases(NAMES, common.RESULTS / "finetuned.json", common.ROOT / "docs" / "finetuned.md")
LOOKS = 15
"""At the held-out loss, while training."""
FEW = {"resnet32": ("start", "tuned"), "vgg16_bn_full": ("start", "tuned"), "resnet18_full": ("plain",),
       "densenet_bc_100_12_cifar:2": ("plain",),
       **dict.fromkeys(("lenet5:0.5", "alexnet_cifar:1", "alexnet_cifar:0.75", "resnet20:1.6", "resnet32:1",
                        "resnet56:0.77", "vgg16_bn_cifar:1", "resnet18_cifar:1", "resnet18_cifar:1.3",
                        "mobilenet_v2_cifar:2.4"), ("plain", "recovered"))}  # fmt: skip
"""Of the ways, by network or case, where all of them would take too long: or where nothing has been lost."""
QP = range(-16, -39, -2)
"""Steps of NNCodec, coarse ones first: in between it is tried beside the smallest files that are good enough."""
GLANCE, HOPELESS = 1000, 5.0
"""A network that has lost so many points on so many images is not looked at further."""
HEADROOM = {"vgg16_bn_full": 1.04}
"""Bytes of the file that training begins with, over those that it shall end with: training to labels saves bits of its
own accord. (VGG-16 of a quarter of the channels at 0.4 bits/weight: 3% of them, where no bit costs anything.)"""


def main() -> None:
    """Run what is asked for, case by case."""
    parser = CASES.arguments(__doc__)
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "tersor-finetuned",
                        help="folder for files and the state of their training")
    parser.add_argument("--cache", type=Path, help="folder for decoded images")
    parser.add_argument("--full", type=Path,
                        help="weights of a network that examples/zoo has not (finetuned_networks.py: GIVEN)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} views to train on")
    options = parser.parse_args()
    torch.set_flush_denormal(True)

    def measure(case: str, _: Any) -> Case:
        if case in report.ABLATION:
            return ablated(case, options)
        return peer(case, options) if case in report.PEER else measured(case, options)

    CASES.run(options, measure, page)


def measured(case: str, options: argparse.Namespace) -> Case:
    """One network at one rate, in three ways."""
    name, bits = case.split(":")
    on = bench(name, data_folder(options.data), options.cache, options.full)
    options.files.mkdir(parents=True, exist_ok=True)

    def path(ending: str) -> Path:
        return Path(options.files / f"{name}_{bits}{ending}")

    reference = evaluate.logits(on.model, on.test[0].split(250))
    found: Case = {"steps": options.steps, "fp32_bytes": on.file_bytes(), "count": len(on.test[1]),
                   "fp32": float((reference.argmax(1) == on.test[1]).double().mean())}  # fmt: skip
    ways = {
        "plain": lambda: compressed(on, float(bits)),
        "recovered": lambda: recover(files["plain"], on.model, torch.cat(on.calibration)[:report.RECOVERY],
                                     autocast=torch.bfloat16, progress=print),
        "start": lambda: compressed(on, float(bits) * HEADROOM.get(name, 1.0), trellis=False),
        "tuned": lambda: tuned(on, files["start"], size(), options.steps, path),
    }  # fmt: skip
    files: dict[str, Packed] = {}

    def size() -> int:
        if name in HEADROOM:
            return int(float(bits) * files["start"].parameters / 8.0)
        return files.get("plain", files["start"]).size

    for way in FEW.get(case, FEW.get(name, tuple(WAYS))):
        begun = time.process_time()
        packed = files[way] = kept(path(f".{way}.tersor"), ways[way])
        seconds = time.process_time() - begun
        found[way] = {"bytes": packed.size, "cpu_seconds": round(seconds, 1),
                      **judged(on, reference, tersor.restore(packed.data, into=on.fresh()))}  # fmt: skip
    return found


def judged(on: Bench, reference: Tensor, restored: nn.Module) -> Case:
    """What a restored network has lost on the test images."""
    logits = evaluate.logits(restored, on.test[0].split(250))
    right = [(y.argmax(1) == on.test[1]).float() for y in (reference, logits)]
    compared = evaluate.compare(reference, logits, on.test[1])
    return {"kl": compared.kl, "top1": compared.top1, "drop": asdict(evaluate.paired_drop(*right))}


def peer(case: str, options: argparse.Namespace) -> Case:
    """NNCodec with dependent quantization, with and without `opt_qp`: all its steps from the coarsest in use to those
    two of which have lost nothing."""
    name = case.removesuffix(":nncodec")
    if nncodec_peer.version() is None:
        raise ModuleNotFoundError(f"NNCodec is {nncodec_peer.NOT_INSTALLED}")
    on = bench(name, data_folder(options.data), options.cache, options.full)
    reference = evaluate.logits(on.model, on.test[0].split(250))
    tensors = {name: tensor.numpy().astype(np.float32) for name, tensor in on.model.state_dict().items()
               if tensor.is_floating_point()}  # fmt: skip
    points: list[Case] = []

    def measure(qp: int, opt: bool) -> Case | None:
        settings = {"qp": qp, "use_dq": True, "nonweight_qp": -75, "opt_qp": opt}
        begun = time.process_time()
        stream = nncodec_peer.encode(tensors, settings)
        restored, state = on.fresh(), nncodec_peer.decode(stream, settings)
        restored.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=False)
        seconds = round(time.process_time() - begun, 1)
        few = evaluate.logits(restored, on.test[0][:GLANCE].split(250)).argmax(1) == on.test[1][:GLANCE]
        wanted = reference[:GLANCE].argmax(1) == on.test[1][:GLANCE]
        if 100.0 * float(wanted.double().mean() - few.double().mean()) > HOPELESS:
            return None
        points.append({"qp": qp, "opt_qp": opt, "bytes": len(stream), "cpu_seconds": seconds,
                       **judged(on, reference, restored)})  # fmt: skip
        print(" ", points[-1], flush=True)
        return points[-1]

    for opt in (False, True):
        lossless = 0
        for qp in QP:
            point = measure(qp, opt)
            lossless += point is not None and GOOD[0](point["drop"])
            if lossless == 2:
                break
    for good in GOOD:
        best = min((point for point in points if good(point["drop"])), key=lambda point: point["bytes"], default=None)
        for step in (-1, 1) if best else ():
            if not any(p["qp"] == best["qp"] + step and p["opt_qp"] == best["opt_qp"] for p in points):
                measure(best["qp"] + step, best["opt_qp"])
    return {"version": nncodec_peer.version(), "points": points}


def ablated(case: str, options: argparse.Namespace) -> Case:
    """What each step of recovery without labels is worth: KL on held-out training images, one rate."""
    name, bits, _ = case.split(":")
    on = bench(name, data_folder(options.data), options.cache)
    samples = torch.cat(on.calibration)[:report.RECOVERY]
    statistics = tersor.calibrate(on.model, samples.split(80))
    judging = torch.cat([x for x, _ in on.judging])[:report.RECOVERED].split(256)
    reference = evaluate.logits(on.model, judging)
    found: Case = {}

    def judge(label: str, make: Any) -> Packed:
        begun = time.process_time()
        packed: Packed = make()
        seconds = time.process_time() - begun
        restored = tersor.restore(packed.data, into=on.fresh())
        compared = evaluate.compare(reference, evaluate.logits(restored, judging))
        found[label] = {"bytes": packed.size, "kl": compared.kl, "kl_error": compared.kl_error,
                        "cpu_seconds": round(seconds, 1)}  # fmt: skip
        print(" ", label, found[label], flush=True)
        return packed

    compress = partial(tersor.compress, on.model, statistics, bits=float(bits))
    files = {effort: judge(label, partial(compress, effort=effort)) for label, effort in report.EFFORTS.items()}
    best, fast = files[max(files)], {"autocast": torch.bfloat16}
    for label, rate in report.DISTILLED.items():
        judge(label, partial(recover, best, on.model, samples, latents=rate, **fast))
    blocks = judge(report.BLOCKS, partial(reconstruct, best, on.model, samples, **fast))
    judge(report.BOTH, partial(recover, blocks, on.model, samples, **fast))
    judge(report.COARSE, partial(reconstruct, files[min(files)], on.model, samples, **fast))
    plain = judge(report.PLAIN, partial(compress, trellis=False))
    judge(report.PLAIN_BLOCKS, partial(reconstruct, plain, on.model, samples, **fast))
    return found


def kept(path: Path, make: Any) -> Packed:
    """A file that was made before, or is made now."""
    if not path.exists():
        make().save(path)
    data = path.read_bytes()
    with tersor.load(data) as file:
        return Packed(data, file.manifest.parameters, 1.0)


def compressed(on: Bench, bits: float, **options: Any) -> Packed:
    statistics = tersor.calibrate(on.model, on.calibration)
    return tersor.compress(on.model, statistics, bits=bits, **options)


def tuned(on: Bench, packed: Packed, size: int, steps: int, path: Callable[[str], Path]) -> Packed:
    """Trained on views of training images, to `size` bytes."""
    return finetune(packed, on.model, on.batches, loss=on.loss, steps=steps, size=size, held_out=on.judging,
                    optimizer=on.optimizer, every=max(1, steps // LOOKS), autocast=torch.bfloat16,
                    checkpoint=path(".checkpoint"), progress=lambda line: print(" ", line, flush=True))


if __name__ == "__main__":
    main()
