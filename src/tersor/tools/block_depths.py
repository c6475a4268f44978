"""Bit depths of blocks from measured distortions, as published. NumPy only; nothing here knows a network.

The fixed-length quantiser of "Transform quantization for CNN compression" (Young, Wang, Taubman, Girod, TPAMI
2021) with depth R and step s: q = clip(round(t / s), -2^(R-1), 2^(R-1) - 1), 0 where R = 0. Each block of a layer
has a table D(R), measured at the network's output with all else unquantised; then independently in every block

    R = argmin over R of D(R) + lambda R count,

the best that any choice of depths can do at its total of bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..synthesis import grid
from .metric import Matrix

DEEPEST = 8
"""Bits of an element."""
STRIDE = grid.RESOLUTION // 2
"""Steps are tried on a grid of half octaves."""
MOST_MOVES = 8
"""Of the search for a step, in one direction."""


@dataclass(frozen=True)
class Table:
    """One block: D float64 [DEEPEST + 1] and the index of the step on the grid, int64 [DEEPEST + 1], for each depth.

    `count`: its elements. `measured`: depths up to this one were measured; above, D follows the weight error.
    """

    count: int
    distortion: Matrix
    step_index: npt.NDArray[np.int64]
    measured: int = DEEPEST


def quantise(values: Matrix, depth: int, step_index: int) -> npt.NDArray[np.int32]:
    """q, int32 in the shape of the values; `depth` 0 to 16.

    >>> quantise(np.array([-9.0, -0.6, 0.4, 0.6, 9.0]), 2, 0).tolist()
    [-2, -1, 0, 1, 1]
    """
    if depth == 0:
        return np.zeros(values.shape, np.int32)
    half = 1 << depth >> 1
    return np.clip(np.rint(values / step_value(step_index)), -half, half - 1).astype(np.int32)


def step_value(step_index: int) -> float:
    """The step that a decoder multiplies with (float32)."""
    return float(np.float32(grid.value(step_index)))


def restored(values: Matrix, depth: int, step_index: int) -> Matrix:
    """What a decoder has in place of the values."""
    return np.asarray(quantise(values, depth, step_index) * step_value(step_index), dtype=np.float64)


def measure(values: Matrix, distortion: Callable[[Matrix], float], negligible: float) -> Table:
    """The table of a block of coefficients or of numbers of a basis.

    distortion: D of restored values (in the shape of `values`) in place of the true ones. The step of a depth is
    searched from half of the best of one bit less, or from the step of least weight error where that is better
    (there are local minima), half an octave at a time while D falls. Depths beyond the first with D <=
    `negligible` are not measured: their steps are those of least weight error, and D falls as that does.
    """
    costs, steps = np.zeros(DEEPEST + 1), np.zeros(DEEPEST + 1, np.int64)
    costs[0] = distortion(np.zeros_like(values)) if values.any() else 0.0
    last, index = 0 if costs[0] <= negligible else DEEPEST, 0
    for depth in range(1, last + 1):
        starts = {_least_error(values, depth)[0]} | ({index - grid.RESOLUTION} if depth > 1 else set())
        index, costs[depth] = _search(lambda k, depth=depth: distortion(restored(values, depth, k)),  # type: ignore[misc]
                                      starts)
        steps[depth] = index
        if costs[depth] <= negligible:
            last = depth
            break
    error = _error(values, last, index)
    for depth in range(last + 1, DEEPEST + 1):
        steps[depth], smaller = _least_error(values, depth)
        costs[depth] = costs[last] * min(smaller / error, 1.0) if error > 0 else costs[last]
    return Table(values.size, costs, steps, last)


def choose(tables: Sequence[Table], price: float) -> npt.NDArray[np.int64]:
    """argmin over R of D(R) + price R count, int64 [blocks]; of equal ones the least R."""
    return np.array([int(np.argmin(table.distortion + price * table.count * np.arange(DEEPEST + 1)))
                     for table in tables], dtype=np.int64)


def bits(tables: Sequence[Table], depths: npt.NDArray[np.int64]) -> int:
    """Of all elements."""
    return int(sum(int(depth) * table.count for table, depth in zip(tables, depths, strict=True)))


def price_for(tables: Sequence[Table], budget: float) -> float:
    """The least lambda of a choice of at most `budget` bits (bisection in its logarithm)."""
    low, high = -400.0, 400.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if bits(tables, choose(tables, 2.0**middle)) <= budget else (middle, high)
    return float(2.0**high)


def spend(tables: Sequence[Table], depths: npt.NDArray[np.int64], spare: float) -> npt.NDArray[np.int64]:
    """Deeper blocks for `spare` more bits, the steepest fall of D per bit that still fits first."""
    depths = depths.copy()
    while True:
        best, choice = 0.0, None
        for block, (table, depth) in enumerate(zip(tables, depths.tolist(), strict=True)):
            for deeper in range(depth + 1, DEEPEST + 1):
                cost = (deeper - depth) * table.count
                gain = table.distortion[depth] - table.distortion[deeper]
                if cost <= spare and gain > best * cost:
                    best, choice = gain / cost, (block, deeper, cost)
        if choice is None:
            return depths
        block, deeper, cost = choice
        depths[block], spare = deeper, spare - cost


def _least_error(values: Matrix, depth: int) -> tuple[int, float]:
    """The half octave of least weight error at this depth, and that error."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return 0, 0.0
    top = int(grid.nearest(2 * largest / (1 << depth >> 1)))
    indexes = range(top, top - 5 * grid.RESOLUTION, -STRIDE)
    errors = [_error(values, depth, k) for k in indexes]
    best = int(np.argmin(errors))
    return indexes[best], errors[best]


def _error(values: Matrix, depth: int, index: int) -> float:
    """Sum of squares."""
    return float(((restored(values, depth, index) - values) ** 2).sum())


def _search(distortion: Callable[[int], float], starts: Iterable[int]) -> tuple[int, float]:
    """Downhill from the best start, upwards first (the range that a quantiser needs grows with its bits)."""
    least, best = min((distortion(start), start) for start in starts)
    for stride in (STRIDE, -STRIDE):
        moved = False
        for _ in range(MOST_MOVES):
            value = distortion(best + stride)
            if not value < least:
                break
            best, least, moved = best + stride, value, True
        if moved:
            break
    return best, least
