"""The static coder's decoder: native/rans_*.cpp, docs/format-rans.md."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import BAD_ARGUMENT, CORRUPT, TRUNCATED

_START = 1 << 16
_MAX_BYPASS = 24

Numbers = npt.NDArray[np.int64]


class _Refused(Exception):
    """Ends decoding with an error code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Bytes:
    """A read position that never leaves its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _Refused(TRUNCATED)
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        """Below 2^32, in the shortest form."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                if value >> 32 or (byte == 0 and shift):
                    raise _Refused(TRUNCATED)
                return value
        raise _Refused(TRUNCATED)


class _Bits:
    """Bits, least significant first."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size, self.position = data, 8 * len(data), 0

    def take(self, count: int) -> int:
        if count > self.size - self.position:
            raise _Refused(TRUNCATED)
        first, shift = divmod(self.position, 8)
        window = int.from_bytes(self._data[first : first + 8], "little")
        self.position += count
        return window >> shift & (1 << count) - 1

    def exhausted(self) -> bool:
        """Less than a byte is left, and that is zero."""
        left = self.size - self.position
        return left < 8 and (left == 0 or self._data[-1] >> 8 - left == 0)


class _Table:
    """One integer model: symbol i < size is the value first + i, symbol `size` the escape, if there is one."""

    def __init__(self, source: _Bytes, precision: int) -> None:
        head, folded, span = source.byte(), source.varint(), source.varint()
        histogram, self.escape, asymmetric, mantissa = head & 1, bool(head & 2), head & 4, head >> 4
        if head & 8 or span > 254 or (asymmetric or mantissa >= 14 if histogram else mantissa):
            raise _Refused(CORRUPT)
        self.first = -(folded >> 1) - 1 if folded & 1 else folded >> 1
        self.size = span + 1
        if self.first + span > 0x7FFFFFFF:
            raise _Refused(CORRUPT)
        if histogram:
            self.frequency = self._histogram(source, mantissa, precision)
        else:
            parameters = [source.byte(), source.byte()]
            parameters += [source.byte(), source.byte()] if asymmetric else [parameters[1], 128]
            self.frequency = self._parametric(parameters, precision)
        frequencies = np.array(self.frequency)
        self.start = np.concatenate([[0], np.cumsum(frequencies)[:-1]]).tolist()
        self.symbol = np.repeat(np.arange(frequencies.size), frequencies).tolist()
        full = np.flatnonzero(frequencies >> precision)
        self.single = int(full[0]) if full.size else -1

    def _histogram(self, source: _Bytes, mantissa: int, precision: int) -> list[int]:
        filler, symbols = source.byte(), self.size + self.escape
        if filler >= symbols:
            raise _Refused(CORRUPT)
        bits = _Bits(source.data[source.at : source.at + 8 + 3 * symbols])
        out = [0] * symbols
        for i in range(symbols):
            if i == filler or not (length := bits.take(4)):
                continue
            if length > 14:
                raise _Refused(CORRUPT)
            kept = min(length - 1, mantissa)
            out[i] = 1 << length - 1 | bits.take(kept) << length - 1 - kept
        out[filler] = (1 << precision) - sum(out)
        whole = (bits.position + 7) // 8
        used = source.take(whole)
        if out[filler] < 1 or (used and used[-1] >> 8 - (8 * whole - bits.position)):
            raise _Refused(CORRUPT)
        return out

    def _parametric(self, parameters: Sequence[int], precision: int) -> list[int]:
        zero_share, decay, decay_negative, weight_negative = parameters
        if self.first > 0 or self.first + self.size - 1 < 0:
            raise _Refused(CORRUPT)
        zero = -self.first
        weight = [0] * self.size
        for places, w, factor in ((range(zero + 1, self.size), 1 << 24, decay),
                                  (range(zero - 1, -1, -1), weight_negative << 17, decay_negative)):
            for i in places:
                weight[i], w = w, w * factor >> 8
        total, free = sum(weight), (1 << precision) - self.size - self.escape
        for_zero = free * zero_share >> 8 if total else free
        rest, below, out = free - for_zero, 0, []
        for i in range(self.size):
            if i == zero:
                out.append(1 + for_zero)
                continue
            above = below + weight[i]
            out.append(1 + (rest * above // total - rest * below // total if total else 0))
            below = above
        return out + [1] * self.escape


class _Lanes:
    """The interleaved decoders over one run of words."""

    def __init__(self, states: list[int], words: list[int], precision: int) -> None:
        self.states, self.words, self.precision = states, words, precision
        self.next = self.read = 0

    def decode(self, table: _Table, count: int) -> list[int]:
        """The next `count` symbols."""
        lanes, states, words, precision = len(self.states), self.states, self.words, self.precision
        lane = self.next
        self.next = (lane + count) % lanes
        if table.single >= 0:
            return [table.single] * count
        mask, out = (1 << precision) - 1, [0] * count
        symbol_of, frequency, start, read = table.symbol, table.frequency, table.start, self.read
        for i in range(count):
            x = states[lane]
            slot = x & mask
            s = symbol_of[slot]
            x = frequency[s] * (x >> precision) + slot - start[s]
            if x < _START:
                if read == len(words):
                    raise _Refused(TRUNCATED)
                x = x << 16 | words[read]
                read += 1
            states[lane] = x
            lane = lane + 1 if lane + 1 < lanes else 0
            out[i] = s
        self.read = read
        return out

    def finished(self) -> bool:
        return self.read == len(self.words) and all(x == _START for x in self.states)


def rans_decode(payload: bytes, size: int, count: int, rows: Numbers, columns: Numbers, targets: npt.NDArray[np.uintp],
                scales: int | None, levels: npt.NDArray[np.uintp], reach: Numbers, simd: int) -> int:
    """Decode a payload to the matrices at the addresses `targets`; 0 or an error code."""
    shapes = list(zip(rows[:count].tolist(), columns[:count].tolist(), strict=True))
    if any(r < 0 or c < 0 for r, c in shapes):
        return BAD_ARGUMENT
    try:
        found = _decode(payload, shapes)
    except _Refused as refused:
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
    """The integers of all matrices. Raises _Refused."""
    out = [np.zeros(shape, np.int64) for shape in shapes]
    total = sum(height * width for height, width in shapes)
    if total == 0:
        if payload:
            raise _Refused(CORRUPT)
        return out
    source = _Bytes(payload)
    head, low = source.byte(), source.byte()
    if head & 7 == 7 or head >> 3 & 3 == 3:
        raise _Refused(CORRUPT)
    lanes, precision, classes = 1 << (head & 7), 12 + (head >> 3 & 3), (head >> 5) + 1
    bypass = list(source.take(len(shapes))) if low == 255 else [low] * len(shapes)
    if max(bypass) > _MAX_BYPASS:
        raise _Refused(CORRUPT)
    tables = [_Table(source, precision) for _ in range(classes + (classes > 1))]
    escape_bytes = order = 0
    if any(table.escape for table in tables[:classes]):
        order, escape_bytes = source.byte(), source.varint()
        if order > 31:
            raise _Refused(CORRUPT)
    low_bits = sum(height * width * b for (height, width), b in zip(shapes, bypass, strict=True))
    escapes, lows = _Bits(source.take(escape_bytes)), _Bits(source.take((low_bits + 7) // 8))
    states = np.frombuffer(source.take(4 * lanes), "<u4").tolist()
    if source.left & 1 or min(states) < _START:
        raise _Refused(CORRUPT)
    coder = _Lanes(states, np.frombuffer(source.take(source.left), "<u2").tolist(), precision)
    class_of = _class_map(coder, tables, classes, shapes)
    for c in range(classes):
        here = [(m, r) for m, r in _rows(shapes) if class_of[m][r] == c]
        for m, r in here:
            symbols = coder.decode(tables[c], shapes[m][1])
            out[m][r] = _elements(symbols, tables[c], bypass[m], order, escapes, lows)
    if not (coder.finished() and escapes.exhausted() and lows.exhausted()):
        raise _Refused(CORRUPT)
    return out


def _rows(shapes: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """All rows that have elements."""
    return ((m, r) for m, (height, width) in enumerate(shapes) if width for r in range(height))


def _class_map(coder: _Lanes, tables: Sequence[_Table], classes: int, shapes: list[tuple[int, int]]) -> list[list[int]]:
    """The class of each row of each matrix."""
    if classes == 1:
        return [[0] * height for height, _ in shapes]
    table = tables[classes]
    if table.escape:
        raise _Refused(CORRUPT)

    def said(count: int, largest: int) -> list[int]:
        values = [table.first + s for s in coder.decode(table, count)]
        if values and not (min(values) >= 0 and max(values) <= largest):
            raise _Refused(CORRUPT)
        return values

    kinds = iter(said(sum(height * width > 0 for height, width in shapes), classes))
    out = []
    for height, width in shapes:
        kind = next(kinds) if height * width else 0
        out.append(said(height, classes - 1) if kind == classes else [kind] * height)
    return out


def _elements(symbols: list[int], table: _Table, bypass: int, order: int, escapes: _Bits, lows: _Bits) -> list[int]:
    """The integers of a row."""
    out = []
    for s in symbols:
        q = _escape(table, order, escapes) if s == table.size else table.first + s
        if bypass:
            q = (q << bypass) + lows.take(bypass) - (1 << bypass - 1)
        if not -(1 << 31) <= q < 1 << 31:
            raise _Refused(CORRUPT)
        out.append(q)
    return out


def _escape(table: _Table, order: int, escapes: _Bits) -> int:
    length = order
    while escapes.take(1):
        if length == 33:
            raise _Refused(CORRUPT)
        length += 1
    beyond = (1 << length) + escapes.take(length) - (1 << order)
    return table.first - 1 - (beyond >> 1) if beyond & 1 else table.first + table.size + (beyond >> 1)
