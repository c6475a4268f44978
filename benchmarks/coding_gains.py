"""Coding gains of transforms on trained networks, layer by layer: `python benchmarks/coding_gains.py`.

    python benchmarks/coding_gains.py               # -> results/coding_gains.json, docs/coding_gains.md and .svg
    python benchmarks/coding_gains.py resnet20      # one network; the others stay as they are in the results
    python benchmarks/coding_gains.py --table       # only write the document, from the results as they are

The quantities of the TQ paper's Fig. 3 and Table 6, from 320 training images and the weights alone: nothing is
compressed, no test image is read. For ResNet-20 also whether random signs measure the same as all logits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import torch.nn.functional as F
from coding_gains_report import write_document
from networks import LeNet5, SqueezeNet, load
from torch import Tensor, nn

import tersor
from tersor.adapters.inventory import WeightLayer
from tersor.tools import transforms
from tersor.tools.covariances import axis_size, gradient_covariance, weight_covariance
from tersor.tools.gains import DB_PER_BIT, coding_gain
from tersor.tools.rate_distortion import waterfill_distortion, waterfill_rate
from tersor.tools.target import LayerTarget, measured_target
from tersor.tools.transforms import Transform, dct, elt, identity, klt, product

RESULT = common.RESULTS / "coding_gains.json"
NETWORKS = ("resnet20", "resnet32", "resnet56", "squeezenet1_1", "lenet5")
IMAGES = 320
VECTORS = 10
"""Sign vectors per image where more than one is tried."""
RATE = 2.0
"""Bits per weight without a transform at which the gain at finite rate is taken."""
AXES = ("inputs", "outputs", "taps", "joint")
Covariances = tuple[np.ndarray, np.ndarray]


@dataclass
class Network:
    """A trained network and its calibration images, in batches."""

    model: nn.Module
    batches: tuple[Tensor, ...]


def main() -> None:
    """Measure what was asked for, then write all documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--data", help="folder with cifar10/, imagenet/ and mnist/ (benchmarks/README.md)")
    parser.add_argument("--table", action="store_true", help="only write the document again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = common.read_json(RESULT)
    for name in () if options.table else options.networks:
        network = network_of(name, common.data_folder(options.data))
        start = time.perf_counter()
        statistics = tersor.calibrate(network.model, network.batches, keep=0)
        seconds = time.perf_counter() - start
        layers = gains_of(network, statistics)
        results.setdefault("networks", {})[name] = {"images": IMAGES, "layers": layers}
        print(f"{name}: {len(layers)} layers, calibrated in {seconds:.0f} s")
        if name == "resnet20":
            results["all_logits"] = all_logits(network, statistics)
        results["environment"] = common.environment()
        # Tens of thousands of numbers: without indents.
        RESULT.write_text(json.dumps(results, separators=(",", ":"), sort_keys=True) + "\n")
    write_document(results)


def network_of(name: str, data: Path) -> Network:
    """The network with the first training images of its data set."""
    if name.startswith("resnet"):
        found = common.subject(name, data, IMAGES)
        return Network(found.model, found.calibration.split(80))
    if name == "lenet5":
        with np.load(data / "mnist" / "mnist.npz") as file:
            pixels = torch.from_numpy(file["train_images"][:IMAGES].astype(np.float32) / 256)[:, None]
        return Network(load(LeNet5(), data / "mnist" / "lenet5_caffe.safetensors"), pixels.split(80))
    folder = data / "imagenet"
    images = torch.stack([photograph(path) for path in sorted((folder / "calibration").glob("*.jpg"))[:IMAGES]])
    return Network(load(SqueezeNet(), folder / "squeezenet1_1.safetensors"), images.split(16))


def photograph(path: Path) -> Tensor:
    """float32 [3, 224, 224]: the middle of an image, normalised as torchvision's networks expect."""
    from PIL import Image

    with Image.open(path) as file:
        pixels = np.array(file.convert("RGB"))
    top, left = (pixels.shape[0] - 224) // 2, (pixels.shape[1] - 224) // 2
    return common.normalised(pixels[None, top : top + 224, left : left + 224])[0]


def gains_of(network: Network, statistics: tersor.Statistics) -> list[dict[str, Any]]:
    """One entry per layer, in the order of the network; gains for each of KINDS of C_g."""
    tensors = dict(network.model.named_parameters())
    whole = whole_gradients(network, statistics, signs=True)
    entries = []
    for layer in statistics.weights:
        weight = tensors[layer.name].detach().numpy()
        entry: dict[str, Any] = {"name": layer.name, "shape": list(weight.shape), "weights": weight.size}
        for centred in (False, True):
            target = independent(layer, weight, statistics, centred)
            c_w = {axis: weight_covariance(target, axis) for axis in AXES}
            kinds = {"whole": whole[layer.name]["centred" if centred else "plain"],
                     "factored": {axis: gradient_covariance(target, axis) for axis in AXES}}  # fmt: skip
            for kind, c_g in kinds.items():
                covariances = {axis: (c_w[axis], c_g[axis]) for axis in AXES}
                entry[f"{kind}, centred" if centred else kind] = dict(measures(covariances, target.shape[2:]))
        sizes = {axis: axis_size(target, axis) for axis in AXES[:3]}
        entry["sizes"] = sizes
        # Fewer vectors than their length: C_w has no full rank, and a gain at high rate no limit.
        entry["singular"] = [axis for axis, n in sizes.items() if weight.size // n < n]
        entries.append(entry)
    return entries


def independent(layer: WeightLayer, weight: np.ndarray, statistics: tersor.Statistics, centred: bool) -> LayerTarget:
    """The target with A and G alone, the factors of independent positions."""
    measured = replace(statistics.layers[layer.name], coherent=None)
    return measured_target(layer, weight, measured, centred=centred, absorbed=False)


def measures(axes: dict[str, Covariances], kernel: tuple[int, ...]) -> Iterator[tuple[str, list[float]]]:
    """(name, gain) of everything that is compared. "axis: ..." as published, each along its own axis (what has
    no transform is that axis' diagonal); "joint: ..." all against the variance of each (input channel, tap)."""
    fixed = {kind: dct(kind, kernel) for kind in transforms.DCT_KINDS}
    inputs, taps = axes["inputs"], axes["taps"]
    for axis in ("inputs", "outputs"):
        yield f"{axis}: KLT", figures(axes[axis], klt(axes[axis][0]))
        yield f"{axis}: ELT", figures(axes[axis], elt(*axes[axis]))
    channels = {"": identity(len(inputs[0])), "KLT": klt(inputs[0]), "ELT": elt(*inputs)}
    spatial = {"": identity(len(taps[0])), "DCT-I": fixed["dct1"], "DCT-II": fixed["dct2"], "learned taps": elt(*taps)}
    if len(taps[0]) > 1:
        for name in ("DCT-I", "DCT-II", "learned taps"):
            yield f"taps: {name}", figures(taps, spatial[name])
    for first, outer in channels.items():
        for second, inner in spatial.items():
            if len(taps[0]) > 1 or not second:
                name = " x ".join(part for part in (first, second) if part) or "identity"
                yield f"joint: {name}", figures(axes["joint"], product(outer, inner))
    # One basis over channel and tap: C_w of so many dimensions is singular (a vector per output); its Kronecker
    # model is not. C_g is the full one.
    model = np.kron(inputs[0], taps[0]) / max(np.trace(taps[0]) / len(taps[0]), 1e-300)
    yield "joint: joint ELT", figures(axes["joint"], elt(model, axes["joint"][1]))


def figures(covariances: Covariances, transform: Transform) -> list[float]:
    """In dB: gain at high rate in its two factors, weight and gradient; gain at RATE bits, by water-filling of what
    coefficients cost."""
    gain = coding_gain(*covariances, transform)
    before = np.diag(covariances[0]) * np.diag(covariances[1])
    after = transform.variances(covariances[0]) * transform.sensitivities(covariances[1])
    saved = RATE - waterfill_rate(after, waterfill_distortion(before, RATE))
    return [round(value, 3) + 0.0 for value in (gain.weight, gain.gradient, saved * DB_PER_BIT)]


def all_logits(network: Network, statistics: tersor.Statistics) -> dict[str, Any]:
    """C_g from the gradient of every logit of every image, beside other ways to measure it.

    Per layer and axis: relative difference of C_g (Frobenius, traces made equal), ratio of traces, and the dB of
    coding gain that an ELT made from the other C_g loses when it is judged by this one.
    """
    middle = len(network.batches) // 2
    first, half = (whole_gradients(Network(network.model, part), statistics, signs=False, axes=AXES[:3])
                   for part in (network.batches[:middle], network.batches[middle:]))  # fmt: skip
    signs = whole_gradients(network, statistics, signs=True, axes=AXES[:3])
    many = tersor.calibrate(network.model, network.batches, vectors=VECTORS, keep=0)
    tensors = {name: p.detach().numpy() for name, p in network.model.named_parameters()}
    rows: dict[str, dict[str, dict[str, list[dict[str, float]]]]] = {"plain": {}, "centred": {}}
    for layer, (kind, found) in itertools.product(statistics.weights, rows.items()):
        name = layer.name
        centred = kind == "centred"
        one, more = (independent(layer, tensors[name], s, centred) for s in (statistics, many))
        for axis in AXES[:3]:
            if axis_size(one, axis) < 2 or one.count < axis_size(one, axis) ** 2:
                continue
            ways = {"random signs, one vector": signs[name][kind][axis],
                    "all logits, half of the images": half[name][kind][axis],
                    "factors A and G, one vector": gradient_covariance(one, axis),
                    f"factors A and G, {VECTORS} vectors": gradient_covariance(more, axis)}  # fmt: skip
            reference = (first[name][kind][axis] + half[name][kind][axis]) / 2
            for way, c_g in ways.items():
                compared = difference(weight_covariance(one, axis), reference, c_g)
                found.setdefault(axis, {}).setdefault(way, []).append(compared | {"weights": float(one.count)})
    return {"images": IMAGES, **rows}


def difference(c_w: np.ndarray, exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How far `found` is from `exact`, and what it costs."""
    ratio = float(np.trace(found) / np.trace(exact))
    best = coding_gain(c_w, exact, elt(c_w, exact)).total
    figures = {
        "covariance": float(np.linalg.norm(found / ratio - exact) / np.linalg.norm(exact)),
        "trace_ratio": ratio,
        "gain": coding_gain(c_w, found, elt(c_w, found)).total,
        "exact_gain": best,
        "lost": best - coding_gain(c_w, exact, elt(c_w, found)).total,
    }
    return {key: round(value, 4) for key, value in figures.items()}


def whole_gradients(network: Network, statistics: tersor.Statistics, signs: bool,
                    axes: tuple[str, ...] = AXES) -> dict[str, dict[str, Any]]:  # fmt: skip
    """C_g as published: mean over images of sum over j of g_j g_j^T along each axis, g = dy_k/dW summed over all
    logits k, one back-propagated at a time (or `signs`: d(v.y)/dW of one random sign vector v per image).

    name -> "plain" or "centred" (inputs without their mean) -> axis -> [n, n]. The weight gradient of an image is
    a sum over positions; calibration's A and G take positions for independent.
    """
    modules = {f"{name}.weight": module for name, module in network.model.named_modules()
               if isinstance(module, nn.Conv2d | nn.Linear)}  # fmt: skip
    sums: dict[str, dict[str, dict[str, np.ndarray]]] = {name: {"plain": {}, "centred": {}} for name in modules}
    generator = torch.Generator().manual_seed(1)
    for batch in network.batches:
        logits, seen = forward(network.model, modules, batch)
        every = [row.expand_as(logits) for row in torch.eye(logits.shape[1])] if not signs else [
            torch.randint(0, 2, logits.shape, generator=generator) * 2.0 - 1]  # fmt: skip
        for vector in every:
            grads = torch.autograd.grad(logits, [out for _, out in seen.values()], vector, retain_graph=True)
            for (name, (x, _)), grad in zip(seen.items(), grads, strict=True):
                mean = torch.from_numpy(statistics.layers[name].mean[0])
                for kind, g in weight_gradients(modules[name], x.detach(), grad, mean).items():
                    add_axes(sums[name][kind], g, axes)
    count = sum(len(batch) for batch in network.batches)
    return {name: {kind: {axis: total / count for axis, total in found.items()} for kind, found in kinds.items()}
            for name, kinds in sums.items()}  # fmt: skip


def forward(model: nn.Module, modules: dict[str, nn.Module], batch: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Logits, and (input, output) of each module by name."""
    seen: dict[str, Any] = {}
    hooks = [module.register_forward_hook(lambda _, args, out, key=name: seen.update({key: (args[0], out)}))
             for name, module in modules.items()]  # fmt: skip
    try:
        return model(batch), seen
    finally:
        for hook in hooks:
            hook.remove()


def weight_gradients(module: nn.Module, x: Tensor, grad: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Per image, float32 [images, out, in, taps], with the inputs as they are, and without the mean patch [n]."""
    if isinstance(module, nn.Conv2d):
        u = F.unfold(x, module.kernel_size, padding=module.padding, stride=module.stride)  # type: ignore[arg-type]
        grad = grad.flatten(2)
    else:
        u, grad = x[..., None], grad[..., None]
    shape = (len(x), grad.shape[1], x.shape[1], -1)
    plain = grad @ u.transpose(1, 2)
    centred = plain - grad.sum(2)[..., None] * mean
    return {"plain": plain.reshape(shape), "centred": centred.reshape(shape)}


def add_axes(sums: dict[str, np.ndarray], g: Tensor, axes: tuple[str, ...]) -> None:
    """Add the sums of outer products along each axis."""
    orders = {"inputs": (2, 0, 1, 3), "outputs": (1, 0, 2, 3), "taps": (3, 0, 1, 2), "joint": (2, 3, 0, 1)}
    for axis in axes:
        order = orders[axis]
        rows = g.shape[2] * g.shape[3] if axis == "joint" else g.shape[order[0]]
        flat = g.permute(order).reshape(rows, -1)
        sums[axis] = sums.get(axis, 0) + (flat @ flat.T).double().numpy()


if __name__ == "__main__":
    main()
