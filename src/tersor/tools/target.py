"""One layer as the coding tools see it: its weight as matrices, its metric in triangular form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..adapters.inventory import WeightLayer
from ..statistics import LayerStatistics
from .metric import DAMPING, Matrix, Triangular, oas, triangular

COHERENCE = 0.7
"""Share of the coherent metric in A; the rest is A of independent positions, which is less noisy."""
COHERENT_DAMPING = 0.05
"""Damping of the mixture, after it was shrunk."""
SAMPLES = 3.0
"""Samples that an image counts for where the metric is shrunk: its gradient is a matrix, whose rows are no copies of
each other. (Held-out dB with 1 / 2 / 3 / 4 / 16 of them: ResNet-20 at 1.6 bits/weight, 80 images, 16.0 / 16.9 / 17.2 /
17.6 / 17.3, and 320 images, mean of six rates, 17.14 / - / - / 17.23 / -; SqueezeNet 1.1 with 256 images at 380 kB
23.26 / 23.14 / - / 23.07 / 22.98, unshrunk 22.80.)"""


@dataclass(frozen=True)
class RowFactor:
    """Factor of G, and G's own diagonal (the cost of an output's error when rows do not help each other)."""

    factor: Triangular
    diagonal: Matrix

    @property
    def cost(self) -> Matrix:
        return self.factor.cost


@dataclass(frozen=True)
class LayerTarget:
    """What a tool has to describe.

    * `W`: float64 [groups, m, n], m outputs and n inputs per group; the layer's matrix view.
    * `A`: [groups, n, n] or diagonal [groups, n], already centred where a mean error is made up for by a
      bias or BatchNorm. `G`: [groups, m, m] or diagonal [groups, m].
    * `absorbed`: a BatchNorm follows that takes up any scale and shift per output channel.

    The file keeps a tensor as rows of its axis 0, or of axis 1 where `swapped` (output channels first).
    """

    layer: WeightLayer
    shape: tuple[int, ...]
    W: Matrix
    A: npt.NDArray[np.floating]
    G: npt.NDArray[np.floating]
    absorbed: bool = False
    damping: float = field(default=DAMPING)

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def groups(self) -> int:
        return len(self.W)

    @property
    def count(self) -> int:
        """Weights."""
        return prod(self.shape)

    @cached_property
    def peaks(self) -> Matrix:
        """float64 [groups, m]: the largest magnitude in each row."""
        return np.asarray(np.maximum(self.W.max(axis=2, initial=0.0), -self.W.min(axis=2, initial=0.0)))

    @property
    def swapped(self) -> bool:
        return is_swapped(self.layer)

    @property
    def file_rows(self) -> int:
        return self.shape[1] if self.swapped else self.shape[0]

    @cached_property
    def column_factors(self) -> list[Triangular]:
        """Of A, per group."""
        return [triangular(a, self.damping) for a in self.A]

    @cached_property
    def row_factors(self) -> list[RowFactor]:
        """Of G, per group."""
        diagonals = [np.diag(g) if g.ndim == 2 else g for g in self.G]
        return [RowFactor(triangular(g, self.damping), np.asarray(diagonal, dtype=np.float64))
                for g, diagonal in zip(self.G, diagonals, strict=True)]

    @property
    def factors(self) -> dict[str, Any]:
        """What has been factorised so far, for `with_factors`."""
        return {key: vars(self)[key] for key in ("column_factors", "row_factors") if key in vars(self)}

    def with_factors(self, factors: Mapping[str, Any]) -> LayerTarget:
        """The target itself, with factors that are known of the same A or G."""
        vars(self).update(factors)  # where cached_property keeps them
        return self

    def outline(self) -> LayerTarget:
        """All that steps depend on, without weights and matrices."""
        groups, m, _ = self.W.shape
        columns = [factor.without_feedback() for factor in self.column_factors]
        rows = [RowFactor(factor.factor.without_feedback(), factor.diagonal) for factor in self.row_factors]
        light = replace(self, W=np.zeros((groups, m, 0)), A=np.zeros((groups, 0)), G=np.zeros((groups, 0)))
        return light.with_factors({"column_factors": columns, "row_factors": rows, "peaks": self.peaks})

    def by_channel(self, per_row: Matrix) -> Matrix:
        """[groups, m] -> [channels]: mean over the matrix rows that belong to one output channel."""
        taps = self._taps_per_channel
        return np.asarray(per_row.reshape(-1, taps).mean(axis=1))

    def from_channel(self, per_channel: Matrix) -> Matrix:
        """[channels] -> [groups, m]."""
        return np.repeat(per_channel, self._taps_per_channel).reshape(self.groups, -1)

    def to_file(self, q: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Integers [groups, m, n] -> the file's matrix [rows, columns]."""
        tensor = from_matrix(q, self.layer, self.shape)
        moved = tensor.swapaxes(0, 1) if self.swapped else tensor
        return np.ascontiguousarray(moved).reshape(self.file_rows, -1)

    @property
    def _taps_per_channel(self) -> int:
        return prod(self.shape[2:]) if self.layer.kind == "conv_transposed" else 1


def factor_bytes(factors: Mapping[str, Any]) -> int:
    """Of the matrices in `LayerTarget.factors`."""
    found = [*factors.get("column_factors", ()), *(row.factor for row in factors.get("row_factors", ()))]
    return sum(factor.upper.nbytes for factor in found if factor.upper is not None)


def is_swapped(layer: WeightLayer) -> bool:
    """Whether axis 1 holds the output channels."""
    return layer.kind in ("conv_transposed", "embedding")


