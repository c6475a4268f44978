"""The static coder's decoder: native/rans_*.cpp, docs/format-rans.md."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import BAD_ARGUMENT, CORRUPT, TRUNCATED
from .rans_header import START, Bits, Header, Refused, Table

Numbers = npt.NDArray[np.int64]


class Lanes:
    """The interleaved decoders over one run of words."""

    def __init__(self, states: list[int], words: list[int], precision: int) -> None:
        self.states, self.words, self.precision = states, words, precision
        self.count = self.read = 0  # symbols, and words that they took

    def decode(self, table: Table, count: int) -> list[int]:
        """The next `count` symbols."""
        lanes, states, words, precision = len(self.states), self.states, self.words, self.precision
        lane = self.count % lanes
        self.count += count
        if table.single >= 0:
            return [table.single] * count
        mask, out = (1 << precision) - 1, [0] * count
        symbol_of, frequency, start, read = table.symbol, table.frequency, table.start, self.read
        for i in range(count):
            x = states[lane]
            slot = x & mask
            s = symbol_of[slot]
            x = frequency[s] * (x >> precision) + slot - start[s]
            if x < START:
                if read == len(words):
                    raise Refused(TRUNCATED)
                x = x << 16 | words[read]
                read += 1
            states[lane] = x
            lane = lane + 1 if lane + 1 < lanes else 0
            out[i] = s
        self.read = read
        return out

    def finished(self) -> bool:
        return self.read == len(self.words) and all(x == START for x in self.states)


def rans_decode(payload: bytes, size: int, count: int, rows: Numbers, columns: Numbers, targets: npt.NDArray[np.uintp],
                scales: int | None, levels: npt.NDArray[np.uintp], reach: Numbers, simd: int) -> int:
    """Decode a payload to the matrices at the addresses `targets`; 0 or an error code."""
    shapes = list(zip(rows[:count].tolist(), columns[:count].tolist(), strict=True))
    if any(r < 0 or c < 0 for r, c in shapes):
        return BAD_ARGUMENT
    try:
        found = _decode(payload, shapes)
    except Refused as refused:
        return refused.code
    addresses = _at(scales, count, ctypes.c_size_t) if scales is not None and count else None
    for m, (values, (height, width)) in enumerate(zip(found, shapes, strict=True)):
        if not values.size:
            continue
        kind: Any = ctypes.c_int32 if addresses is None else ctypes.c_float
        out = _at(int(targets[m]), height * width, kind).reshape(height, width)
        if addresses is None:
            out[:] = values
            continue
        level = values.astype(np.float32)
        if (far := int(reach[m])) >= 0:
            table = _at(int(levels[m]), 2 * far + 1, ctypes.c_float)
            near = np.abs(values) <= far
            level[near] = table[values[near] + far]
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(level, _at(int(addresses[m]), height, ctypes.c_float)[:, None], out=out)
    return 0


def _at(address: int, count: int, kind: Any) -> npt.NDArray[Any]:
    """The array of `count` numbers at an address, which the caller of the kernel keeps alive."""
    return np.ctypeslib.as_array((kind * count).from_address(address))


def _decode(payload: bytes, shapes: list[tuple[int, int]]) -> list[Numbers]:
    """The integers of all matrices. Raises Refused."""
    out = [np.zeros(shape, np.int64) for shape in shapes]
    total = sum(height * width for height, width in shapes)
    if total == 0:
        if payload:
            raise Refused(CORRUPT)
        return out
    header = Header.of(payload, shapes)
    tables, classes, bypass = header.tables, header.classes, header.bypass
    escapes, lows = Bits(header.escapes), Bits(header.lows)
    coder = Lanes(list(header.states), header.words.tolist(), header.precision)
    class_of = class_map(coder, tables, classes, shapes)
    for c in range(classes):
        here = [(m, r) for m, r in rows_of(shapes) if class_of[m][r] == c]
        for m, r in here:
            symbols = coder.decode(tables[c], shapes[m][1])
            out[m][r] = _elements(symbols, tables[c], bypass[m], header.order, escapes, lows)
    if not (coder.finished() and escapes.exhausted() and lows.exhausted()):
        raise Refused(CORRUPT)
    return out


def rows_of(shapes: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """All rows that have elements."""
    return ((m, r) for m, (height, width) in enumerate(shapes) if width for r in range(height))


def class_map(coder: Lanes, tables: Sequence[Table], classes: int, shapes: list[tuple[int, int]]) -> list[list[int]]:
    """The class of each row of each matrix."""
    if classes == 1:
        return [[0] * height for height, _ in shapes]
    table = tables[classes]
    if table.escape:
        raise Refused(CORRUPT)

    def said(count: int, largest: int) -> list[int]:
        values = [table.first + s for s in coder.decode(table, count)]
        if values and not (min(values) >= 0 and max(values) <= largest):
            raise Refused(CORRUPT)
        return values

    kinds = iter(said(sum(height * width > 0 for height, width in shapes), classes))
    out = []
    for height, width in shapes:
        kind = next(kinds) if height * width else 0
        out.append(said(height, classes - 1) if kind == classes else [kind] * height)
    return out


def _elements(symbols: list[int], table: Table, bypass: int, order: int, escapes: Bits, lows: Bits) -> list[int]:
    """The integers of a row."""
    out = []
    for s in symbols:
        q = escape_of(table, order, escapes) if s == table.size else table.first + s
        if bypass:
            q = (q << bypass) + lows.take(bypass) - (1 << bypass - 1)
        if not -(1 << 31) <= q < 1 << 31:
            raise Refused(CORRUPT)
        out.append(q)
    return out


def escape_of(table: Table, order: int, escapes: Bits) -> int:
    length = order
    while escapes.take(1):
        if length == 33:
            raise Refused(CORRUPT)
        length += 1
    beyond = (1 << length) + escapes.take(length) - (1 << order)
    return table.first - 1 - (beyond >> 1) if beyond & 1 else table.first + table.size + (beyond >> 1)
