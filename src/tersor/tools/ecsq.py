"""Entropy-constrained scalar quantization (ECSQ) by iteration (Choi, El-Khamy, Lee, ICLR 2017).

Minimises J = sum_i h_i (w_i - c_i)^2 + price * N * H, H the entropy of the index in bits/weight. In turn:

    assign   each weight to argmin_j  h (w - c_j)^2 - price * log2 p_j
    update   p_j = share of the weights in cluster j, c_j = sum h w / sum h over it

Neither step can raise J: the assignment minimises it for given c and p, the means for given clusters, and
-log2 of the shares is the cheapest code for them. Clusters that lose all members disappear: price decides
how many remain.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bitstream import native
from ..errors import ConfigError
from .clusters import Clusters, Doubles, Floats, Index, checked, position_of_zero
from .kmeans import Start, kmeans

ITERATIONS = 100
TOLERANCE = 1e-6
"""Relative fall of J below which the iteration stops."""
CHUNK = 1 << 20
"""Weights per call of the kernel. Sums are added chunk by chunk, so threads do not change the result."""


def _declare(name: str, dtype: npt.DTypeLike) -> Callable[..., Any]:
    doubles = native.array(np.float64)
    out = native.array(np.float64, writable=True)
    return native.function(name, [
        native.array(dtype), native.POINTER, native.INT64, doubles, doubles, native.INT64,
        native.INT32, native.array(np.int32, writable=True), native.array(np.int64, writable=True),
        out, out, out])


_assign = {np.dtype(np.float32): _declare("tersor_ecsq_assign_f32", np.float32),
           np.dtype(np.float64): _declare("tersor_ecsq_assign_f64", np.float64)}


def ecsq(w: Floats, h: Floats | None, k: int, price: float, *, start: Start | Clusters = "++", seed: int = 0,
         iterations: int = ITERATIONS, zero: bool = False, threads: int | None = None) -> Clusters:
    """At most `k` clusters of the weights `w` (any shape) at lambda = `price`, in units of h w^2 per bit.

    * `h`: sensitivities >= 0, same shape, or None for 1.
    * `start`: clusters to begin with, or how k-means begins, whose result then is the start. At price 0 the
      result is that of k-means.
    * `zero`: one centre stays exactly 0 (as long as it has members).
    * `threads`: of the assignment; all cores if None.

    `history` is J after each iteration. Deterministic, whatever the number of threads.
    Raises `ConfigError` for a negative price, k < 1, or unusable numbers.
    """
    if not (price >= 0.0 and np.isfinite(price)):
        raise ConfigError(f"price {price} must be a finite number, at least 0")
    flat, weight = checked(w, h)
    first = (start if isinstance(start, Clusters) else
             kmeans(flat, weight, k, start=start, seed=seed, zero=zero))
    if first.index.size != flat.size or first.values.size > k:
        raise ConfigError(f"the start has {first.values.size} clusters of {first.index.size} weights, not at "
                          f"most {k} of {flat.size}")
    if zero and not (first.values == 0.0).any():
        raise ConfigError("zero=True, but the clusters to start with have no centre at 0")
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        return _iterate(_Problem(flat, weight, price, zero, pool), first, iterations)


def sweep(w: Floats, h: Floats | None, k: int, prices: Sequence[float], *, start: Start = "++",
          seed: int = 0, zero: bool = False, threads: int | None = None) -> Iterator[tuple[float, Clusters]]:
    """(price, `ecsq` at it) for each price in ascending order, each begun where the one before ended."""
    flat, weight = checked(w, h)
    clusters = kmeans(flat, weight, k, start=start, seed=seed, zero=zero)
    for price in sorted(prices):
        keeps_zero = zero and bool((clusters.values == 0.0).any())
        clusters = ecsq(flat, weight, k, price, start=clusters, zero=keeps_zero, threads=threads)
        yield price, clusters


def ecsq_at_entropy(w: Floats, h: Floats | None, k: int, bits: float, *, start: Start = "++", seed: int = 0,
                    zero: bool = False, tolerance: float = 0.01, threads: int | None = None) -> Clusters:
    """`ecsq` at the price, found by bisection, where the entropy is in [bits - tolerance, bits] bits/weight.

    Where no price gets there (entropy jumps when a cluster disappears; or k-means itself is below), the
    largest entropy below `bits` that was found. Raises `ConfigError` as `ecsq` does, and for bits <= 0.
    """
    if not bits > 0.0:
        raise ConfigError(f"{bits} bits/weight: must be above 0")
    flat, weight = checked(w, h)
    first = kmeans(flat, weight, k, start=start, seed=seed, zero=zero)
    if first.entropy <= bits:
        return first
    whole = kmeans(flat, weight, 1)
    energy = whole.history[-1] / flat.size + np.finfo(np.float64).tiny
    low, high, best = np.log(1e-9 * energy), np.log(1e3 * energy), whole
    for _ in range(30):
        middle = (low + high) / 2
        # From k-means each time: dead clusters do not come back, and bisection goes both ways.
        found = ecsq(flat, weight, k, float(np.exp(middle)), start=first, zero=zero and first.zero >= 0,
                     threads=threads)
        if found.entropy > bits:
            low = middle
            continue
        high = middle
        if found.entropy >= best.entropy:
            best = found
        if bits - found.entropy <= tolerance:
            break
    return best


@dataclass(frozen=True)
class _Problem:
    w: Floats
    h: Floats | None
    price: float
    zero: bool
    pool: ThreadPoolExecutor

    def assign(self, values: Doubles, bits: Doubles,
               index: Index) -> tuple[npt.NDArray[np.int64], Doubles, Doubles, float]:
        """The cheapest centre of every weight, into `index`: (counts, sum h, sum h (w - value)) of each
        centre [k], and sum h (w - value)^2."""
        rates = np.ascontiguousarray(self.price * bits)
        kernel, simd = _assign[self.w.dtype], native.simd_level()

        def chunk(begin: int) -> tuple[npt.NDArray[np.int64], Doubles]:
            part = slice(begin, min(begin + CHUNK, self.w.size))
            counts = np.empty(values.size, dtype=np.int64)
            mass, first, distortion = np.empty(values.size), np.empty(values.size), np.empty(1)
            h = None if self.h is None else self.h[part]
            native.check(kernel(self.w[part], native.pointer(h), part.stop - begin, values, rates,
                                values.size, simd, index[part], counts, mass, first, distortion), "ECSQ")
            return counts, np.concatenate([mass, first, distortion])

        parts = list(self.pool.map(chunk, range(0, self.w.size, CHUNK)))
        counts = np.sum([part[0] for part in parts], axis=0)
        sums = np.sum([part[1] for part in parts], axis=0)
        return counts, sums[:values.size], sums[values.size:-1], float(sums[-1])


def _iterate(problem: _Problem, start: Clusters, iterations: int) -> Clusters:
    values, counts = start.values, start.counts
    values, counts = values[counts > 0], counts[counts > 0]
    index = np.empty(problem.w.size, dtype=np.int32)
    history: list[float] = []
    for _ in range(max(1, iterations)):
        bits = _lengths(counts)
        counts, mass, first, distortion = problem.assign(values, bits, index)
        moved = np.divide(first, mass, out=np.zeros_like(values), where=mass > 0)
        if problem.zero:
            moved[values == 0.0] = 0.0
        distortion -= float((moved * (2 * first - moved * mass)).sum())  # of the members' new centres
        alive = counts > 0
        values = values + moved
        if not alive.all():
            index = (np.cumsum(alive, dtype=np.int32) - np.int32(1))[index]
            values, counts = values[alive], counts[alive]
        values, counts, index = _ordered(values, counts, index)
        history.append(max(distortion, 0.0) + problem.price * float(counts @ _lengths(counts)))
        if len(history) > 1 and history[-2] - history[-1] <= TOLERANCE * history[-2]:
            break
    return Clusters(values, index, tuple(history), position_of_zero(values) if problem.zero else -1)


def _lengths(counts: npt.NDArray[np.int64]) -> Doubles:
    """-log2 p of clusters that all have members."""
    return np.asarray(np.log2(counts.sum()) - np.log2(counts.astype(np.float64)))


def _ordered(values: Doubles, counts: npt.NDArray[np.int64],
             index: Index) -> tuple[Doubles, npt.NDArray[np.int64], Index]:
    """Strictly ascending values. Cells are no intervals here (bounds depend on h), so that means may pass
    each other, or, rarely, meet: then they become one cluster."""
    if (np.diff(values) > 0.0).all():
        return values, counts, index
    unique, position = np.unique(values, return_inverse=True)
    merged = np.zeros(unique.size, dtype=np.int64)
    np.add.at(merged, position, counts)
    return unique, merged, position.astype(np.int32)[index]