def to_matrix(tensor: npt.NDArray[np.generic], layer: WeightLayer) -> npt.NDArray[np.generic]:
    """A weight tensor -> [groups, m, n], m outputs and n inputs per group, as in `LayerStatistics`."""
    if layer.kind == "embedding":
        return tensor.T[None]
    if layer.kind == "conv_transposed":
        per_group = tensor.reshape(layer.groups, tensor.shape[0] // layer.groups, -1)
        return per_group.transpose(0, 2, 1)
    return tensor.reshape(layer.groups, tensor.shape[0] // layer.groups, -1)


def from_matrix(matrix: npt.NDArray[np.generic], layer: WeightLayer, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """The inverse of `to_matrix`."""
    if layer.kind == "embedding":
        return np.asarray(matrix[0].T.reshape(shape))
    if layer.kind == "conv_transposed":
        return np.asarray(matrix.transpose(0, 2, 1).reshape(shape))
    return np.asarray(matrix.reshape(shape))


def measured_target(layer: WeightLayer, tensor: npt.NDArray[np.generic], statistics: LayerStatistics,
                    centred: bool, absorbed: bool, weight: float = 1.0) -> LayerTarget:
    """The target with the metric that calibration measured.

    centred: a bias or BatchNorm follows, so that the mean of an output error costs nothing.
    weight: factor on the layer's distortion (a user's override).
    """
    a = statistics.A.astype(np.float64)
    mean = statistics.mean.astype(np.float64)
    if centred:
        a = np.maximum(a - statistics.positions * mean**2, 0.0) if a.ndim == 2 else \
            a - statistics.positions * mean[:, :, None] * mean[:, None, :]
    matrix = np.array(to_matrix(tensor, layer), dtype=np.float64)
    g = statistics.G.astype(np.float64) * weight
    if statistics.coherent is None:
        return LayerTarget(layer, tensor.shape, matrix, a, g, absorbed)
    mixed, g = _with_coherent(a, g, statistics, centred, weight)
    return LayerTarget(layer, tensor.shape, matrix, np.stack([_shrunk(part, statistics.images) for part in mixed]), g,
                       absorbed, COHERENT_DAMPING)


def _shrunk(a: Matrix, images: int) -> Matrix:
    """A as far as so many images tell it (`metric.oas`): feedback that relies on directions in which few images happen
    to have little does harm on others."""
    share = oas(a, SAMPLES * images)
    return np.asarray((1.0 - share) * a + share * np.trace(a) / len(a) * np.eye(len(a)))


def _with_coherent(a: Matrix, g: Matrix, statistics: LayerStatistics, centred: bool,
                   weight: float) -> tuple[Matrix, Matrix]:
    """A as a mixture with `Coherent`, and both scaled so that tr(A) tr(G) is what the gradients really have."""
    coherent = statistics.coherent
    assert coherent is not None
    exact = coherent.centred(statistics.mean) if centred else coherent.second.astype(np.float64)
    # Rounding of a difference of large sums must not make a metric indefinite: damping is far above it.
    norms, traces = (np.maximum(np.einsum("gnn->g", part), 0.0) for part in (exact, a))
    total = (np.einsum("gmm->g", g) if g.ndim == 3 else g.sum(axis=1)) / weight
    ready = (norms > 0) & (traces > 0) & (total > 0)
    factor = np.divide(norms, traces * total, out=np.ones_like(norms), where=ready)[:, None, None]
    unit = np.divide(1.0, total, out=np.zeros_like(total), where=ready)[:, None, None]
    mixed = np.where(ready[:, None, None], (1 - COHERENCE) * factor * a + COHERENCE * unit * exact, a)
    return mixed, g


def elementwise_target(layer: WeightLayer, tensor: npt.NDArray[np.generic], sensitivity: npt.NDArray[np.floating],
                       weight: float = 1.0) -> LayerTarget:
    """The target with a sensitivity h of each weight (the tensor's shape): A and G diagonal, G_i A_j close to h_ij."""
    h = np.asarray(to_matrix(sensitivity, layer), dtype=np.float64)
    matrix = np.array(to_matrix(tensor, layer), dtype=np.float64)
    mean = h.mean(axis=(1, 2), keepdims=True)
    a = np.divide(h.mean(axis=1, keepdims=True), mean, out=np.ones((len(h), 1, h.shape[2])), where=mean > 0)
    return LayerTarget(layer, tensor.shape, matrix, a[:, 0], h.mean(axis=2) * weight)


def mean_sensitivity(statistics: LayerStatistics) -> float:
    """Mean over a layer's weights of their sensitivity h = E (d(v.y) / dw)^2."""
    def traces(matrices: npt.NDArray[np.floating]) -> Matrix:
        full = matrices.ndim == 3
        return np.asarray((np.einsum("gnn->gn", matrices) if full else matrices).mean(axis=1), dtype=np.float64)

    return float((traces(statistics.A) * traces(statistics.G)).mean())


def unmeasured_target(layer: WeightLayer, tensor: npt.NDArray[np.generic], weight: float = 1.0) -> LayerTarget:
    """The target without statistics: A = I, G = I / (mean square * count).

    Every layer's relative error then counts alike: sum over layers of |dW|^2 / |W|^2.
    """
    matrix = np.array(to_matrix(tensor, layer), dtype=np.float64)
    energy = float((matrix**2).sum())
    groups, m, n = matrix.shape
    scale = weight / energy if energy > 0 else 1.0
    return LayerTarget(layer, tensor.shape, matrix, np.ones((groups, n)), np.full((groups, m), scale), damping=0.0)
