"""Hessian-weighted k-means of scalars (Choi, El-Khamy, Lee, "Towards the limit of network quantization",
ICLR 2017).

The loss that quantization adds is, to second order, 1/2 sum_i h_ii (w_i - c_i)^2. So a centre is the weighted
mean of its members, c_j = sum h w / sum h, and because h multiplies the distance to every centre alike, each
weight still goes to the nearest one: cells are intervals and their bounds the midpoints of the centres. On
sorted weights with running sums an iteration of Lloyd's algorithm then costs k binary searches, whatever the
number of weights.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .clusters import Clusters, Doubles, Floats, checked, position_of_zero

Start = Literal["++", "linear", "density", "optimal"]
Bounds = npt.NDArray[np.int64]

ITERATIONS = 2000
TOLERANCE = 1e-10
"""Relative fall of the objective below which Lloyd's algorithm stops."""
SAMPLE = 1 << 16
"""Weights among which the k-means++ start looks."""
GROUPS = 1024
"""Runs of neighbouring weights that the optimal start keeps together; exact for so many distinct weights."""


def kmeans(w: Floats, h: Floats | None, k: int, *, start: Start = "++", seed: int = 0,
           iterations: int = ITERATIONS, zero: bool = False) -> Clusters:
    """At most `k` clusters of the weights `w` (any shape) that minimise sum h (w - c)^2.

    * `h`: sensitivities >= 0, same shape, or None for plain k-means.
    * `start`: "++" (k-means++, Arthur and Vassilvitskii 2007, with h in its probabilities), "linear" (evenly
      spaced between the extremes), "density" (evenly spaced quantiles), or "optimal" (dynamic programming
      over runs of neighbours: the global optimum when there are at most 1024 distinct weights).
    * `zero`: one centre stays exactly 0.

    A centre that loses its members is moved into the cluster that costs most, so that fewer than k come back
    only if there are fewer distinct weights. Deterministic. About 60 bytes of memory per weight.

    Raises `ConfigError` for k < 1, an unknown start, or unusable numbers.
    """
    if k < 1:
        raise ConfigError(f"k = {k} clusters; there must be at least 1")
    flat, weight = checked(w, h)
    problem = Sorted(flat, weight)
    values = problem.start(k, start, np.random.default_rng(seed))
    values, bounds, history = _lloyd(problem, values, k, iterations, zero)
    index = np.empty(flat.size, dtype=np.int32)
    index[problem.order] = np.repeat(np.arange(values.size, dtype=np.int32), np.diff(bounds))
    return Clusters(values, index, history, position_of_zero(values) if zero else -1)


