"""The three streams of a kernel section: codebook values, gains, indexes. docs/format-kernels.md, "Streams"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..bitstream import context, huffman, kernel_indexes, rans, varint
from ..bitstream.kernel_indexes import Part
from ..errors import FormatError
from ..limits import Limits
from .kernel_code import MAX_GAIN, MAX_VALUE, Integers, KernelCode

Coder: TypeAlias = Literal["fixed", "adaptive", "fast"]
CODERS: tuple[Coder, ...] = ("fixed", "adaptive", "fast")
"""Of indexes and gains, by their numbers in the file: fixed length, adaptive contexts, rANS."""

FIXED, ADAPTIVE = 0, 1
"""Coders of codebook values."""

MAX_SPAN = (1 << 16) - 1
"""Largest difference between gains of a fixed length."""


@dataclass
class Book:
    """A codebook as the parameters describe it. bits: of a fixed-length value, or bypass of the adaptive coder."""

    taps: int
    size: int
    bits: int
    decay: int = 0
    values: Integers = field(default_factory=lambda: np.zeros((0, 0), np.int32))

    @property
    def shape(self) -> context.Shape:
        return context.Shape(self.size, self.taps, self.taps, 1, self.bits)


@dataclass(frozen=True)
class Tensor:
    """What the parameters say of a tensor. Gains of a fixed length are least .. least + span, adaptive
    ones have `bypass`."""

    book: int
    rows: int
    channels: int
    step: int = 0
    row_index: npt.NDArray[np.int64] | None = None
    resolution: int = 0
    swapped: bool = False
    has_gains: bool = False
    least: int = 0
    span: int = 0
    bypass: int = 0

    @property
    def count(self) -> int:
        return self.rows * self.channels

    @property
    def gain_shape(self) -> context.Shape:
        return context.Shape(self.rows, self.channels, 1, 1, self.bypass)

    @property
    def gain_bits(self) -> int:
        return huffman.fixed_bits(self.span + 1)


# ---- encoding ----------------------------------------------------------------------------------------

def encode_values(books: Sequence[Book], way: int) -> bytes:
    if way == ADAPTIVE:
        return context.encode([book.values for book in books], [book.shape for book in books])
    return b"".join(huffman.encode_fixed(book.values.ravel() + np.int32(1 << (book.bits - 1)), book.bits)
                    for book in books)


def encode_gains(tensors: Sequence[Tensor], gains: Sequence[Integers | None], coder: Coder) -> bytes:
    pairs = [(tensor, np.ascontiguousarray(gain)) for tensor, gain in zip(tensors, gains, strict=True)
             if gain is not None]
    if coder == "adaptive":
        return context.encode([gain for _, gain in pairs], [tensor.gain_shape for tensor, _ in pairs])
    if coder == "fast":
        return rans.encode([gain for _, gain in pairs])
    return b"".join(huffman.encode_fixed(gain.ravel() - np.int32(tensor.least), tensor.gain_bits)
                    for tensor, gain in pairs)


def encode_indexes(tensors: Sequence[Tensor], books: Sequence[Book], codes: Sequence[KernelCode],
                    coder: Coder) -> bytes:
    if coder == "adaptive":
        order, parts = _index_parts(tensors, books, [code.gain for code in codes])
        return kernel_indexes.encode([codes[i].index for i in order], parts)
    alive = [code.index if code.gain is None else code.index[code.gain != 0][None] for code in codes]
    if coder == "fast":
        return rans.encode([np.ascontiguousarray(index) for index in alive])
    return b"".join(huffman.encode_fixed(index, huffman.fixed_bits(books[tensor.book].size))
                    for index, tensor in zip(alive, tensors, strict=True))


def _index_parts(tensors: Sequence[Tensor], books: Sequence[Book],
                 gains: Sequence[Integers | None]) -> tuple[list[int], list[Part]]:
    """The order in which the adaptive coder takes the tensors, codebook by codebook, and how it sees them."""
    order = [i for b in range(len(books)) for i, tensor in enumerate(tensors) if tensor.book == b]
    parts, last = [], -1
    for i in order:
        tensor, book = tensors[i], books[tensors[i].book]
        parts.append(Part(tensor.rows, tensor.channels, book.size, book.decay, tensor.book != last, gains[i]))
        last = tensor.book
    return order, parts


# ---- decoding ----------------------------------------------------------------------------------------

def decode_values(data: bytes, books: Sequence[Book], way: int) -> None:
    """Fill in the books' values. Their number is bounded by the tensors' sizes."""
    if way == ADAPTIVE:
        found = context.decode(data, [book.shape for book in books])
    else:
        flat = _decode_fixed(data, [(book.size * book.taps, book.bits) for book in books], "codebook values")
        found = [values.reshape(book.size, book.taps) - np.int32(1 << (book.bits - 1))
                 for values, book in zip(flat, books, strict=True)]
    for book, values in zip(books, found, strict=True):
        if values.size and (int(values.min()) < -MAX_VALUE or int(values.max()) >= MAX_VALUE):
            raise FormatError("a codebook value has more than 16 bits: the file is corrupt")
        book.values = values


def decode_gains(data: bytes, tensors: Sequence[Tensor], coder: Coder, limits: Limits) -> list[Integers | None]:
    members = [tensor for tensor in tensors if tensor.has_gains]
    if coder == "adaptive":
        found = context.decode(data, [tensor.gain_shape for tensor in members])
    elif coder == "fast":
        found = rans.decode(data, [(tensor.rows, tensor.channels) for tensor in members], limits)
    else:
        flat = _decode_fixed(data, [(tensor.count, tensor.gain_bits) for tensor in members], "gains")
        found = [gain.reshape(tensor.rows, tensor.channels) + np.int32(tensor.least)
                 for gain, tensor in zip(flat, members, strict=True)]
        for gain, tensor in zip(found, members, strict=True):
            if gain.size and int(gain.max()) > tensor.least + tensor.span:
                raise FormatError("a gain is beyond the largest: the file is corrupt")
    for gain in found:
        if gain.size and (int(gain.min()) < -MAX_GAIN or int(gain.max()) > MAX_GAIN):
            raise FormatError(f"a gain is beyond +-{MAX_GAIN}: the file is corrupt")
    given = iter(found)
    return [next(given) if tensor.has_gains else None for tensor in tensors]


def decode_indexes(data: bytes, tensors: Sequence[Tensor], books: Sequence[Book],
                    gains: Sequence[Integers | None], coder: Coder, limits: Limits) -> list[Integers]:
    if coder == "adaptive":
        order, parts = _index_parts(tensors, books, gains)
        found = kernel_indexes.decode(data, parts)
        place = {i: p for p, i in enumerate(order)}
        return [found[place[i]] for i in range(len(tensors))]
    alive = [tensor.count if gain is None else int(np.count_nonzero(gain))
             for tensor, gain in zip(tensors, gains, strict=True)]
    if coder == "fast":
        shapes = [(tensor.rows, tensor.channels) if gain is None else (1, count)
                  for tensor, gain, count in zip(tensors, gains, alive, strict=True)]
        flat = [index.ravel() for index in rans.decode(data, shapes, limits)]
    else:
        flat = _decode_fixed(data, [(count, huffman.fixed_bits(books[tensor.book].size))
                                    for count, tensor in zip(alive, tensors, strict=True)], "kernel indexes")
    out = []
    for index, tensor, gain in zip(flat, tensors, gains, strict=True):
        if index.size and (int(index.min()) < 0 or int(index.max()) >= books[tensor.book].size):
            raise FormatError("a kernel index is beyond its codebook: the file is corrupt")
        if gain is None:
            out.append(index.reshape(tensor.rows, tensor.channels))
        else:
            out.append(np.zeros((tensor.rows, tensor.channels), np.int32))
            out[-1][gain != 0] = index
    return out


def _decode_fixed(data: bytes, lists: Sequence[tuple[int, int]], what: str) -> list[Integers]:
    """Lists of (count) numbers of (bits) each; every list begins with a byte of its own."""
    cursor = varint.ByteReader(data, what)
    out = [huffman.decode_fixed(cursor.take(-(-count * bits // 8), what), bits, count) for count, bits in lists]
    if cursor.left:
        raise cursor.fail("bytes are left after the last one")
    return out
