"""Unsigned LEB128: seven bits a byte, least significant first, the top bit set on all bytes but the last.

Only the shortest form is accepted, so that every number has exactly one encoding.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import FormatError

MAX_BITS = 63
"""Numbers are below 2^63, so that they fit every language's signed 64-bit integer."""


def encode(values: Iterable[int]) -> bytes:
    """The varints of `values` one after another.

    >>> encode([0, 127, 128, 300]).hex()
    '007f8001ac02'
    """
    out = bytearray()
    for value in values:
        if not 0 <= value < 1 << MAX_BITS:
            raise FormatError(f"{value} cannot be stored as an unsigned number of {MAX_BITS} bits")
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


class ByteReader:
    """A cursor over bytes whose every step is checked; `where` names the place in error messages."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.position

    def fail(self, problem: str) -> FormatError:
        """A FormatError that says what is wrong and where; to be raised by the caller."""
        return FormatError(f"{self.where}, byte {self.position}: {problem}")

    def varint(self) -> int:
        """The next number. FormatError if it is cut off, longer than needed, or 2^63 or more."""
        data, start, end = self.data, self.position, len(self.data)
        value = shift = 0
        for position in range(start, min(end, start + 9)):
            byte = data[position]
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0 and shift:
                    raise self.fail("a number is stored with more bytes than it needs")
                self.position = position + 1
                return value
            shift += 7
        raise self.fail("a number is cut off" if end - start < 9 else "a number has more than 63 bits")

    def varints(self, count: int) -> list[int]:
        """The next `count` numbers; `count` is checked against the bytes that are left first."""
        self.require(count, "numbers")
        return [self.varint() for _ in range(count)]

    def take(self, count: int, what: str = "bytes") -> bytes:
        """The next `count` bytes."""
        self.require(count, what)
        self.position += count
        return self.data[self.position - count : self.position]

    def require(self, count: int, what: str) -> None:
        """FormatError unless `count` bytes are left."""
        if count > self.left:
            raise self.fail(f"{count:,} {what} are announced but only {self.left:,} bytes are left")
