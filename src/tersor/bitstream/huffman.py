"""Canonical Huffman codes of limited length (optimal within the limit), and fixed-length codes.

    lengths = huffman.code_lengths(np.bincount(symbols, minlength=k))
    data = huffman.encode(symbols, lengths)
    symbols = huffman.decode(data, lengths, symbols.size)

Symbols are int32, 0 .. k - 1. The lengths travel elsewhere: see `put_lengths`. Package-merge: Larmore
and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", 1990. Format: docs/format.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import native
from .integers import IntegerReader, IntegerWriter

MAX_LENGTH = 20
"""Bits of the longest code word."""
MAX_ALPHABET = 1 << 16

Symbols = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.uint8]

_INT32, _UINT8 = native.array(np.int32), native.array(np.uint8)
_INT32_OUT, _UINT8_OUT = native.array(np.int32, writable=True), native.array(np.uint8, writable=True)
_lengths = native.function("tersor_huffman_lengths",
                           [native.array(np.int64), native.INT64, native.INT32, _UINT8_OUT])
_encode = native.function("tersor_huffman_encode", [
    _INT32, native.INT64, _UINT8, native.INT64, _UINT8_OUT, native.INT64])
_decode = native.function("tersor_huffman_decode", [
    native.BYTES, native.INT64, _UINT8, native.INT64, _INT32_OUT, native.INT64])
_fixed_encode = native.function("tersor_fixed_encode", [
    _INT32, native.INT64, native.INT32, _UINT8_OUT, native.INT64])
_fixed_decode = native.function("tersor_fixed_decode", [
    native.BYTES, native.INT64, native.INT32, _INT32_OUT, native.INT64])


def code_lengths(counts: npt.ArrayLike, limit: int = MAX_LENGTH) -> Lengths:
    """Optimal code lengths of at most `limit` bits for symbols that occur so often, uint8 [k].

    0 for symbols that do not occur; 1 for a symbol that is alone, which then takes no bits at all.
    Raises ValueError where so many symbols have no code within the limit.

    >>> code_lengths([10, 0, 3, 2, 1]).tolist(), code_lengths([10, 0, 3, 2, 1], limit=2).tolist()
    ([1, 0, 2, 3, 3], [2, 0, 2, 2, 2])
    """
    many = np.ascontiguousarray(counts, dtype=np.int64).ravel()
    if not 1 <= limit <= MAX_LENGTH or np.count_nonzero(many) > 1 << limit or many.size > MAX_ALPHABET:
        raise ValueError(f"no code for {many.size:,} symbols with words of at most {limit} bits")
    lengths = np.zeros(many.size, dtype=np.uint8)
    native.check(_lengths(many, many.size, limit, lengths), "Huffman code lengths")
    return lengths


def stream_bits(counts: npt.ArrayLike, lengths: Lengths) -> int:
    """Bits of all words together, for symbols that occur so often; 0 where only one symbol has a word."""
    many = np.asarray(counts, dtype=np.int64)
    return int((many * lengths).sum()) if np.count_nonzero(lengths) > 1 else 0


def encode(symbols: Symbols, lengths: Lengths) -> bytes:
    """The words of int32 symbols of any shape, in C order; every symbol must have a length."""
    flat = np.ascontiguousarray(symbols, dtype=np.int32).ravel()
    longest = int(lengths.max(initial=0))
    out = np.empty((flat.size * longest + 7) // 8, dtype=np.uint8)
    used = native.check(_encode(flat, flat.size, lengths, lengths.size, out, out.size), "Huffman coding")
    return out[:used].tobytes()


def decode(data: bytes, lengths: Lengths, count: int) -> Symbols:
    """`count` symbols, int32 [count]. FormatError where the lengths are no complete code, or `data` does
    not hold exactly so many words and zero bits up to the next byte.

    The caller has checked `count` against its limits.
    """
    out = np.empty(count, dtype=np.int32)
    native.check(_decode(data, len(data), lengths, lengths.size, out, count), "decoding a Huffman code")
    return out


def fixed_bits(alphabet: int) -> int:
    """Bits of a fixed-length code for so many symbols.

    >>> [fixed_bits(k) for k in (0, 1, 2, 5, 64)]
    [0, 0, 1, 3, 6]
    """
    return max(0, alphabet - 1).bit_length()


def encode_fixed(symbols: Symbols, bits: int) -> bytes:
    """int32 symbols of any shape with so many bits each (at most 16)."""
    flat = np.ascontiguousarray(symbols, dtype=np.int32).ravel()
    out = np.empty((flat.size * bits + 7) // 8, dtype=np.uint8)
    used = native.check(_fixed_encode(flat, flat.size, bits, out, out.size), "fixed-length coding")
    return out[:used].tobytes()


def decode_fixed(data: bytes, bits: int, count: int) -> Symbols:
    """`count` symbols, int32 [count]; FormatError where `data` has another length than they take."""
    out = np.empty(count, dtype=np.int32)
    native.check(_fixed_decode(data, len(data), bits, out, count), "decoding a fixed-length code")
    return out


def put_lengths(writer: IntegerWriter, lengths: Lengths, unused: int, step: int) -> None:
    """Write a table of lengths: for each symbol 1 if it is unused, else 0 (in the context `unused`); then
    for each used symbol its length minus that of the used symbol before (in the context `step`)."""
    used = lengths[lengths > 0].astype(np.int64)
    writer.put((lengths == 0).astype(np.int64), unused)
    writer.put(np.diff(used, prepend=0), step)


def take_lengths(reader: IntegerReader, alphabet: int, unused: int, step: int, what: str) -> Lengths:
    """The inverse of `put_lengths`, uint8 [alphabet]; FormatError that names `what` for other numbers.

    Whether they are a complete code is for `decode` to find out.
    """
    flags = reader.take(alphabet, unused)
    used = flags == 0
    values = np.cumsum(reader.take(int(used.sum()), step))
    good = ((values >= 1) & (values <= MAX_LENGTH)).all() and (flags[~used] == 1).all()
    if not good:
        raise FormatError(f"{what}: a code length is outside 1..{MAX_LENGTH}: the file is corrupt")
    lengths = np.zeros(alphabet, dtype=np.uint8)
    lengths[used] = values
    return lengths
