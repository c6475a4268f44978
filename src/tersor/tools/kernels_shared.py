"""One codebook of kernels for many layers of equal kernel size, at a given lambda.

    shared = train_shared(targets, price, config)                 # looks at all layers
    candidate = propose_shared(target, shared, price, config)     # one of them, perhaps with a corrected target

A layer's kernels are in a unit of its own (its step in the file), in which an error costs the same in all layers: so
one lambda and one codebook serve them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..config import KernelConfig
from ..synthesis import grid
from ..synthesis.kernel_code import KernelCode
from . import kernel_kmeans as kmeans
from .candidate import Candidate, distortion
from .kernel_blocks import Blocks
from .kernel_choice import Book, Chosen, choose
from .kernel_refit import Fitted, refit
from .kernels import PASSES, RDO, Layer, objective, prepare, round_values, train, value_bits, variants
from .scalar import ROW_RESOLUTION
from .target import LayerTarget


@dataclass(frozen=True)
class SharedKernels:
    """A codebook with what its layers need to use it.

    * `values`: int32 [k, t]; `step`: its step on the logarithmic grid. `book`: the same in units of the layers' rows,
      with code lengths.
    * `units`: layer name -> unit on the logarithmic grid. `kernels`: of all layers together.
    """

    values: npt.NDArray[np.int32]
    step: int
    book: Book
    units: Mapping[str, int]
    kernels: int


def by_taps(targets: Sequence[LayerTarget], config: KernelConfig) -> dict[int, list[LayerTarget]]:
    """Layers that may share a codebook, by the size of their kernels; those without kernels are left out."""
    groups: dict[int, list[LayerTarget]] = {}
    for target in targets:
        layer = prepare(target, config)
        if layer is not None:
            groups.setdefault(layer.blocks.taps, []).append(target)
    return groups


def train_shared(targets: Sequence[LayerTarget], price: float, config: KernelConfig, *, feedback: bool = True,
                 seed: int = 0) -> SharedKernels:
    """The codebook of layers that `by_taps` put together (at least one). Deterministic.

    Its size: that which `config.size` says of the first layer that it says anything of, else by rate-distortion.
    """
    units = _units(targets, config, feedback)
    layers = [layer for target in targets
              if (layer := prepare(target, config, feedback, units[target.name])) is not None]
    joint = Blocks([group for layer in layers for group in layer.blocks.groups], layers[0].blocks.taps, 0)
    wanted = next((size for target in targets if (size := config.size_of(target.name)) is not None), None)
    rng = np.random.default_rng(seed)
    found = [trained for variant in variants(config) for trained in train(joint, variant, price, wanted, config, rng)]
    best = min(found, key=lambda trained: objective(trained, joint, price, config))
    return _settle(layers, joint, best.book, price, config, feedback, units)


def _units(targets: Sequence[LayerTarget], config: KernelConfig, feedback: bool) -> dict[str, int]:
    """1 / sqrt(what an error of a weight costs in the mean), for each layer, on the grid; the first has 0."""
    units: dict[str, int] = {}
    for target in targets:
        layer = prepare(target, config, feedback)
        assert layer is not None  # the caller has left out those without kernels
        cost = np.mean([group.weight.mean() * np.einsum("ctt->c", group.metric).mean()
                        for group in layer.blocks.groups])
        units[target.name] = int(np.rint(-0.5 * grid.RESOLUTION * np.log2(max(float(cost), 1e-300))))
    first = next(iter(units.values()))
    return {name: int(np.clip(unit - first, -grid.MAX_INDEX // 2, grid.MAX_INDEX // 2)) for name, unit in units.items()}


def _settle(layers: Sequence[Layer], joint: Blocks, book: Book, price: float, config: KernelConfig, feedback: bool,
            units: Mapping[str, int]) -> SharedKernels:
    """Passes over all layers, as `kernels.Final` has them over one; the best codebook."""
    paid = 0.0 if config.coder == "fixed" else RDO * price
    chosen = [choose(layer.blocks, book, paid, feedback) for layer in layers]
    best: tuple[float, SharedKernels] | None = None
    for _ in range(sum(PASSES) // 2):
        everything = _joined(chosen)
        book = kmeans.learnt(book, everything)[0]
        values, step = round_values(joint, book, everything, price, config)
        exact = replace(book, words=np.asarray(values * float(grid.value(step)), dtype=np.float64))
        chosen = [choose(layer.blocks, exact, paid, feedback) for layer in layers]
        told, spent = kmeans.learnt(exact, _joined(chosen))
        lost = sum(distortion(layer.target, layer.blocks.restore(part.kernels(exact.words)))
                   for layer, part in zip(layers, chosen, strict=True))
        cost = lost + price * (spent + value_bits(values, config))
        if best is None or cost < best[0]:
            best = cost, SharedKernels(values, step, replace(told, words=exact.words), units, joint.count)
        fitted = [Fitted(layer.target, layer.blocks, part) for layer, part in zip(layers, chosen, strict=True)]
        book = replace(exact, words=refit(fitted, exact.words))
    assert best is not None
    return best[1]


def _joined(chosen: Sequence[Chosen]) -> Chosen:
    return Chosen([index for part in chosen for index in part.index], [gain for part in chosen for gain in part.gain],
                  sum(part.cost for part in chosen))


def propose_shared(target: LayerTarget, shared: SharedKernels, price: float, config: KernelConfig, *,
                   feedback: bool = True) -> Candidate:
    """A layer of `train_shared` (its target may be a corrected one) by the common codebook.

    `bits` by the code lengths that all layers together have, with the layer's share of the codebook. All codes hold
    the very same array of values: so one section stores it once.
    """
    unit = shared.units[target.name]
    layer = prepare(target, config, feedback, unit)
    assert layer is not None  # or it would have no unit
    paid = 0.0 if config.coder == "fixed" else RDO * price
    book = shared.book
    chosen = choose(layer.blocks, book, paid, feedback)
    restored = layer.blocks.restore(chosen.kernels(book.words))
    index = np.ascontiguousarray(np.concatenate([part.T for part in chosen.index]))
    gain = np.ascontiguousarray(np.concatenate([part.T for part in chosen.gain]))
    code = KernelCode(shared.values, index, shared.step + unit, None if book.variant == "plain" else gain, layer.rows,
                      ROW_RESOLUTION)
    side = value_bits(shared.values, config) * layer.blocks.count / max(1, shared.kernels)
    bits = side + _bits(book, index, gain, config)
    lost = distortion(layer.target, restored)
    if layer.turned:
        restored = np.ascontiguousarray(restored.transpose(0, 2, 1))
    extra = {"plain": "", "signs": ", signs", "gains": ", gains"}[book.variant]
    return Candidate("kernels", code, restored, lost, bits,
                     f"{len(shared.values)} shared kernels of {layer.blocks.taps}{extra}", side)


def _bits(book: Book, index: npt.NDArray[np.int32], gain: npt.NDArray[np.int32], config: KernelConfig) -> float:
    if config.coder == "fixed":
        lengths = np.ceil(np.log2([book.size, book.high - book.low + 1]))
        return float(index.size * lengths.sum())
    alive = gain != 0
    bits = float(book.bits[index[alive]].sum())
    return bits + (0.0 if book.variant == "plain" else float(book.gain_bits[gain - book.low].sum()))
