"""Rows into classes: rows with alike statistics share a table, where that pays for the map that says so.

Lloyd's algorithm on code length: each class has a distribution, each row moves to the class that codes it
in the fewest bits (the bits of the map included), and the distributions are taken again. A matrix whose rows
gain too little by choosing for themselves names one class for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CLASSES = 8
_ROUNDS = 8
_TRIED = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Units:
    """What can choose a class: single rows, or whole matrices where rows are too short or too many.

    counts: int64 [units, window]; matrix: int64 [units], ascending, the matrix of each unit.
    """

    counts: NDArray[np.int64]
    matrix: NDArray[np.int64]


def choose(units: Units, most: int = MAX_CLASSES) -> NDArray[np.int64]:
    """The class 0 .. k-1 of each unit, k <= most, every class in use; all zero when one class is cheapest."""
    return choose_priced(units, most)[0]


def choose_priced(units: Units, most: int = MAX_CLASSES) -> tuple[NDArray[np.int64], float]:
    """The classes, and the bits of data, tables and map as they are estimated."""
    one = np.zeros(units.matrix.size, np.int64)
    best, cost = one, _price(units, one, 1)
    if units.matrix.size < 2 or most < 2:
        return one, cost
    for k in _TRIED:
        if k > most:
            break
        classes = _lloyd(units, k)
        if (price := _price(units, classes, k)) < cost:
            best, cost = classes, price
    return np.unique(best, return_inverse=True)[1].astype(np.int64), cost


def kinds(classes: Sequence[NDArray[np.int64]], k: int) -> list[int]:
    """Per matrix, the one class of all its rows, or k when they differ. classes: one array per matrix."""
    return [int(c[0]) if (c == c[0]).all() else k for c in classes]


def _lloyd(units: Units, k: int) -> NDArray[np.int64]:
    counts = units.counts.astype(np.float64)
    sizes = counts.sum(axis=1)
    window = np.arange(counts.shape[1])
    centre = (counts.sum(axis=0) @ window) / max(1.0, sizes.sum())
    spread = counts @ np.abs(window - centre) / np.maximum(sizes, 1)
    order = np.argsort(spread, kind="stable")
    share = np.cumsum(sizes[order]) / max(1.0, sizes.sum())
    classes = np.empty(order.size, np.int64)
    classes[order] = np.minimum((share * k).astype(np.int64), k - 1)
    starts = np.flatnonzero(np.diff(units.matrix, prepend=-1))
    overall = counts.sum(axis=0) / max(1.0, sizes.sum())
    for _ in range(_ROUNDS):
        totals = np.stack([counts[classes == c].sum(axis=0) for c in range(k)])
        model = (totals + overall) / (totals.sum(axis=1, keepdims=True) + 1)
        cost = counts @ -np.log2(np.maximum(model, 1e-9)).T
        map_cost = -np.log2((np.bincount(classes, minlength=k) + 1) / (classes.size + k))
        own = np.argmin(cost + map_cost, axis=1)
        own_bits = np.add.reduceat(np.min(cost + map_cost, axis=1), starts)
        shared = np.add.reduceat(cost, starts, axis=0)
        use_own = own_bits < shared.min(axis=1)
        matrix = np.cumsum(np.diff(units.matrix, prepend=-1) > 0) - 1
        renewed = np.where(use_own[matrix], own, np.argmin(shared, axis=1)[matrix])
        if (renewed == classes).all():
            break
        classes = renewed
    return classes


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    """Total ideal bits of counts under their own distribution."""
    used = counts[counts > 0].astype(np.float64)
    return float(used @ (np.log2(used.sum()) - np.log2(used))) if used.size else 0.0


def _price(units: Units, classes: NDArray[np.int64], k: int) -> float:
    """Bits of data, tables and map, all estimated."""
    bits = 0.0
    for c in range(k):
        total = units.counts[classes == c].sum(axis=0)
        bits += _entropy_bits(total) + 8 * (5 + np.count_nonzero(total))
    if k == 1:
        return bits
    split = np.split(classes, np.flatnonzero(np.diff(units.matrix)) + 1)
    first = kinds(split, k)
    symbols = np.concatenate([first, *(c for c, kind in zip(split, first, strict=True) if kind == k)])
    return bits + _entropy_bits(np.bincount(symbols)) + 8 * (5 + k)
