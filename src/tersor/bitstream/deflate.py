"""Raw DEFLATE (RFC 1951) with bounds: never more memory than the announced length, never bytes left over."""

from __future__ import annotations

import zlib

from ..errors import FormatError

_PIECE = 1 << 16  # DEFLATE expands at most 1032 times, so one piece becomes 64 MiB at most


def deflate(data: bytes, dictionary: bytes = b"") -> bytes:
    """The shortest of a few encodings; for data above 1 MiB the first, above 4 MiB a faster one."""
    best: bytes | None = None
    strategies = [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_FIXED]
    for strategy in strategies[: 1 if len(data) > 1 << 20 else None]:
        level = 9 if len(data) < 1 << 22 else 6
        if dictionary:
            coder = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy, dictionary)
        else:
            coder = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
        stored = coder.compress(data) + coder.flush()
        if best is None or len(stored) < len(best):
            best = stored
    assert best is not None  # strategies is not empty
    return best


def inflate(stored: bytes, length: int, what: str, dictionary: bytes = b"") -> bytes:
    """Exactly `length` bytes from a stream that ends exactly with `stored`; or FormatError naming `what`."""
    coder = zlib.decompressobj(-15, dictionary) if dictionary else zlib.decompressobj(-15)
    pieces, left, position = [], length, 0
    try:
        while position < len(stored) and not coder.eof and left >= 0:
            pieces.append(coder.decompress(stored[position : position + _PIECE], left + 1))
            left -= len(pieces[-1])
            position += _PIECE
    except zlib.error as error:
        raise FormatError(f"{what} cannot be inflated ({error}): the file is corrupt") from None
    if left or not coder.eof or coder.unused_data or position < len(stored):
        raise FormatError(f"{what} does not inflate to the expected {length:,} bytes: the file is corrupt")
    return b"".join(pieces)
