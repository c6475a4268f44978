"""Bit-depth allocation as published: D(R) of every block is measured at the network's output.

"Transform quantization for CNN compression" (Young, Wang, Taubman, Girod, TPAMI 2021), section 4: each layer is
W = S T; `blocks` blocks of T and of S have a bit depth R and a step each, integers of fixed length. For each block
and depth the step is searched and D = mean over images of |y^ - y|^2 measured, all else unquantised; then
argmin D + lambda R count in each block. This costs thousands of runs of the network, for all lambdas together.

    tables = published.measure(plan, model)
    encoding = tables.encoding(price)

Where there is no network to run, D is the layer's quadratic metric tr(G E A E^T) of the statistics, and without
statistics the relative error of its weights: ours, not the paper's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .adapters.calls import undisturbed
from .adapters.replay import Replay
from .choice import Decision
from .config import Config
from .encoding import Encoding
from .errors import ConfigError, StatisticsError
from .plan import Plan
from .stage import forward
from .synthesis.transform import FIXED, basis_bytes
from .synthesis.transform_blocks import Box
from .tools import block_depths, candidate
from .tools.block_depths import Table
from .tools.block_transform import Blocks, Part, transform_layer
from .tools.metric import Matrix
from .tools.target import to_matrix

IMAGES = 32
"""Of the statistics' samples: D is their mean."""
NEGLIGIBLE = 3e-4
"""Share of the outputs' energy that all blocks together may err by where D(R) is no longer measured (35 dB)."""


def is_wanted(config: Config) -> bool:
    """Whether the configuration asks for fixed-length coding; ConfigError where it also asks for something else."""
    if config.transform.coder != "fixed":
        return False
    if set(config.tools or ()) - {"raw"} != {"transform"}:
        raise ConfigError(f"coder='fixed' is measured at the network's output, for all layers together, so it has no "
                          f"rivals: give tools=('transform',), not {config.tools!r}")
    for pattern, layer in config.layers.items():
        if layer.tool not in (None, "transform", "raw"):
            raise ConfigError(f"layers[{pattern!r}] asks for the tool {layer.tool!r}: beside coder='fixed' there is "
                              f"only \"raw\"")
    return True


@dataclass
class Tables:
    """What was measured: from it, encodings at any lambda."""

    plan: Plan
    layers: list[Blocks]
    tables: dict[str, list[Table]]  # of the blocks of each layer, part by part
    signal: float = 0.0  # mean over images of |y|^2; 0 without a network
    evaluations: int = 0  # of the network; 0 without one
    seconds: float = 0.0
    _codes: dict[tuple[str, bytes], Any] = field(default_factory=dict)

    @property
    def every(self) -> list[Table]:
        """Of all blocks, layer by layer."""
        return [table for blocks in self.layers for table in self.tables[blocks.name]]

    @property
    def note(self) -> str:
        """The cost, for people."""
        measured = sum(table.measured + 1 for table in self.every)
        how = f"measured in {self.evaluations} runs of the network on {IMAGES} samples at most"
        if not self.evaluations:
            how = "not measured at the output, as there is no network to run, but by " + (
                "each layer's relative error" if self.plan.statistics is None else
                "the layers' quadratic metric, tr(G E A E^T)")
        return (f"bit depths as published: {len(self.every)} blocks, {measured} distortions {how}, "
                f"{self.seconds:.1f} s")

    def price_for(self, budget: float) -> float:
        """The least lambda at which the elements of all blocks take at most `budget` bits."""
        return block_depths.price_for(self.every, budget)

    def encoding(self, price: float, spare: float = 0.0) -> Encoding:
        """Depths by lambda = `price`, then for `spare` more bits; BatchNorms and vectors at that lambda."""
        depths = block_depths.choose(self.every, price)
        if spare > 0:
            depths = block_depths.spend(self.every, depths, spare)
        encoding = Encoding(self.plan, price)
        first = 0
        for blocks in self.layers:
            tables = self.tables[blocks.name]
            self._encode(encoding, blocks, tables, depths[first : first + len(tables)])
            first += len(tables)
        return encoding.complete()

    def _encode(self, encoding: Encoding, blocks: Blocks, tables: list[Table],
                depths: npt.NDArray[np.int64]) -> None:
        key = blocks.name, depths.tobytes()
        if key not in self._codes:
            self._codes = {known: code for known, code in self._codes.items() if known[0] != blocks.name}
            self._codes[key] = blocks.code(tables, depths)
        code = self._codes[key]
        encoding.transforms[blocks.name] = code
        encoding.fitted.add(blocks.name)
        loss = sum(float(table.distortion[depth]) for table, depth in zip(tables, depths.tolist(), strict=True))
        count = int(np.prod(blocks.shape))
        encoding.decisions[blocks.name] = Decision(
            "transform", f"{blocks.label}, fixed length", count, float(block_depths.bits(tables, depths)),
            8.0 * basis_bytes(code, blocks.shape, FIXED), loss)


