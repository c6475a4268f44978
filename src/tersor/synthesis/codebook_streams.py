"""Streams of small symbols by any of four entropy coders: what a codebook section is made of.

A stream holds the symbols 0 .. alphabet - 1 of some matrices. The adaptive and the rANS coder code
symbol - offset, where small magnitudes are the likely ones. docs/format.md, "Tool 4: codebook".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..bitstream import context, huffman, rans
from ..bitstream.context import Shape
from ..bitstream.integers import IntegerReader, IntegerWriter
from ..errors import FormatError
from ..limits import Limits

Coder: TypeAlias = Literal["fixed", "huffman", "arithmetic", "fast"]
CODERS: tuple[Coder, ...] = ("fixed", "huffman", "arithmetic", "fast")
"""By their numbers in the file: fixed length, canonical Huffman, adaptive contexts, rANS."""

Matrix: TypeAlias = npt.NDArray[np.int32]

# Contexts of the integer code; codebook.py has those before 8.
_UNUSED, _LENGTH, _BYPASS = 8, 9, 10


@dataclass(frozen=True)
class Stream:
    """How one stream is coded: all that a decoder must know besides the sizes of the matrices."""

    coder: Coder
    alphabet: int
    offset: int = 0
    lengths: huffman.Lengths | None = None
    """Of the Huffman code."""
    bypass: int = 0
    """Uncoded low bits, of the adaptive coder."""

    @property
    def has_table(self) -> bool:
        """Whether every symbol of the alphabet needs a word of its own: such alphabets must be small."""
        return self.coder in ("fixed", "huffman")


def fitted(stream: Stream, matrices: Sequence[Matrix]) -> Stream:
    """The stream with its parameters chosen for these symbols."""
    if stream.coder == "huffman":
        return replace(stream, lengths=huffman.code_lengths(counts(matrices, stream.alphabet)))
    if stream.coder == "arithmetic":
        size = sum(matrix.size for matrix in matrices)
        total = sum(int(np.abs(matrix - np.int32(stream.offset)).sum(dtype=np.int64)) for matrix in matrices)
        mean = np.full((1, 1), min(round(total / max(1, size)), 1 << 29), dtype=np.int32)
        return replace(stream, bypass=context.choose_bypass(mean))
    return stream


def counts(matrices: Sequence[Matrix], alphabet: int) -> npt.NDArray[np.int64]:
    """How often each symbol occurs, int64 [alphabet]."""
    out = np.zeros(alphabet, dtype=np.int64)
    for matrix in matrices:
        out += np.bincount(matrix.ravel(), minlength=alphabet)
    return out


def put(writer: IntegerWriter, stream: Stream) -> None:
    """Write the parameters of a stream that is `fitted`."""
    if stream.lengths is not None:
        huffman.put_lengths(writer, stream.lengths, _UNUSED, _LENGTH)
    if stream.coder == "arithmetic":
        writer.put([stream.bypass], _BYPASS)


def take(reader: IntegerReader, stream: Stream) -> Stream:
    """The stream with the parameters that `put` wrote."""
    if stream.coder == "huffman":
        return replace(stream, lengths=huffman.take_lengths(reader, stream.alphabet, _UNUSED, _LENGTH,
                                                            "a codebook section"))
    if stream.coder == "arithmetic":
        return replace(stream, bypass=reader.one(_BYPASS, 0, context.MAX_BYPASS, "bypass bits"))
    return stream


def encode(stream: Stream, matrices: Sequence[Matrix], shapes: Sequence[Shape]) -> bytes:
    """The bytes of the symbols of int32 matrices [rows, columns], in order."""
    if stream.coder == "fixed":
        return huffman.encode_fixed(_flat(matrices), huffman.fixed_bits(stream.alphabet))
    if stream.coder == "huffman":
        assert stream.lengths is not None  # the stream is fitted
        return huffman.encode(_flat(matrices), stream.lengths)
    signed = [np.ascontiguousarray(matrix - np.int32(stream.offset)) for matrix in matrices]
    if stream.coder == "arithmetic":
        return context.encode(signed, [replace(shape, bypass=stream.bypass) for shape in shapes])
    return rans.encode(signed)


def decode(stream: Stream, data: bytes, shapes: Sequence[Shape], limits: Limits) -> list[Matrix]:
    """The matrices; FormatError where no encoder wrote such bytes, or a symbol is not in the alphabet."""
    if stream.has_table:
        count = sum(shape.count for shape in shapes)
        if stream.lengths is None:
            flat = huffman.decode_fixed(data, huffman.fixed_bits(stream.alphabet), count)
        else:
            flat = huffman.decode(data, stream.lengths, count)
        ends = np.cumsum([shape.count for shape in shapes])
        matrices = [part.reshape(shape.rows, shape.columns)
                    for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
    elif stream.coder == "arithmetic":
        matrices = context.decode(data, [replace(shape, bypass=stream.bypass) for shape in shapes])
    else:
        matrices = rans.decode(data, [(shape.rows, shape.columns) for shape in shapes], limits)
    for matrix in matrices:
        if not matrix.size:
            continue
        low, high = int(matrix.min()), int(matrix.max())
        offset = 0 if stream.has_table else stream.offset
        if low + offset < 0 or high + offset >= stream.alphabet:
            raise FormatError(f"a codebook section has a symbol outside of 0..{stream.alphabet - 1}: "
                              f"the file is corrupt")
        if offset:
            matrix += np.int32(offset)
    return matrices


def _flat(matrices: Sequence[Matrix]) -> Matrix:
    return np.concatenate([np.empty(0, np.int32), *(matrix.ravel() for matrix in matrices)])
