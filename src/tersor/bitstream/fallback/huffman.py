"""Canonical Huffman codes and fixed-length codes: native/huffman.cpp."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import BAD_ARGUMENT, CORRUPT, TRUNCATED

_MAX_LENGTH = 20
_MAX_ALPHABET = 1 << 16


def huffman_decode(data: bytes, size: int, lengths: npt.NDArray[np.uint8], symbols: int,
                   out: npt.NDArray[np.int32], count: int) -> int:
    """Fill `out` with `count` symbols. 0 or an error code."""
    if symbols > _MAX_ALPHABET:
        return BAD_ARGUMENT
    used = np.flatnonzero(lengths)
    longest = int(lengths.max(initial=0))
    space = int((1 << _MAX_LENGTH - lengths[used].astype(np.int64)).sum()) if longest <= _MAX_LENGTH else -1
    if space < 0 or (used.size == 1 and longest != 1) or (used.size > 1 and space != 1 << _MAX_LENGTH):
        return CORRUPT
    if used.size < 2:
        if used.size == 0 and count > 0:
            return CORRUPT
        out[:count] = used[0] if used.size else 0
        return 0 if size == 0 else CORRUPT
    # Words in their order fill the table of all `longest` bits from its beginning.
    order = used[np.argsort(lengths[used], kind="stable")]
    bits = lengths[order].astype(np.int64)
    spans = 1 << longest - bits
    symbol_of, bits_of = np.repeat(order, spans).tolist(), np.repeat(bits, spans).tolist()
    position = 0
    for i in range(count):
        start = position >> 3
        window = int.from_bytes(data[start : start + 4].ljust(4, b"\0"), "big")
        word = window >> 32 - longest - (position & 7) & (1 << longest) - 1
        out[i] = symbol_of[word]
        position += bits_of[word]
        if position > 8 * size:
            return TRUNCATED
    return 0 if _ended(data, position) else CORRUPT


def fixed_decode(data: bytes, size: int, bits: int, out: npt.NDArray[np.int32], count: int) -> int:
    """Fill `out` with `count` numbers of `bits` bits. 0 or an error code."""
    if not 0 <= bits <= 16:
        return BAD_ARGUMENT
    needed = (count * bits + 7) // 8
    if size != needed:
        return TRUNCATED if size < needed else CORRUPT
    out[:count] = 0
    if bits:
        stream = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
        for bit in range(bits):
            out[:count] = out[:count] << 1 | stream[:, bit]
    return 0 if _ended(data, count * bits) else CORRUPT


def _ended(data: bytes, position: int) -> bool:
    """Whether no byte is left, and the bits that fill the last one are zero."""
    if (position + 7) // 8 != len(data):
        return False
    tail = 8 * len(data) - position
    return tail == 0 or data[-1] & (1 << tail) - 1 == 0
