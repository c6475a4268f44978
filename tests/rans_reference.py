"""A rANS payload decoded in plain Python, from docs/format-rans.md alone: slow, and the kernel's judge."""

from __future__ import annotations

import struct


class Corrupt(Exception):
    """The payload breaks a rule of the format."""


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.data):
            raise Corrupt("truncated")
        self.at += n
        return self.data[self.at - n : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for i in range(5):
            b = self.byte()
            value |= (b & 127) << 7 * i
            if b < 128:
                if (b == 0 and i > 0) or value >= 1 << 32:
                    raise Corrupt("varint")
                return value
        raise Corrupt("varint")


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, n: int) -> int:
        if n > self.left:
            raise Corrupt("bits")
        self.left -= n
        number = self.value & ((1 << n) - 1)
        self.value >>= n
        return number

    def end(self) -> None:
        if self.left >= 8 or self.value:
            raise Corrupt("left-over bits")


class _Table:
    def __init__(self, data: _Bytes, p: int) -> None:
        kind, folded, span = data.byte(), data.varint(), data.varint()
        self.first = -(folded + 1) // 2 if folded & 1 else folded // 2
        self.size, self.escape = span + 1, bool(kind & 2)
        if kind & 8 or span > 254 or self.first + self.size > 1 << 31:
            raise Corrupt("table")
        symbols = self.size + self.escape
        if kind & 1:
            if kind & 4 or kind >> 4 > 13:
                raise Corrupt("table")
            self.f = self.histogram(data, symbols, kind >> 4, p)
        else:
            last = self.first + self.size - 1
            if kind >> 4 or not self.first <= 0 <= last:
                raise Corrupt("table")
            z, d = data.byte(), data.byte()
            d2, a = (data.byte(), data.byte()) if kind & 4 else (d, 128)
            self.f = self.parametric(z, d, d2, a, last, symbols, p)
        self.slots = [s for s, f in enumerate(self.f) for _ in range(f)]
        self.start = [sum(self.f[:s]) for s in range(symbols)]

    @staticmethod
    def histogram(data: _Bytes, symbols: int, t: int, p: int) -> list[int]:
        filler = data.byte()
        if filler >= symbols:
            raise Corrupt("filler")
        bits, f = _Bits(data.data[data.at :]), [0] * symbols
        begin = bits.left
        for s in range(symbols):
            if s != filler and (length := bits.take(4)):
                if length == 15:
                    raise Corrupt("length")
                k = min(length - 1, t)
                f[s] = (1 << (length - 1)) + (bits.take(k) << (length - 1 - k))
        f[filler] = (1 << p) - sum(f)
        used = begin - bits.left
        if f[filler] < 1 or bits.take(-used % 8):
            raise Corrupt("histogram")
        data.take((used + 7) // 8)
        return f

    def parametric(self, z: int, d: int, d2: int, a: int, last: int, symbols: int, p: int) -> list[int]:
        w, up, down = {0: 0}, 1 << 24, a << 17
        for v in range(1, last + 1):
            w[v], up = up, up * d >> 8
        for v in range(-1, self.first - 1, -1):
            w[v], down = down, down * d2 >> 8
        total, free = sum(w.values()), (1 << p) - symbols
        zero = free if total == 0 else free * z >> 8
        f, below = [], 0
        for v in range(self.first, last + 1):
            if v == 0:
                f.append(1 + zero)
            elif total == 0:
                f.append(1)
            else:
                above = below + w[v]
                f.append(1 + (free - zero) * above // total - (free - zero) * below // total)
                below = above
        return f + [1] * self.escape


def decode(payload: bytes, shapes: list[tuple[int, int]]) -> list[list[list[int]]]:
    """The matrices as lists of rows. Raises Corrupt."""
    out = [[[0] * columns for _ in range(rows)] for rows, columns in shapes]
    if not any(rows * columns for rows, columns in shapes):
        if payload:
            raise Corrupt("not empty")
        return out
    data = _Bytes(payload)
    head, low = data.byte(), data.byte()
    n, p, k = 1 << (head & 7), 12 + (head >> 3 & 3), (head >> 5) + 1
    bypass = list(data.take(len(shapes))) if low == 255 else [low] * len(shapes)
    if n > 64 or p > 14 or (bypass and max(bypass) > 24):
        raise Corrupt("header")
    tables = [_Table(data, p) for _ in range(k + (k > 1))]
    order, codes = 0, _Bits(b"")
    if any(table.escape for table in tables[:k]):
        order = data.byte()
        codes = _Bits(data.take(data.varint()))
        if order > 31:
            raise Corrupt("order")
    lows = _Bits(data.take((sum(r * c * b for (r, c), b in zip(shapes, bypass, strict=True)) + 7) // 8))
    state = list(struct.unpack(f"<{n}I", data.take(4 * n)))
    rest = data.data[data.at :]
    if min(state) < 1 << 16 or len(rest) % 2:
        raise Corrupt("states or words")
    words = list(struct.unpack(f"<{len(rest) // 2}H", rest))[::-1]
    t = 0

    def symbol(table: _Table) -> int:
        nonlocal t
        x = state[t % n]
        slot = x % (1 << p)
        s = table.slots[slot]
        x = table.f[s] * (x >> p) + slot - table.start[s]
        if x < 1 << 16:
            if not words:
                raise Corrupt("words")
            x = x << 16 | words.pop()
        state[t % n] = x
        t += 1
        return s

    def class_value(most: int) -> int:
        value = tables[k].first + symbol(tables[k])
        if tables[k].escape or not 0 <= value <= most:
            raise Corrupt("class map")
        return value

    classes = [[0] * rows for rows, _ in shapes]
    if k > 1:
        kinds = [class_value(k) if rows * columns else 0 for rows, columns in shapes]
        for m, kind in enumerate(kinds):
            if shapes[m][0] * shapes[m][1]:
                classes[m] = [class_value(k - 1) if kind == k else kind for _ in classes[m]]
    for c in range(k):
        table = tables[c]
        for m, (rows, columns) in enumerate(shapes):
            b = bypass[m]
            half = 1 << b >> 1
            for row in (r for r in range(rows) if classes[m][r] == c):
                for column in range(columns):
                    h = _element(table, symbol(table), codes, order)
                    q = (h << b) + lows.take(b) - half
                    if not -(1 << 31) <= q < 1 << 31:
                        raise Corrupt("range")
                    out[m][row][column] = q
    codes.end()
    lows.end()
    if words or any(x != 1 << 16 for x in state):
        raise Corrupt("final state")
    return out


def _element(table: _Table, s: int, codes: _Bits, order: int) -> int:
    if s < table.size:
        return table.first + s
    n = order
    while codes.take(1):
        n += 1
        if n > 33:
            raise Corrupt("escape")
    e = (1 << n) + codes.take(n) - (1 << order)
    return table.first - 1 - e // 2 if e & 1 else table.first + table.size + e // 2
