"""What a rANS payload says before its words: docs/format-rans.md, sections 1 to 3. For the decoder in Python (rans.py)
and for `tersor.gpu`, whose kernels only see tables and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import CORRUPT, TRUNCATED

START = 1 << 16
"""The lower bound of a lane's state, and what it must be after the last symbol."""
MAX_BYPASS = 24


class Refused(Exception):
    """Ends decoding with an error code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Bytes:
    """A read position that never leaves its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise Refused(TRUNCATED)
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
                    raise Refused(TRUNCATED)
                return value
        raise Refused(TRUNCATED)


class Bits:
    """Bits, least significant first."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size, self.position = data, 8 * len(data), 0

    def take(self, count: int) -> int:
        if count > self.size - self.position:
            raise Refused(TRUNCATED)
        first, shift = divmod(self.position, 8)
        window = int.from_bytes(self._data[first : first + 8], "little")
        self.position += count
        return window >> shift & (1 << count) - 1

    def exhausted(self) -> bool:
        """Less than a byte is left, and that is zero."""
        left = self.size - self.position
        return left < 8 and (left == 0 or self._data[-1] >> 8 - left == 0)


class Table:
    """One integer model: symbol i < size is the value first + i, symbol `size` the escape, if there is one."""

    def __init__(self, source: Bytes, precision: int) -> None:
        head, folded, span = source.byte(), source.varint(), source.varint()
        histogram, self.escape, asymmetric, mantissa = head & 1, bool(head & 2), head & 4, head >> 4
        if head & 8 or span > 254 or (asymmetric or mantissa >= 14 if histogram else mantissa):
            raise Refused(CORRUPT)
        self.first = -(folded >> 1) - 1 if folded & 1 else folded >> 1
        self.size = span + 1
        if self.first + span > 0x7FFFFFFF:
            raise Refused(CORRUPT)
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

    def _histogram(self, source: Bytes, mantissa: int, precision: int) -> list[int]:
        filler, symbols = source.byte(), self.size + self.escape
        if filler >= symbols:
            raise Refused(CORRUPT)
        bits = Bits(source.data[source.at : source.at + 8 + 3 * symbols])
        out = [0] * symbols
        for i in range(symbols):
            if i == filler or not (length := bits.take(4)):
                continue
            if length > 14:
                raise Refused(CORRUPT)
            kept = min(length - 1, mantissa)
            out[i] = 1 << length - 1 | bits.take(kept) << length - 1 - kept
        out[filler] = (1 << precision) - sum(out)
        whole = (bits.position + 7) // 8
        used = source.take(whole)
        if out[filler] < 1 or (used and used[-1] >> 8 - (8 * whole - bits.position)):
            raise Refused(CORRUPT)
        return out

    def _parametric(self, parameters: Sequence[int], precision: int) -> list[int]:
        zero_share, decay, decay_negative, weight_negative = parameters
        if self.first > 0 or self.first + self.size - 1 < 0:
            raise Refused(CORRUPT)
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


@dataclass(frozen=True)
class Header:
    """The parts of a payload.

    bypass: low bits of each matrix. tables: of the classes, and of the class map where there are several classes.
    order, escapes, lows: Exp-Golomb codes and raw bits. states: of the lanes. words: uint16.
    """

    precision: int
    bypass: tuple[int, ...]
    tables: tuple[Table, ...]
    order: int
    escapes: bytes
    lows: bytes
    states: tuple[int, ...]
    words: npt.NDArray[np.uint16]

    @property
    def classes(self) -> int:
        """Of rows."""
        return max(1, len(self.tables) - 1)

    @classmethod
    def of(cls, payload: bytes, shapes: Sequence[tuple[int, int]]) -> Header:
        """Of a payload of matrices that have elements. Raises Refused."""
        source = Bytes(payload)
        head, low = source.byte(), source.byte()
        if head & 7 == 7 or head >> 3 & 3 == 3:
            raise Refused(CORRUPT)
        lanes, precision, classes = 1 << (head & 7), 12 + (head >> 3 & 3), (head >> 5) + 1
        bypass = tuple(source.take(len(shapes))) if low == 255 else (low,) * len(shapes)
        if max(bypass) > MAX_BYPASS:
            raise Refused(CORRUPT)
        tables = tuple(Table(source, precision) for _ in range(classes + (classes > 1)))
        escape_bytes = order = 0
        if any(table.escape for table in tables[:classes]):
            order, escape_bytes = source.byte(), source.varint()
            if order > 31:
                raise Refused(CORRUPT)
        low_bits = sum(height * width * b for (height, width), b in zip(shapes, bypass, strict=True))
        escapes, lows = source.take(escape_bytes), source.take((low_bits + 7) // 8)
        states = tuple(np.frombuffer(source.take(4 * lanes), "<u4").tolist())
        if source.left & 1 or min(states) < START:
            raise Refused(CORRUPT)
        words = np.frombuffer(source.take(source.left), "<u2")
        return cls(precision, bypass, tables, order, escapes, lows, states, words)