def measure(plan: Plan, model: nn.Module | None, progress: Callable[[str], None] | None = None,
            images: int = IMAGES, known: MutableMapping[str, list[Table]] | None = None) -> Tables:
    """Tables of all blocks of all layers: at the outputs of `model`, or, without one, by the layers' metric.

    known: tables of layers that need not be measured; new ones are added, so that an interrupted run can go on.
    Raises ConfigError for an nn.Module without samples, StatisticsError where the outputs are not finite.
    """
    start = time.perf_counter()
    layers = [transform_layer(plan.target(name), plan.config) for name in plan.layers]
    known = {} if known is None else known
    found = Tables(plan, layers, {})
    outputs = None
    with undisturbed(model) if model is not None else nullcontext():
        if model is not None:
            outputs = _Outputs(plan, model, images, sum(part.cuts.blocks for layer in layers for part in layer.parts))
            found.signal = outputs.signal
        for number, layer in enumerate(layers):
            if layer.name not in known:
                known[layer.name] = _by_metric(plan, layer) if outputs is None else outputs.tables(layer)
            found.tables[layer.name] = known[layer.name]
            if progress is not None:
                progress(f"D(R) measured on {number + 1} of {len(layers)} layers")
    found.evaluations = 0 if outputs is None else outputs.replay.evaluations
    found.seconds = time.perf_counter() - start
    return found


class _Outputs:
    """What a layer's errors do to the outputs of the network. `signal`: mean over images of |y|^2."""

    def __init__(self, plan: Plan, model: nn.Module, images: int, blocks: int) -> None:
        self.plan = plan
        samples = plan.statistics.samples if plan.statistics is not None else None
        if samples is None:
            raise ConfigError("coder='fixed' measures the network's outputs: it needs statistics with samples "
                              "(tersor.calibrate(..., keep=...))")
        chosen = {key: value[:images] for key, value in samples.items()} if isinstance(samples, dict) \
            else samples[:images]
        self.replay = Replay(model, lambda network: forward(network, chosen, images))
        reference = self.replay.reference
        self.signal = float((reference**2).sum()) / len(reference)
        if not np.isfinite(self.signal):
            raise StatisticsError("the network's outputs on the samples hold NaN or infinity")
        self.negligible = NEGLIGIBLE * self.signal / max(blocks, 1)

    def tables(self, layer: Blocks) -> list[Table]:
        """Of all blocks of a layer."""
        tensor = self.plan.inventory.tensors[layer.name].astype(np.float64)
        factor = self.plan.config.layer(layer.name).weight
        with self.replay.layer(layer.name) as own:
            def loss(weights: Matrix) -> float:
                """D of other weights, float64 in the tensor's shape."""
                y = self.replay.outputs(_like(weights, own))
                value = factor * float(((y - self.replay.reference) ** 2).sum()) / len(y)
                return value if np.isfinite(value) else float("inf")

            energy = float((tensor**2).sum())
            if loss(np.zeros_like(tensor)) == 0.0 and energy > 0:
                def relative(weights: Matrix) -> float:
                    """Of a layer that the outputs do not need: as if they did, like a typical layer."""
                    return self.signal * float(((weights - tensor) ** 2).sum()) / energy

                return _tables(layer, tensor, relative, self.negligible)
            return _tables(layer, tensor, loss, self.negligible)


def _by_metric(plan: Plan, layer: Blocks) -> list[Table]:
    """D = tr(G E A E^T), of the layer's statistics or of its relative error."""
    target = plan.target(layer.name, corrected=False)

    def loss(weights: Matrix) -> float:
        """D of other weights, float64 in the tensor's shape."""
        return candidate.distortion(target, np.asarray(to_matrix(weights, target.layer), dtype=np.float64))

    return _tables(layer, plan.inventory.tensors[layer.name].astype(np.float64), loss, 0.0)


def _tables(layer: Blocks, tensor: Matrix, loss: Callable[[Matrix], float], negligible: float) -> list[Table]:
    """Of all blocks; loss: D of other weights than `tensor`."""
    return [_table(layer, part, box, tensor, loss, negligible) for part in layer.parts for box in part.boxes()]


def _table(layer: Blocks, part: Part, box: Box, tensor: Matrix, loss: Callable[[Matrix], float],
           negligible: float) -> Table:
    values = part.values[box]
    return block_depths.measure(values, lambda restored: loss(tensor + layer.delta(part, box, restored - values)),
                                negligible)


def _like(weights: Matrix, own: Tensor) -> Tensor:
    """In the parameter's own element type."""
    return torch.from_numpy(weights).to(own.device, own.dtype)
