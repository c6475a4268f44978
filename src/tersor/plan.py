"""What the encoder does with each tensor of a model: decided once, before any encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .adapters.inventory import Array, BatchNormLayer, Inventory, WeightLayer
from .bitstream.dtypes import FLOATS, name_of
from .choice import Chooser
from .config import Config
from .modes import with_mode
from .statistics import Statistics
from .tools.clusters import Clusters
from .tools.metric import Matrix
from .tools.scalar import SLAB
from .tools.target import (
    LayerTarget,
    elementwise_target,
    factor_bytes,
    from_matrix,
    mean_sensitivity,
    measured_target,
    unmeasured_target,
)

FACTORS = 1 << 30
"""Bytes of triangular factors that are kept from one trial of the search to the next."""

SMALLEST_LAYER = 64
"""Weight tensors with fewer elements are coded like biases: a step each, no context to learn."""


@dataclass
class Plan:
    """Which tool each tensor gets, decided once from the model, the statistics and the configuration."""

    inventory: Inventory
    statistics: Statistics | None
    config: Config
    diagonals: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # given by the user
    layers: dict[str, WeightLayer] = field(default_factory=dict)
    batchnorms: dict[str, BatchNormLayer] = field(default_factory=dict)
    vectors: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    absorb: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)  # of the layers: those of the codebook tool
    memory: dict[tuple[str, ...], dict[int, Clusters]] = field(default_factory=dict)  # see `shared.cluster`
    factors: dict[str, dict[str, Any]] = field(default_factory=dict)  # see `remember`
    trust: Mapping[str, float] = field(default_factory=dict)  # see `reweigh`
    chooser: Chooser = field(init=False)
    notes: list[str] = field(init=False)  # for the user
    _lock: Any = field(default_factory=Lock, init=False)  # of `factors`

    def __post_init__(self) -> None:
        inventory = self.inventory
        weights = sum(inventory.tensors[layer.name].size for layer in inventory.layers)
        self.config, note = with_mode(self.config, weights)
        config, self.notes = self.config, [note] if note else []
        self.reweigh({})
        config.check_patterns(name for name, array in inventory.tensors.items() if array.ndim >= 2)
        for layer in inventory.layers:
            array = inventory.tensors[layer.name]
            usable = _is_lossy(array) and layer.name not in inventory.exact and array.size >= SMALLEST_LAYER
            if usable and config.tool(layer.name) != "raw":
                self.layers[layer.name] = layer
        self.shared = [name for name in inventory.tensors if name in self.layers and config.tool(name) == "codebook"]
        if not config.keep_exact:
            for bn in inventory.batchnorms:
                # One that calibration has not seen at work may be another function than it looks.
                seen = self.statistics is None or bn.prefix in self.statistics.batchnorms
                lossy = all(_is_lossy(inventory.tensors[name]) and name not in inventory.exact for name in bn.names)
                if seen and lossy and _is_plain(inventory, bn):
                    self.batchnorms[bn.prefix] = bn
            self._keep_orderly()
        taken = {name for bn in self.batchnorms.values() for name in bn.names} | set(self.layers)
        normed = {name for bn in inventory.batchnorms for name in bn.names}
        for name, array in inventory.tensors.items():
            if name in taken:
                continue
            # A variance on a uniform grid could become zero: BatchNorms that are not plain stay as they are.
            small = _is_lossy(array) and name not in inventory.exact and not config.keep_exact \
                and name not in normed
            wanted_raw = config.tool(name) == "raw" if array.ndim >= 2 else False
            (self.vectors if small and not wanted_raw else self.raw).append(name)
        if self.statistics is not None:
            self.absorb = {name: prefix for name, prefix in self.statistics.graph.absorb.items()
                           if name in self.layers and prefix in self.batchnorms}

    def _keep_orderly(self) -> None:
        """Only BatchNorms whose four tensors come one after the other, in the order of their payload."""
        owner = {name: bn.prefix for bn in self.batchnorms.values() for name in bn.names}
        sequence = [name for name in self.inventory.tensors if name in owner]
        place = {name: i for i, name in enumerate(sequence)}
        for bn in list(self.batchnorms.values()):
            first = place[bn.weight]
            if sequence[first : first + 4] != list(bn.names):
                del self.batchnorms[bn.prefix]

    def reweigh(self, trust: Mapping[str, float]) -> None:
        """Factors on the layers' distortions beside those of the user; what was learnt with others is forgotten."""
        self.trust = trust
        self.factors.clear()
        config = self.config
        self.chooser = Chooser(config, lambda: [self.target(name) for name in self.layers
                                                if "kernels" in config.rivals(name)])

    def weight(self, name: str) -> float:
        """Factor on a layer's distortion."""
        return self.config.layer(name).weight * self.trust.get(name, 1.0)

    def bias_of(self, name: str) -> str | None:
        """The key of a layer's own bias, where it is quantised and can take up a mean error."""
        bias = self.layers[name].bias
        return bias if bias in self.vectors else None

    def is_centred(self, name: str) -> bool:
        """Whether a mean error of the layer's output is made up for."""
        return name in self.absorb or self.bias_of(name) is not None

    def target(self, name: str, corrected: bool = True) -> LayerTarget:
        """The layer with its metric as calibration measured it, or without one.

        corrected: mean errors (and scales) are made up for by a bias or BatchNorm where there is one.
        """
        layer, tensor = self.layers[name], self.inventory.tensors[name]
        weight = self.weight(name)
        measured = self.statistics.layers.get(name) if self.statistics else None
        if measured is None:
            sensitivity = self.sensitivity(name)
            if sensitivity is not None:  # used by something that is no known layer
                return elementwise_target(layer, tensor, sensitivity, weight)
            return unmeasured_target(layer, tensor, weight * self._typical)
        target = measured_target(layer, tensor, measured, corrected and self.is_centred(name),
                                 corrected and name in self.absorb, weight)
        return target.with_factors(self.factors.get(name, {})) if corrected else target

    def remember(self, target: LayerTarget) -> None:
        """Keep factors of a layer's `target` that do not depend on what is before it, up to FACTORS bytes in all:
        factorising takes n^3 operations, and every trial of the search needs them."""
        measured = self.statistics.layers.get(target.name) if self.statistics else None
        if measured is None or target.name in self.factors:
            return
        found = {key: value for key, value in target.factors.items()
                 if key == "row_factors" or measured.coherent is not None}
        with self._lock:
            taken = sum(factor_bytes(factors) for factors in self.factors.values())
            if found and taken + factor_bytes(found) <= FACTORS:
                self.factors[target.name] = found

    def elementwise(self, name: str) -> npt.NDArray[np.floating] | None:
        """h of a weight, in its shape: as given by the user, else the logit Gauss-Newton diagonal, G_ii A_jj."""
        if self.diagonals:
            return self.diagonals.get(name)
        measured = self.statistics.layers.get(name) if self.statistics else None
        if measured is None:
            return self.statistics.vector_sensitivity.get(name) if self.statistics else None
        target = self.target(name)
        a, g = ([np.diag(part) if part.ndim == 2 else part for part in side] for side in (target.A, target.G))
        h = np.stack([np.outer(rows, columns) for rows, columns in zip(g, a, strict=True)])
        return np.asarray(from_matrix(h, target.layer, target.shape), dtype=np.float64)

    def sensitivity(self, name: str) -> npt.NDArray[np.floating] | None:
        """What calibration says of a tensor's elements (or of their mean [1], for a small layer); None if nothing."""
        if self.statistics is None:
            return None
        measured = self.statistics.layers.get(name)
        if measured is not None:
            return np.full(1, mean_sensitivity(measured) * self.weight(name))
        return self.statistics.vector_sensitivity.get(name)

    @cached_property
    def _typical(self) -> float:
        """What a relative error of 1 costs in the median measured layer; for layers that the output does not need."""
        measured = self.statistics.layers if self.statistics else {}
        costs = [mean_sensitivity(measured[name]) * float((self.inventory.tensors[name].astype(np.float64) ** 2).sum())
                 for name in self.layers if name in measured]
        return float(np.median(costs)) if costs else 1.0


