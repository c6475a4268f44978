"""How far a file is from the limit, layer by layer: bits that were spent beside the least that any code needs.

    for row in tersor.rate_limits("resnet20.tersor", model, stats):
        print(row.name, row.bits, row.shannon, row.gap)

Bits are a layer's real share of the file (`tersor.anatomy`), the error is that of the weights that the file gives
back, the limits are those of `tersor.tools.ruler` at this error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from .adapters.formats import OpenedModel
from .adapters.inventory import Array
from .anatomy import anatomy
from .bitstream.source import Readable
from .config import Config
from .decoder import TersorFile, load, tool_name
from .encoder import Model, inventory_of, opened
from .encoding import Encoding
from .errors import ModelError, StatisticsError
from .limits import Limits
from .lockstep import lockstep_walk
from .plan import Plan, affine_map, affine_of
from .stage import Mismatch, prepare
from .statistics import Statistics
from .tools import ruler
from .tools.metric import Matrix
from .tools.ruler import Limit
from .tools.target import LayerTarget, to_matrix


def rate_limits(file: Readable, model: Model, stats: Statistics, *, limits: Limits | None = None) -> list[Limit]:
    """The ruler beside every coded weight of a .tersor file (path, bytes or binary file); `ruler.overall` sums up.

    * `model`: what was compressed, as for `tersor.compress`.
    * `stats`: of this model, `tersor.calibrate`; its metric is the one that D is measured in.

    With an nn.Module and samples in `stats`, a layer's error counts from the target that makes up for the errors of
    the layers before it, which is what the encoder aims at; else from the original weights, and what a file owes to
    such corrections then looks like an error. What a following BatchNorm of the file takes up is put back. Layers that
    are exact have no limit and are left out.

    Raises `FormatError` (a bad file), `StatisticsError` (of another model, or without this model's layers),
    `ModelError` (the file holds another model).
    """
    if isinstance(model, str | os.PathLike | OpenedModel):
        model = opened(model).model
    inventory = inventory_of(model)
    stats.check(inventory)
    if not isinstance(model, nn.Module):
        inventory = stats.explain(inventory)
    bits = {part.name: 8.0 * part.bytes for part in anatomy(file, limits=limits)}
    with load(file, limits) as source:
        for name, array in inventory.tensors.items():
            if name not in source or source.record(name).shape != array.shape:
                raise ModelError(f"{name} is not in the file, or of another shape: it holds another model")
        # In the file's order, in which a BatchNorm's tensors stand together.
        inventory = replace(inventory, tensors={name: inventory.tensors[name] for name in source
                                                if name in inventory.tensors})
        tools = {tool_name(section.tool) for section in source.manifest.sections}
        config = Config(tools=("scalar",), keep_exact="batchnorm" not in tools and "vector" not in tools)
        replay = _Replay(Plan(inventory, stats, config), 1.0, file=source, bits=bits)
        stage = prepare(stats, model, inventory) if isinstance(model, nn.Module) else None
        if isinstance(model, nn.Module) and stage is not None:
            try:
                lockstep_walk(replay, model, stage)
            except Mismatch:
                replay.rows.clear()
        replay.complete()
    rows = [replay.rows[name] for name in inventory.tensors if name in replay.rows]
    if not rows:
        raise StatisticsError("none of the file's coded weights was measured in these statistics; calibrate the model "
                              "that was compressed")
    return rows


@dataclass
class _Replay(Encoding):
    """An encoding that is done already: every layer is what the file says, and the ruler is put beside it."""

    file: TersorFile = field(kw_only=True)
    bits: Mapping[str, float] = field(kw_only=True)
    rows: dict[str, Limit] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return len(self.rows) == len(self._measured)

    @property
    def _measured(self) -> set[str]:
        """Weights that are coded and that calibration has seen."""
        assert self.plan.statistics is not None
        return self.bits.keys() & self.plan.statistics.layers.keys() & self.plan.layers.keys()

    def encode_layer(self, target: LayerTarget) -> Array:
        name = target.name
        restored = np.array(self.file[name])
        if name in self._measured and name not in self.rows:
            matrix = np.asarray(to_matrix(restored, target.layer), dtype=np.float64)
            self.rows[name] = ruler.limit(target, matrix * self._taken_up(target)[:, :, None], self.bits[name])
        return restored

    def encode_batchnorm(self, prefix: str, scale: Matrix, mean_in: Matrix,
                         mean_out: Matrix) -> tuple[Matrix, Matrix]:
        return affine_map(self.file, self.plan.batchnorms[prefix])

    def encode_vector(self, name: str, values: npt.NDArray[Any]) -> Array:
        return np.array(self.file[name])

    def complete(self) -> Encoding:
        for name in self.plan.layers:
            if name in self._measured and name not in self.rows:
                self.encode_layer(self.plan.target(name))
        return self

    def _taken_up(self, target: LayerTarget) -> Matrix:
        """Factors [groups, m] of the file's BatchNorm over the model's, where one follows."""
        prefix = self.plan.absorb.get(target.name)
        if prefix is None:
            return np.ones(target.W.shape[:2])
        original, _ = affine_of(self.plan.inventory, self.plan.batchnorms[prefix])
        ours, _ = affine_map(self.file, self.plan.batchnorms[prefix])
        used = np.abs(original) > 1e-6 * np.abs(original).max(initial=1e-30)
        return target.from_channel(np.divide(ours, original, out=np.ones_like(ours), where=used))
