"""What the static coder's encoder decides about a group: low bits, classes, tables, precision, lanes.

Every choice goes by the bits that it costs, tables and class map included. `rans.encode` writes it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from . import native, rans_classes, rans_tables
from .rans_tables import Counts, Table

MAX_BYPASS = 24
MAX_LANES = 64
Matrix = NDArray[np.int32]

_WINDOW = 4096         # values around the median that are counted one by one
_ROW_UNIT = 16, 16384  # a matrix's rows choose classes if so many columns and at most so many rows
_WORTH = 5e-4          # a longer precision slows decoding down: it must save this share of the bits

_count = native.function("tersor_rans_count", [
    native.array(np.int32), native.INT64, native.INT64, native.INT64, native.INT64,
    native.array(np.int64, writable=True)])


@dataclass(frozen=True)
class Plan:
    """Everything that the encoder decides about one group.

    bypass: raw low bits of each matrix. classes: int64 [rows] per matrix, 0 .. len(tables) - 1.
    map_table: the model of the class map, None when there is one class. order: of the escapes' codes.
    bits: estimated size of the payload.
    """

    bypass: tuple[int, ...]
    classes: tuple[NDArray[np.int64], ...]
    tables: tuple[Table, ...]
    map_table: Table | None
    precision: int
    lanes: int
    order: int
    bits: float


def plan(matrices: Sequence[Matrix], *, bypass: Sequence[int] | None = None, most_classes: int = 8,
         lanes: int | None = None, precision: int | None = None) -> Plan:
    """Choose low bits, classes, tables, precision (12 to 14) and lanes, each by the bits that it costs.

    Arguments that are given are kept. Raises ConfigError if they are out of range, TypeError if a
    matrix is not int32 with two axes.
    """
    check_matrices(matrices)
    _check_options(matrices, bypass, most_classes, lanes, precision)
    low = tuple(_choose_bypass(q) for q in matrices) if bypass is None else tuple(bypass)
    high = [split(q, b)[0] for q, b in zip(matrices, low, strict=True)]
    classes = _choose_classes(high, most_classes)
    k = 1 + max((int(c.max()) for c in classes if c.size), default=0)
    members = [members_of(high, classes, c) for c in range(k)]
    said = map_symbols(high, classes, k)
    counted = [_counts(values) for values in members if values.size]
    if not counted:
        return Plan(low, classes, (), None, 12, 1, 0, 0.0)
    if k > 1:
        counted.append(_counts(said.astype(np.int32)))
    chosen, tables, bits = _choose_precision(counted, k, precision)
    order = _choose_order(members, tables)
    raw = sum(q.size * b for q, b in zip(matrices, low, strict=True))
    bits += 16 + raw
    if lanes is None:
        lanes = _choose_lanes(bits)
    return Plan(low, classes, tuple(tables[:k]), tables[k] if k > 1 else None, chosen, lanes, order,
                bits + 16 * lanes)


def estimate(matrices: Sequence[Matrix], most_classes: int = 8) -> float:
    """Bits of a group's payload as the choice of classes reckons them, by entropies, with no table made: within about
    1% of what `plan` comes to, in a tenth of its time. Raises TypeError as `plan` does."""
    check_matrices(matrices)
    low = [_choose_bypass(q) for q in matrices]
    high = [split(q, b)[0] for q, b in zip(matrices, low, strict=True)]
    raw = sum(q.size * b for q, b in zip(matrices, low, strict=True))
    units, _ = _units(high)
    return 0.0 if units is None else raw + rans_classes.choose_priced(units, most_classes)[1]


def check_matrices(matrices: Sequence[Matrix]) -> None:
    for i, q in enumerate(matrices):
        if q.dtype != np.int32 or q.ndim != 2:
            raise TypeError(f"matrix {i}: expected int32 with 2 axes, got {q.dtype} with shape {q.shape}")


def _check_options(matrices: Sequence[Matrix], bypass: Sequence[int] | None, most_classes: int,
                   lanes: int | None, precision: int | None) -> None:
    if bypass is not None and (len(bypass) != len(matrices) or not all(0 <= b <= MAX_BYPASS for b in bypass)):
        raise ConfigError(f"bypass must be one number 0..{MAX_BYPASS} per matrix, got {bypass!r}")
    if not 1 <= most_classes <= rans_classes.MAX_CLASSES:
        raise ConfigError(f"most_classes must be 1..{rans_classes.MAX_CLASSES}, got {most_classes}")
    if lanes is not None and (not 1 <= lanes <= MAX_LANES or lanes & (lanes - 1)):
        raise ConfigError(f"lanes must be a power of two up to {MAX_LANES}, got {lanes}")
    if precision not in (None, 12, 13, 14):
        raise ConfigError(f"precision must be 12, 13 or 14, got {precision}")


def split(q: Matrix, bypass: int) -> tuple[Matrix, Matrix]:
    """(high, low) with q = high * 2^b + low - 2^(b-1): rounding, so that high is symmetric where q is."""
    if bypass == 0:
        return q, np.zeros((0, 0), np.int32)
    shifted = q.astype(np.int64) + (1 << (bypass - 1))
    return (shifted >> bypass).astype(np.int32), (shifted & ((1 << bypass) - 1)).astype(np.int32)


def _choose_bypass(q: Matrix) -> int:
    """The b of the least ideal bits, table included; 0 without a search when the alphabet is small."""
    if q.size == 0:
        return 0
    low, high = int(q.min()), int(q.max())
    if high - low < 63:
        return 0
    start = max(0, (high - low).bit_length() - 20)
    best, cost = 0, float("inf")
    for b in range(start, MAX_BYPASS + 1):
        values = split(q, b)[0]
        counts = np.bincount((values - values.min()).reshape(-1))
        used = counts[counts > 0]
        bits = float(used @ (np.log2(q.size) - np.log2(used))) + q.size * b + 8.0 * used.size
        centre = int(np.searchsorted(np.cumsum(counts), q.size // 2))
        escapes = q.size - int(counts[max(0, centre - 127) : centre + 128].sum())
        if (bits := bits + 12.0 * escapes) < cost:
            best, cost = b, bits
        if counts.size <= 8:
            break
    return best


def _choose_classes(high: Sequence[Matrix], most: int) -> tuple[NDArray[np.int64], ...]:
    classes = [np.zeros(q.shape[0], np.int64) for q in high]
    units, used = _units(high) if most > 1 else (None, [])
    if units is not None:
        chosen = rans_classes.choose(units, most)
        for m in used:
            classes[m][:] = chosen[units.matrix == m]
    return tuple(classes)


def _units(high: Sequence[Matrix]) -> tuple[rans_classes.Units | None, list[int]]:
    """What can choose a class, and the matrices that it is of; None without values."""
    alone = [not (_ROW_UNIT[0] <= q.shape[1] and q.shape[0] <= _ROW_UNIT[1]) for q in high]
    used = [m for m, q in enumerate(high) if q.size]
    if not used:
        return None, used
    units = sum(1 if alone[m] else high[m].shape[0] for m in used)
    first, size = _window([high[m] for m in used], max(16, min(_WINDOW, (1 << 22) // units)))
    counts = [_count_rows(high[m].reshape(1, -1) if alone[m] else high[m], first, size) for m in used]
    owner = np.repeat(np.array(used, np.int64), [c.shape[0] for c in counts])
    return rans_classes.Units(np.concatenate(counts), owner), used


def _window(values: Sequence[Matrix], most: int) -> tuple[int, int]:
    """(first, size) of at most `most` values around the median of medians that hold all, or nearly all."""
    low, high = min(int(v.min()) for v in values), max(int(v.max()) for v in values)
    if high - low < most:
        return low, high - low + 1
    middle = int(np.median([np.median(v) for v in values]))
    first = max(low, min(middle - most // 2, high - most + 1))
    return first, most


def _count_rows(q: Matrix, first: int, size: int) -> NDArray[np.int64]:
    counts = np.zeros((q.shape[0], size), np.int64)
    native.check(_count(np.ascontiguousarray(q), q.shape[0], q.shape[1], first, size, counts), "count")
    return counts


def members_of(high: Sequence[Matrix], classes: Sequence[NDArray[np.int64]], c: int) -> Matrix:
    """All values of class c in stream order, int32 [n]."""
    rows = [q.reshape(-1) if (of == c).all() else q[of == c].reshape(-1)
            for q, of in zip(high, classes, strict=True)]
    return np.concatenate(rows) if rows else np.zeros(0, np.int32)


def map_symbols(high: Sequence[Matrix], classes: Sequence[NDArray[np.int64]], k: int) -> NDArray[np.int64]:
    used = [c for q, c in zip(high, classes, strict=True) if q.size]
    if k == 1 or not used:
        return np.zeros(0, np.int64)
    kinds = rans_classes.kinds(used, k)
    own = [c for c, kind in zip(used, kinds, strict=True) if kind == k]
    return np.concatenate([np.array(kinds, np.int64), *own])


def _counts(values: Matrix) -> Counts:
    first, size = _window([values], _WINDOW)
    counts = _count_rows(values.reshape(1, -1), first - 1, size + 2)[0]
    return Counts(first, counts[1:-1], int(counts[0]), int(counts[-1]))


def _choose_precision(counted: Sequence[Counts], k: int,
                      wanted: int | None) -> tuple[int, list[Table], float]:
    """(precision, tables, bits); the first k tables may escape, the map's may not."""
    best: tuple[int, list[Table], float] | None = None
    for precision in (12, 13, 14) if wanted is None else (wanted,):
        fitted = [rans_tables.fit(counts, precision, i < k) for i, counts in enumerate(counted)]
        bits = sum(cost for _, cost in fitted)
        if best is None or bits < best[2] * (1 - _WORTH):
            best = precision, [table for table, _ in fitted], bits
    assert best is not None
    return best


def _choose_lanes(bits: float) -> int:
    """A lane costs 2 bytes over the ideal: as many as lose at most 1/512, and 32 at most."""
    lanes = 1
    while lanes < 32 and 4 * lanes <= bits / 8 / 512:
        lanes *= 2
    return lanes


def beyond(values: Matrix, table: Table) -> NDArray[np.int64]:
    """The codes' numbers of the values outside the alphabet, in order: even above it, odd below."""
    wide = values.astype(np.int64) - table.first
    outside = wide[(wide < 0) | (wide >= table.size)]
    return np.where(outside < 0, -2 * outside - 1, 2 * (outside - table.size))


def _choose_order(members: Sequence[Matrix], tables: Sequence[Table]) -> int:
    numbers = np.concatenate([beyond(values, table) if table.escape else np.zeros(0, np.int64)
                              for values, table in zip(members, tables, strict=False)])
    return min(range(32), key=lambda order: (int(rans_tables.escape_bits(numbers, order).sum()), order))
