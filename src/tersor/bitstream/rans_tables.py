"""Integer probability models of the static coder: fitted to counts, priced in bits, stored in a few bytes.

A table gives every value of a contiguous alphabet, and optionally an escape for all others, a frequency;
the frequencies sum to 2^precision. It is stored either as a *parametric* shape (a zero and two geometric
tails, 5 to 7 bytes, for short streams) or as a *histogram* whose frequencies keep a few mantissa bits.
`fit` tries both and returns whatever costs least, table and data together. Format: docs/format-rans.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import native, varint

MAX_VALUES = 255
"""Largest alphabet without its escape."""
_MANTISSAS = (1, 2, 3, 4, 5, 6, 13)
_ESCAPE_SHARE = 512  # at most one symbol in so many is cut off an end by choice: escapes decode slowly
_PARAMETRIC_LIMIT = 20_000  # symbols beyond which a histogram's bytes never matter

_parametric = native.function("tersor_rans_parametric", [
    native.INT64, native.INT64, native.INT64, native.INT64,
    native.array(np.uint8), native.array(np.uint32, writable=True)])


@dataclass(frozen=True)
class Counts:
    """How often each value first + i occurs, and how many values lie below and above that window."""

    first: int
    inside: NDArray[np.int64]
    below: int = 0
    above: int = 0

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.inside.sum()) + self.below + self.above


@dataclass(frozen=True)
class Table:
    """A fitted model: frequencies uint32 [size + escape] of first, first + 1, ..., (escape)."""

    first: int
    size: int
    escape: bool
    precision: int
    frequencies: NDArray[np.uint32]
    stored: bytes

    def code_lengths(self) -> NDArray[np.float64]:
        """Bits of each symbol, float64 [size + escape]; inf where the frequency is zero.

        An escaped value costs the bits of its Exp-Golomb code on top (`escape_bits`).
        """
        with np.errstate(divide="ignore"):
            return self.precision - np.log2(self.frequencies)


FINALISTS = 3
"""Alphabets for which real tables are made."""
FEW = 1 << 14
"""Up to so many symbols every alphabet is tried: there a byte counts, and time does not."""
ENTRY_BITS = 6.0
"""What an entry of a histogram costs, about."""


def escape_bits(beyond: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """Bits of the Exp-Golomb codes of given order of non-negative integers."""
    length = np.frexp(beyond.astype(np.float64) + (1 << order))[1].astype(np.int64) - 1
    return 2 * length - order + 1


def fit(counts: Counts, precision: int, may_escape: bool = True) -> tuple[Table, float]:
    """The cheapest table for `counts` and the bits of table and data together. counts.total > 0.

    Without `may_escape`, at most MAX_VALUES values may lie between the smallest and the largest.
    """
    best: tuple[Table, float] | None = None
    for first, size, escape, kept, extra in _likely(counts, may_escape):
        for table in _models(first, size, escape, kept, precision):
            used = kept > 0
            bits = float(kept[used] @ table.code_lengths()[used]) + 8 * len(table.stored) + extra
            if best is None or bits < best[1]:
                best = table, bits
    assert best is not None
    return best


def _likely(counts: Counts, may_escape: bool) -> list[tuple[int, int, bool, NDArray[np.int64], float]]:
    """The FINALISTS alphabets of least estimated cost: (first, size, escape, counts of its entries, bits of escapes).

    Estimated by the entropy and ENTRY_BITS a table entry, because real tables take long to make.
    """
    estimated = []
    for first, size, escape in _alphabets(counts):
        if escape and not may_escape:
            continue
        start = first - counts.first
        kept = counts.inside[start : start + size]
        if escape:
            kept = np.append(kept, counts.total - kept.sum())
        extra = _escape_cost(counts, start, size)
        used = kept[kept > 0].astype(np.float64)
        ideal = float(used.sum() * np.log2(used.sum()) - used @ np.log2(used)) if used.size else 0.0
        estimated.append((ideal + extra + ENTRY_BITS * kept.size, (first, size, escape, kept, extra)))
    estimated.sort(key=lambda pair: pair[0])
    finalists = FINALISTS if counts.total > FEW else len(estimated)
    return [candidate for _, candidate in estimated[:finalists]]


def _alphabets(counts: Counts) -> Iterator[tuple[int, int, bool]]:
    """Candidates (first, size, escape): all that occurs, then with rarer and rarer ends cut off."""
    seen = set()
    cumulative = np.cumsum(counts.inside)
    total = int(cumulative[-1])
    for cut in (0, 1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096):
        low = int(np.searchsorted(cumulative, cut, "right"))
        high = int(np.searchsorted(cumulative, total - cut, "left"))
        if low > high or (cut > 8 and cut > total // _ESCAPE_SHARE):
            break
        if high - low >= MAX_VALUES:
            middle = int(np.searchsorted(cumulative, total // 2, "right"))
            low = min(max(low, middle - MAX_VALUES // 2), high - MAX_VALUES + 1)
            high = low + MAX_VALUES - 1
        outside = counts.total - int(counts.inside[low : high + 1].sum())
        candidate = counts.first + low, high - low + 1, outside > 0
        if candidate not in seen:
            seen.add(candidate)
            yield candidate
    if not seen:  # nothing inside the window: everything escapes
        yield counts.first, 1, True


def _escape_cost(counts: Counts, start: int, size: int) -> float:
    """Bits of the Exp-Golomb codes of what lies outside, each at the order that suits it best here."""
    left, right = counts.inside[:start][::-1], counts.inside[start + size :]
    weights = np.concatenate([right, left, [counts.below + counts.above]])
    if not weights.any():
        return 0.0
    distance = np.concatenate([np.arange(right.size), np.arange(left.size), [counts.inside.size]])
    return float(min(weights @ escape_bits(2 * distance, order) for order in range(0, 16, 2)))


def _models(first: int, size: int, escape: bool, counts: NDArray[np.int64],
            precision: int) -> Iterator[Table]:
    for mantissa in _MANTISSAS:
        filler, frequencies = _quantise(counts, precision, mantissa)
        stored = _store_histogram(first, size, escape, filler, frequencies, mantissa)
        yield Table(first, size, escape, precision, frequencies, stored)
    if first <= 0 < first + size and counts.sum() < _PARAMETRIC_LIMIT:
        yield from _fit_parametric(first, size, escape, counts, precision)


# ---- histogram ---------------------------------------------------------------------------------------

def _round(frequency: int, mantissa: int) -> int:
    """`frequency` rounded to a leading one and `mantissa` more bits."""
    drop = max(0, frequency.bit_length() - 1 - mantissa)
    return (frequency + (1 << drop >> 1)) >> drop << drop


def _floor(frequency: int, mantissa: int) -> int:
    drop = max(0, frequency.bit_length() - 1 - mantissa)
    return frequency >> drop << drop


def _quantise(counts: NDArray[np.int64], precision: int, mantissa: int) -> tuple[int, NDArray[np.uint32]]:
    """(filler, frequencies): every frequency but the filler's has few bits; the filler takes the rest."""
    total, scale = int(counts.sum()), 1 << precision
    filler = int(np.argmax(counts))
    c = [int(count) for count in counts]
    shrink = 1.0
    while True:
        f = [0 if x == 0 else max(1, _round(int(x * scale * shrink / total + 0.5), mantissa)) for x in c]
        f[filler] = 0
        f[filler] = scale - sum(f)
        if f[filler] >= 1:
            break
        shrink *= 0.9
    order = sorted((i for i in range(len(c)) if c[i] and i != filler), key=lambda i: -c[i])
    log = np.log2(np.maximum(np.arange(scale + 1), 1)).tolist() if order else []
    for i in order:  # rounding errors pile up in the filler: take each back where that saves bits
        up = f[i] + (1 << max(0, f[i].bit_length() - 1 - mantissa))
        for other in (up, _floor(f[i] - 1, mantissa)):
            rest = f[filler] + f[i] - other
            if other >= 1 and rest >= 1 and (c[i] * (log[other] - log[f[i]])
                                             + c[filler] * (log[rest] - log[f[filler]]) > 0):
                f[filler], f[i] = rest, other
                break
    return filler, np.array(f, dtype=np.uint32)


