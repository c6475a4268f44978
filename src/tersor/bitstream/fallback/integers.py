"""The integer code of side information: native/integers.cpp."""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt

from . import BAD_ARGUMENT, CORRUPT
from .binary import AdaptiveBit, BitDecoder

_CONTEXTS = 32
_PREFIXES = 42


class _Model:
    """The adaptive bits of one context."""

    def __init__(self) -> None:
        self.zero, self.sign = AdaptiveBit(), AdaptiveBit()
        self.prefix = [AdaptiveBit() for _ in range(_PREFIXES)]
        self.first = [AdaptiveBit() for _ in range(_PREFIXES)]
        self.second = [(AdaptiveBit(), AdaptiveBit()) for _ in range(_PREFIXES)]

    def decode(self, coder: BitDecoder) -> int | None:
        """The next integer; None where the prefix is longer than any encoder writes."""
        if self.zero.decode(coder):
            return 0
        negative = self.sign.decode(coder)
        e = 0
        while self.prefix[e].decode(coder):
            e += 1
            if e >= _PREFIXES - 1:
                return None
        u = 1
        for i in reversed(range(e)):
            if i == e - 1:
                bit = self.first[e].decode(coder)
            elif i == e - 2:
                bit = self.second[e][u & 1].decode(coder)
            else:
                bit = coder.decode(32768)
            u = u << 1 | bit
        return -u if negative else u


class _Reader:
    """What the native decoder keeps in the caller's buffer."""

    def __init__(self, data: bytes) -> None:
        self.coder = BitDecoder(data)
        self.models: dict[int, _Model] = {}


_READERS: dict[int, _Reader] = {}
"""By the identity of the caller's buffer, as long as that lives."""


def integers_state_size() -> int:
    """Bytes of a state; its content does not matter here, only which array it is."""
    return 8


def integers_start(data: bytes, size: int, state: npt.NDArray[np.uint8]) -> None:
    """Begin to decode `data` with this state."""
    if id(state) not in _READERS:
        weakref.finalize(state, _READERS.pop, id(state), None)
    _READERS[id(state)] = _Reader(data)


def integers_decode(data: bytes, size: int, state: npt.NDArray[np.uint8], context: int, count: int,
                    out: npt.NDArray[np.int64]) -> int:
    """The next `count` integers of a context; the bytes consumed so far, or an error code."""
    if not 0 <= context < _CONTEXTS:
        return BAD_ARGUMENT
    reader = _READERS[id(state)]
    if context not in reader.models:
        reader.models[context] = _Model()
    model = reader.models[context]
    for i in range(count):
        value = model.decode(reader.coder)
        if value is None:
            return CORRUPT
        out[i] = value
    return reader.coder.position