def affine_of(inventory: Inventory, bn: BatchNormLayer) -> tuple[Matrix, Matrix]:
    """(a, b) float64 [C] of y = a z + b that a BatchNorm computes in eval mode."""
    return affine_map(inventory.tensors, bn)


def affine_map(tensors: Mapping[str, Array], bn: BatchNormLayer) -> tuple[Matrix, Matrix]:
    """The same with the tensors of another state of the model."""
    weight, bias, mean, variance = (np.asarray(tensors[name], dtype=np.float64) for name in bn.names)
    scale = weight / np.sqrt(variance + bn.eps)
    return scale, bias - scale * mean


def _is_lossy(array: Array) -> bool:
    """Whether a tensor may be quantised: floats, at least one, finite and with room to be rounded upwards."""
    if array.size == 0 or name_of(array.dtype) not in FLOATS:
        return False
    flat, most = array.reshape(-1), _largest(array) / 4
    return all(bool((np.abs(flat[first : first + SLAB].astype(np.float64)) <= most).all())
               for first in range(0, flat.size, SLAB))


def _largest(array: Array) -> float:
    """The largest number of the element type that the decoder's float32 holds too."""
    limits = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]
    return min(float(limits.max), float(np.finfo(np.float32).max))


def _is_plain(inventory: Inventory, bn: BatchNormLayer) -> bool:
    """Whether a BatchNorm is the affine map that its tool describes, in numbers that its element type holds."""
    variance = inventory.tensors[bn.running_var].astype(np.float64)
    if not 0.0 <= bn.eps < 1.0 or not (variance + bn.eps > 0.0).all() or variance.min() < 0.0:
        return False
    room = min(_largest(inventory.tensors[name]) for name in bn.names) / 64
    return all(bool((np.abs(part) <= room).all()) for part in affine_of(inventory, bn))