def _header(first: int, size: int, flags: int) -> bytes:
    return bytes([flags]) + varint.encode([2 * first if first >= 0 else -2 * first - 1, size - 1])


def _store_histogram(first: int, size: int, escape: bool, filler: int, frequencies: NDArray[np.uint32],
                     mantissa: int) -> bytes:
    bits = position = 0
    for i, f in enumerate(frequencies.tolist()):
        if i == filler:
            continue
        length = f.bit_length()
        kept = min(length - 1, mantissa)
        bits |= length << position
        position += 4
        if length:
            bits |= (f >> (length - 1 - kept)) % (1 << kept) << position
            position += kept
    head = _header(first, size, 1 | escape << 1 | mantissa << 4)
    return head + bytes([filler]) + bits.to_bytes((position + 7) // 8, "little")


# ---- parametric --------------------------------------------------------------------------------------

def _shape(first: int, size: int, escape: bool, precision: int, parameters: list[int]) -> NDArray[np.uint32]:
    frequencies = np.zeros(size + escape, np.uint32)
    native.check(_parametric(first, size, escape, precision, np.array(parameters, np.uint8), frequencies),
                 "parametric model")
    return frequencies


def _fit_parametric(first: int, size: int, escape: bool, counts: NDArray[np.int64],
                    precision: int) -> Iterator[Table]:
    """The best symmetric and the best asymmetric shape, by descent from the moments of the counts."""
    values = np.arange(first, first + size)
    inside = counts[:size]
    total = max(1, int(inside.sum()))
    other = max(1, total - int(inside[-first]))
    excess = float(inside @ np.maximum(np.abs(values) - 1, 0)) / other
    decay = round(256 * excess / (1 + excess))
    zero = int(256 * int(inside[-first]) / total)
    for asymmetric in (False, True):
        start = [min(255, zero), min(255, max(1, decay)), min(255, max(1, decay)), 128]
        found = _descend(start, asymmetric, first, size, escape, counts, precision)
        stored = _header(first, size, escape << 1 | asymmetric << 2) + bytes(found[: 4 if asymmetric else 2])
        yield Table(first, size, escape, precision, _shape(first, size, escape, precision, found), stored)


def _descend(at: list[int], asymmetric: bool, first: int, size: int, escape: bool,
             counts: NDArray[np.int64], precision: int) -> list[int]:
    def price(parameters: list[int]) -> float:
        return -float(counts @ np.log2(_shape(first, size, escape, precision, parameters)))

    groups = [[0], [1], [2], [3]] if asymmetric else [[0], [1, 2]]
    best, step = price(at), 16
    while step:
        moved = False
        for group in groups:
            for sign in (step, -step):
                there = [min(255, max(0, p + sign)) if i in group else p for i, p in enumerate(at)]
                if (cost := price(there)) < best:
                    at, best, moved = there, cost, True
        if not moved:
            step //= 2
    return at
