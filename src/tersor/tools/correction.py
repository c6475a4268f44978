"""How a layer's target makes up for the errors of the layers before it, as far as calibration images can tell.

With u the layer's input in the original network, u^ in the partly compressed one, and s - s^ what its shortcut lacks,
the least-squares target is W + W_d,

    W_d = B (H + damping)^-1,   B = E[(W u - W u^ + s - s^) u^^T],   H = E[u^ u^^T].

W_d has as many numbers as the layer, so it fits the calibration images better than the network. How far it is to be
trusted is asked of the images themselves: damping and a factor are those with which each half of the images explains
the other half best (two-fold cross-validation). A layer for which nothing explains the other half keeps its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..threads import in_order
from .metric import Matrix

DAMPINGS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Shares of H's mean diagonal that are tried."""
ALONE = 0.3
"""The one that is taken where there is one image only."""
WIDE = 1024
"""From so many inputs on the dampings are compared in single precision, twice as quick; the target itself never is."""

JUDGED = 96
"""Rows of wide layers that dampings are compared on, evenly spread: all of them would take as long as the
factorisations."""
STRIPES = 4
"""Parts of the rows of H, of which none is computed twice: H is symmetric."""

Pair = tuple[Matrix, Matrix, int]
"""H float64 [n, n], B [m, n], and the number of positions."""


@dataclass
class Moments:
    """Sums over positions, per group, with t = W u - W u^ + s - s^, what the layer's output lacks: of u^ u^^T
    [groups, n, n], t u^^T [groups, m, n], u^ and t themselves; float64."""

    second: Tensor
    lacking: Tensor
    sums: tuple[Tensor, Tensor]
    count: int = 0

    @staticmethod
    def zeros(groups: int, m: int, n: int) -> Moments:
        def of(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64)

        return Moments(of(n, n), of(m, n), (of(n), of(m)))

    def add(self, w: Tensor, u: Tensor, v: Tensor, s: Tensor | None) -> None:
        """Weights w [groups, m, n], columns u, u^ [groups, n, count] and s - s^ [groups, m, count]."""
        t = w @ (u - v)
        if s is not None:
            t += s
        n = v.shape[1]
        height = n if n < WIDE else -(-n // STRIPES)
        stripes = [slice(first, min(first + height, n)) for first in range(0, n, height)]
        work = [(v[:, rows], v[:, rows.start :]) for rows in stripes]
        *products, lacking = in_order(_product, [*work, (t, v)])
        for rows, product in zip(stripes, products, strict=True):
            self.second[:, rows, rows.start :] += product.double()
        self.lacking += lacking.double()
        for total, part in zip(self.sums, (v, t), strict=True):
            total += part.sum(2).double()
        self.count += u.shape[2]

    def group(self, k: int, centred: bool) -> Pair:
        """Means of one group; centred where a bias or BatchNorm makes up for a mean error."""
        count = max(self.count, 1)
        h, b = (part[k].numpy() / count for part in (self.second, self.lacking))
        h = np.triu(h)
        h = h + np.triu(h, 1).T
        if centred:
            mean_hat, mean_t = (part[k].numpy() / count for part in self.sums)
            h, b = h - np.outer(mean_hat, mean_hat), b - np.outer(mean_t, mean_hat)
        return h, b, self.count


def _product(pair: tuple[Tensor, Tensor]) -> Tensor:
    """left right^T per group."""
    left, right = pair
    return left @ right.mT


def correction(halves: Sequence[Pair], cost: Matrix) -> tuple[Matrix, Matrix]:
    """W_d float64 [m, n] of a group, and H of all images.

    halves: moments of the images, in one part or two. cost: [m], what an error of each output costs.
    """
    systems = [(h, b) for h, b, _ in halves]
    counts = np.array([count for *_, count in halves], dtype=np.float64)
    share = counts / max(counts.sum(), 1.0)
    h, b = (sum(f * part for f, part in zip(share, parts, strict=True)) for parts in zip(*systems, strict=True))
    damping, factor = trust(systems, cost) if len(systems) == 2 else (ALONE, 1.0)
    found = _solve(h, b, damping) if factor > 0 else None
    return np.zeros_like(b) if found is None else factor * found, np.asarray(h)


def trust(systems: Sequence[tuple[Matrix, Matrix]], cost: Matrix) -> tuple[float, float]:
    """Damping and factor with which (H, B) of either half makes up for most of the error of the other half.

    A change W_d takes 2 <W_d, B> - <W_d H, W_d> off the error of the images of which H, B are, rows weighed by `cost`;
    with a factor f on it, f times the first and f^2 times the second. What it takes off rises and falls once over the
    dampings: they are climbed from the middle one, as each takes two factorisations.
    """
    wide, m = len(systems[0][0]) >= WIDE, len(cost)
    kind = np.float32 if wide else np.float64
    rows = np.linspace(0, m - 1, JUDGED).astype(int) if wide and m > JUDGED else np.arange(m)
    halves = [(h.astype(kind), b[rows].astype(kind)) for h, b in systems]
    weights = cost[rows].astype(kind)
    found: dict[int, tuple[float, float]] = {}

    def gain(i: int) -> float:
        """What the i-th damping takes off, with the best factor."""
        if not 0 <= i < len(DAMPINGS):
            return -1.0
        if i not in found:
            linear, square = _explained(halves, weights, DAMPINGS[i])
            factor = min(max(linear / square, 0.0), 1.0) if square > 0 else 0.0
            found[i] = 2 * factor * linear - factor**2 * square, factor
        return found[i][0]

    best = len(DAMPINGS) // 2
    for step in (-1, 1):
        while gain(best + step) > gain(best):
            best += step
    best = best if gain(best) > 0.0 else len(DAMPINGS) - 1
    return (DAMPINGS[best], found[best][1]) if gain(best) > 0.0 else (ALONE, 0.0)


def _explained(halves: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]], cost: npt.NDArray[Any],
               damping: float) -> tuple[float, float]:
    """<W_d, B> and <W_d H, W_d> with W_d of either half and H, B of the other; (0, 0) where there is no W_d."""
    linear = square = 0.0
    for (h, b), (other_h, other_b) in zip(halves, reversed(halves), strict=True):
        change = _solve(h, b, damping)
        if change is None:
            return 0.0, 0.0
        weighed = cost[:, None] * change
        linear += float(np.vdot(weighed, other_b))
        square += float(np.vdot(weighed, change @ other_h))
    return linear, square


def _solve(h: npt.NDArray[Any], b: npt.NDArray[Any], damping: float) -> npt.NDArray[Any] | None:
    """B (H + damping)^-1; None where that is not positive definite."""
    damped = torch.from_numpy(h.copy())
    damped.diagonal().add_(damping * float(np.trace(h)) / len(h) + 1e-30)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return None
    return np.asarray(torch.cholesky_solve(torch.from_numpy(b.T.copy()), factor).numpy().T)
