"""The binary arithmetic decoder and its adaptive bit: native/binary.h, docs/format.md "Integer code"."""

from __future__ import annotations

_FLOOR = 32
_LIMIT = 160
_WORD = (1 << 64) - 1


class BitDecoder:
    """Bytes past the end read as zero. `position` is the number of bytes read, as of the native decoder."""

    __slots__ = ("_code", "_data", "_range", "position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._range = _WORD
        self._code = int.from_bytes(data[:8].ljust(8, b"\0"), "big")
        self.position = 8

    def decode(self, p: int) -> int:
        """A bit whose probability of being 1 is p / 65536."""
        bound = (self._range >> 16) * p
        if self._code < bound:
            bit = 1
            self._range = bound
        else:
            bit = 0
            self._code -= bound
            self._range -= bound
        if self._range < 1 << 32:
            self._range <<= 32
            here = self._data[self.position : self.position + 4]
            self._code = (self._code << 32 | int.from_bytes(here, "big") << 8 * (4 - len(here))) & _WORD
            self.position += 4
        return bit


class AdaptiveBit:
    """A probability that starts at one half and moves by 1/(n+2) at its n-th bit."""

    __slots__ = ("n", "p")

    def __init__(self) -> None:
        self.p, self.n = 32768, 0

    def decode(self, coder: BitDecoder) -> int:
        """The next bit, by which the probability moves."""
        bit = coder.decode(min(max(self.p, _FLOOR), 65536 - _FLOOR))
        if bit:
            self.p += (65535 - self.p) // (self.n + 2)
        else:
            self.p -= self.p // (self.n + 2)
        if self.n < _LIMIT - 2:
            self.n += 1
        return bit
