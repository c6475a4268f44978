"""A layer as kernels: blocks of `taps` neighbouring columns of its matrix, in coordinates where errors count alike.

With A^-1 = U^T U, an error e of block J (the taps of one input channel) costs g_i |e R_J|^2, R_J = U_JJ^-1, once
the later columns have made up for it as well as they can: the block version of `metric`. Rows are in units of
their own scale s_i, so one codebook serves rows of different size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch

from .metric import Matrix, Triangular
from .scalar import output_costs
from .target import LayerTarget

Metric: TypeAlias = Literal["block", "diagonal"]


FEW = 64
"""Of groups with fewer kernels than this on average, samples take some whole; of larger ones, a share of each."""


@dataclass(frozen=True)
class Group:
    """One group of a layer, m rows and c blocks of t columns each; the last block is padded with zeros.

    * `y`: float64 [c, m, t], weights in units of `scale` [m].
    * `whiten`: float64 [c, t, t], R of each block; zero for columns that are padding.
    * `columns`: the factor of A. `row_weight`: float64 [m, m], V_ir / V_ii at [i, r] in units of the rows, or None.
    * `weight`: float64 [m], g_i s_i^2: what |e R|^2 of a row costs.
    """

    y: Matrix
    scale: Matrix
    whiten: Matrix
    columns: Triangular
    row_weight: Matrix | None
    weight: Matrix

    @cached_property
    def white(self) -> Matrix:
        """float64 [c, m, t]: y R."""
        return np.asarray(np.matmul(self.y, self.whiten))

    @cached_property
    def pulled(self) -> Matrix:
        """float64 [c, m, t]: y R R^T, the right side of the normal equations."""
        return np.asarray(np.matmul(self.white, self.whiten.transpose(0, 2, 1)))

    @cached_property
    def metric(self) -> Matrix:
        """float64 [c, t, t]: R R^T."""
        return np.asarray(np.matmul(self.whiten, self.whiten.transpose(0, 2, 1)))


@dataclass(frozen=True)
class Blocks:
    """All groups of a layer. `taps`: columns to a block; `columns`: of the matrix without padding. `share`: of the
    layer's kernels that these are, below 1 for a sample."""

    groups: list[Group]
    taps: int
    columns: int
    share: float = 1.0

    @property
    def count(self) -> int:
        """Kernels."""
        return sum(group.y.shape[0] * group.y.shape[1] for group in self.groups)

    def restore(self, kernels: list[Matrix]) -> Matrix:
        """Kernels [c, m, t] of each group in units of the rows -> float64 [groups, m, n] in the units of W."""
        matrices = [kernel.transpose(1, 0, 2).reshape(group.y.shape[1], -1)[:, : self.columns] * group.scale[:, None]
                    for group, kernel in zip(self.groups, kernels, strict=True)]
        return np.stack(matrices)

    def sample(self, most: int, rng: np.random.Generator) -> Blocks:
        """About `most` of the kernels: some of the groups, rows and channels; without any feedback."""
        if self.count <= most:
            return self
        groups, ratio = self.groups, most / self.count
        if self.count < FEW * len(groups):
            kept = np.sort(rng.choice(len(groups), max(1, int(ratio * len(groups))), replace=False))
            part = [groups[i] for i in kept]
        else:
            part = [_thinned(group, max(1, int(ratio * group.y.shape[0] * group.y.shape[1])), rng) for group in groups]
        thin = replace(self, groups=part)
        return replace(thin, share=thin.count / self.count)


def _thinned(group: Group, most: int, rng: np.random.Generator) -> Group:
    c, m, _t = group.y.shape
    if c * m <= most:
        return group
    ratio = np.sqrt(most / (c * m))
    channels = np.sort(rng.choice(c, max(1, min(c, round(c * ratio))), replace=False))
    rows = np.sort(rng.choice(m, max(1, min(m, most // len(channels))), replace=False))
    return Group(np.ascontiguousarray(group.y[channels][:, rows]), group.scale[rows], group.whiten[channels],
                 group.columns.without_feedback(), None, group.weight[rows])


def blocks_of(target: LayerTarget, taps: int, scale: Matrix, *, feedback: bool = True,
              metric: Metric = "block") -> Blocks:
    """The kernels of a layer. scale: float64 [groups, m] > 0, the unit of each row.

    metric: "block" for the full taps' blocks of A; "diagonal": only A's diagonal counts, nothing is fed back from
    column to column.
    """
    costs = output_costs(target, feedback)
    groups = []
    for k in range(target.groups):
        columns = target.column_factors[k] if metric == "block" else _diagonal(target, k)
        rows = target.row_factors[k].factor
        weights = None
        if feedback and rows.upper is not None:
            ratio = np.triu(rows.upper / np.diag(rows.upper)[:, None], 1)
            weights = np.ascontiguousarray(ratio * scale[k][:, None] / scale[k][None, :])
        groups.append(Group(_cut(target.W[k] / scale[k][:, None], taps), scale[k], _whiteners(columns, taps),
                            columns if feedback else columns.without_feedback(), weights, costs[k] * scale[k] ** 2))
    return Blocks(groups, taps, target.W.shape[2])


def _diagonal(target: LayerTarget, group: int) -> Triangular:
    a = target.A[group]
    diagonal = np.asarray(np.diag(a) if a.ndim == 2 else a, dtype=np.float64)
    mean = float(diagonal.mean())
    return Triangular(None, np.maximum(diagonal, 1e-6 * mean) if mean > 0 else np.ones_like(diagonal))


def _cut(matrix: Matrix, taps: int) -> Matrix:
    """[m, n] -> [c, m, t] with zeros behind the last column."""
    m, n = matrix.shape
    blocks = -(-n // taps)
    padded = np.zeros((m, blocks * taps))
    padded[:, :n] = matrix
    return np.ascontiguousarray(padded.reshape(m, blocks, taps).transpose(1, 0, 2))


def _whiteners(columns: Triangular, taps: int) -> Matrix:
    n = len(columns.cost)
    blocks = -(-n // taps)
    out = np.zeros((blocks, taps, taps))
    for j in range(blocks):
        first, last = j * taps, min((j + 1) * taps, n)
        if columns.upper is None:
            part = np.diag(np.sqrt(columns.cost[first:last]))
        else:
            block = torch.from_numpy(np.ascontiguousarray(columns.upper[first:last, first:last]))
            eye = torch.eye(last - first, dtype=torch.float64)
            part = torch.linalg.solve_triangular(block, eye, upper=True).numpy()
        out[j, : last - first, : last - first] = part
    return out