class Sorted:
    """The weights in ascending order with running sums of h, h u and h u^2, u = w - shift: any interval's
    mean and cost in constant time. The shift, the weighted mean, keeps the differences of sums precise."""

    def __init__(self, w: Floats, h: Floats | None) -> None:
        self.order = np.argsort(w)
        self.w = w[self.order].astype(np.float64)
        n = self.w.size
        if h is not None and not h.any():
            h = None  # no sensitivity at all: all alike
        weight = None if h is None else h[self.order].astype(np.float64)
        self.h = weight
        self.shift = float(self.w.mean() if weight is None else self.w @ weight / weight.sum())
        u = self.w - self.shift
        self.mass = np.arange(n + 1, dtype=np.float64) if weight is None else _running(weight)
        product = u if weight is None else weight * u
        self.first = _running(product)
        product *= self.w - self.shift
        self.second = _running(product)

    def cells(self, values: Doubles) -> Bounds:
        """First sorted weight of each centre's cell, int64 [k + 1]; a weight on a midpoint goes up."""
        middles = (values[1:] + values[:-1]) / 2
        return np.concatenate([[0], np.searchsorted(self.w, middles), [self.w.size]])

    def sums(self, bounds: Bounds) -> tuple[Doubles, Doubles, Doubles]:
        """sum h, h u, h u^2 of each interval."""
        return np.diff(self.mass[bounds]), np.diff(self.first[bounds]), np.diff(self.second[bounds])

    def means(self, bounds: Bounds) -> Doubles:
        """Weighted means of non-empty intervals; the middle of one without sensitivity."""
        mass, first, _ = self.sums(bounds)
        low, high = self.w[bounds[:-1]], self.w[bounds[1:] - 1]
        mean = np.divide(first, mass, out=(low + high) / 2 - self.shift, where=mass > 0)
        return np.clip(mean + self.shift, low, high)  # sums of a tiny share of h are imprecise

    def exact_means(self, bounds: Bounds) -> Doubles:
        """The same, summed anew, and the plain mean of an interval without sensitivity."""
        starts = bounds[:-1]
        plain = np.add.reduceat(self.w, starts) / np.diff(bounds)
        if self.h is None:
            return plain
        mass = np.add.reduceat(self.h, starts)
        first = np.add.reduceat(self.h * (self.w - self.shift), starts)
        means = np.divide(first, mass, out=plain - self.shift, where=mass > 0) + self.shift
        return np.clip(means, self.w[starts], self.w[bounds[1:] - 1])

    def costs(self, bounds: Bounds, values: Doubles) -> Doubles:
        """sum h (w - value)^2 of each interval, at least 0."""
        mass, first, second = self.sums(bounds)
        c = values - self.shift
        return np.maximum(second - 2 * c * first + c * c * mass, 0.0)

    def start(self, k: int, how: Start, rng: np.random.Generator) -> Doubles:
        """Ascending centres, at most k."""
        n = self.w.size
        if how == "linear":
            edges = np.linspace(self.w[0], self.w[-1], 2 * k + 1)
            return np.unique(edges[1::2])
        if how == "density":
            return np.unique(self.w[(np.arange(k) * 2 + 1) * n // (2 * k)])
        if how == "++":
            chosen = np.arange(n) if n <= SAMPLE else np.sort(rng.integers(n, size=SAMPLE))
            return _plus_plus(self.w[chosen], None if self.h is None else self.h[chosen], k, rng)
        if how == "optimal":
            return self.means(_optimal(self, k))
        raise ConfigError(f"unknown start {how!r} of k-means; there are '++', 'linear', 'density', 'optimal'")


def _lloyd(problem: Sorted, values: Doubles, k: int, iterations: int,
           zero: bool) -> tuple[Doubles, Bounds, tuple[float, ...]]:
    """Lloyd's algorithm: (centres, their cells, objective after each iteration)."""
    if zero:
        values = values.copy()
        values[np.abs(values).argmin()] = 0.0
        values = np.unique(values)
    history: list[float] = []
    bounds = np.array([0, problem.w.size])
    for _ in range(max(1, iterations)):
        trial = _repair(problem, values, k, zero)
        cells = problem.cells(trial)
        means = problem.means(cells)
        if zero:
            means[trial == 0.0] = 0.0
        cost = float(problem.costs(cells, means).sum())
        if history and cost > history[-1]:
            break  # rounding: the step before was the last that helped
        finished = bool(history) and history[-1] - cost <= TOLERANCE * history[-1]
        values, bounds = means, cells
        history.append(cost)
        if finished:
            break
    exact = problem.exact_means(bounds)
    if zero:
        exact[values == 0.0] = 0.0
    return exact, bounds, tuple(history)


def _repair(problem: Sorted, values: Doubles, k: int, zero: bool) -> Doubles:
    """Centres that all have members: empty ones are dropped, and while there are fewer than k, one is added
    in the costlier half of the cluster that costs most. Adding a centre never raises the objective."""
    for _ in range(2 * k + 1):
        bounds = problem.cells(values)
        empty = np.diff(bounds) == 0
        if empty.any():
            values = values[~empty]
            continue
        if values.size >= k:
            break
        middles = np.clip(np.searchsorted(problem.w, values), bounds[:-1], bounds[1:])
        halves = np.sort(np.concatenate([bounds, middles]))
        cost = problem.costs(halves, np.repeat(values, 2))
        worst = int(cost.argmax())
        if cost[worst] <= 1e-14 * problem.second[-1]:
            break  # fewer distinct weights than centres
        added = float(problem.means(halves[worst:worst + 2])[0])
        if (zero and added == 0.0) or added in values:
            break
        values = np.sort(np.append(values, added))
    return np.asarray(values[np.diff(problem.cells(values)) > 0])


def _plus_plus(w: Doubles, h: Doubles | None, k: int, rng: np.random.Generator) -> Doubles:
    """k-means++: each next centre is a weight drawn with probability ~ h * (distance to its centre)^2, the
    best of 2 + ln k draws."""
    weight = np.ones(w.size) if h is None or not h.any() else h
    draws = 2 + int(np.log(k))
    centres = [w[_draw(weight, 1, rng)[0]]]
    distance = np.square(w - centres[0])
    while len(centres) < k:
        potential = weight * distance
        if not potential.any():
            break
        candidates = w[_draw(potential, draws, rng)]
        remaining = np.minimum(distance, np.square(w - candidates[:, None]))
        best = int((remaining @ weight).argmin())
        centres.append(candidates[best])
        distance = remaining[best]
    return np.unique(np.array(centres, dtype=np.float64))


def _draw(potential: Doubles, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions drawn with probability ~ potential."""
    running = np.cumsum(potential)
    found: Bounds = np.searchsorted(running, rng.random(count) * running[-1], side="right")
    return np.asarray(np.minimum(found, np.flatnonzero(potential)[-1]), dtype=np.int64)


def _optimal(problem: Sorted, k: int) -> Bounds:
    """Cells of the global optimum, when bounds may only lie between GROUPS runs of neighbours.

    D_j(i) = min over l of D_(j-1)(l) + cost(l, i): the least cost of the first i runs in j clusters (Wang and
    Song, Ckmeans.1d.dp, 2011). Runs end half at quantiles and half evenly in value, for the tails.
    """
    w, n = problem.w, problem.w.size
    edges: Bounds = np.flatnonzero(np.diff(w)) + 1
    if edges.size >= GROUPS:
        even = np.searchsorted(w, np.linspace(w[0], w[-1], GROUPS // 2))
        wanted = np.concatenate([even, np.arange(1, GROUPS // 2) * n // (GROUPS // 2)])
        # A run may only end where the weight changes, or equal weights would be parted.
        edges = edges[np.minimum(np.searchsorted(edges, np.unique(wanted)), edges.size - 1)]
    edges = np.concatenate([[0], np.unique(edges), [n]])
    mass, first, second = (sums[edges] for sums in (problem.mass, problem.first, problem.second))
    m, f, s = (sums[None, :] - sums[:, None] for sums in (mass, first, second))
    cost = s - np.divide(f * f, m, out=np.zeros_like(m), where=m > 0)
    cost = np.where(np.tri(edges.size, dtype=bool), np.inf, np.maximum(cost, 0.0))
    least = cost[0]
    steps: list[npt.NDArray[np.int64]] = []
    for _ in range(min(k, edges.size - 1) - 1):
        total = least[:, None] + cost
        steps.append(total.argmin(axis=0))
        least = total[steps[-1], np.arange(edges.size)]
    cuts = [edges.size - 1]
    for step in reversed(steps):
        cuts.append(int(step[cuts[-1]]))
    return np.concatenate([[0], edges[cuts[::-1]]])


def _running(x: Doubles) -> Doubles:
    """Running sums that begin with 0, [n + 1]."""
    sums = np.empty(x.size + 1)
    sums[0] = 0.0
    np.cumsum(x, out=sums[1:])
    return sums
