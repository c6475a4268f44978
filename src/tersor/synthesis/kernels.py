"""Tool 6: kernels as indexes into codebooks of kernels ("Kernel quantization for efficient network compression",
Yu, Shi, Huang, Yu, IEEE Access 2022), with optional signs or gains.

    payload, weight_bytes = kernels.encode_counted(codes, shapes, "adaptive")
    arrays = kernels.decode(payload, records, limits, threads)
    codes = kernels.decode_codes(payload, records)

A section holds any number of tensors and codebooks; tensors with equal codebooks share one. Indexes have a
fixed length (as in the paper), or go through the adaptive index coder or rANS. docs/format-kernels.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..bitstream import context, kernel_indexes, varint
from ..bitstream.dtypes import FLOATS
from ..bitstream.integers import IntegerReader, IntegerWriter
from ..bitstream.kernel_indexes import MAX_DECAY, MAX_KERNELS
from ..bitstream.manifest import TensorRecord
from ..errors import ConfigError, FormatError
from ..limits import DEFAULT_LIMITS, Limits
from . import grid, spread
from .kernel_code import MAX_GAIN, MAX_VALUE, KernelCode, channels_of, compact, row_grid, used
from .kernel_streams import (
    ADAPTIVE,
    CODERS,
    FIXED,
    MAX_SPAN,
    Book,
    Coder,
    Tensor,
    decode_gains,
    decode_indexes,
    decode_values,
    encode_gains,
    encode_indexes,
    encode_values,
)
from .rounding import to_dtype
from .scalar import view_shape

__all__ = ["CODERS", "Coder", "KernelCode", "decode", "decode_codes", "encode", "encode_counted"]

# Contexts of the integer code.
_CODER, _VALUES, _SWAPPED, _BOOK, _TAPS, _SIZE, _BITS, _DECAY, _STEP, _RESOLUTION, _CLASS, _HAS_GAIN, _GAIN, _SPAN, \
    _BYTES = range(15)
_ROW = 16  # the first of eight


# ---- encoding ----------------------------------------------------------------------------------------

def encode(codes: Sequence[KernelCode], shapes: Sequence[tuple[int, ...]], coder: Coder = "adaptive",
           value_bits: int | None = None) -> bytes:
    """The payload alone; see `encode_counted`."""
    return encode_counted(codes, shapes, coder, value_bits)[0]


def encode_counted(codes: Sequence[KernelCode], shapes: Sequence[tuple[int, ...]], coder: Coder = "adaptive",
                   value_bits: int | None = None) -> tuple[bytes, int]:
    """The payload for tensors in the order of the manifest, and how many of its bytes are codes of weights (indexes
    and gains, not codebooks and other parameters).

    Unused kernels are left out and the others sorted by how often they are used. value_bits: values are stored with
    at least so many bits each where they have a fixed length (the paper's 6); entropy-coded ones are stored where
    that is shorter, unless the coder is "fixed".
    Raises ConfigError for an unknown coder or integers beyond the format's ranges, ValueError where codes and shapes
    do not fit each other.
    """
    if coder not in CODERS:
        raise ConfigError(f"unknown coder {coder!r}; there are {', '.join(CODERS)}")
    codes = compact([_checked(code, shape) for code, shape in zip(codes, shapes, strict=True)])
    ways = (FIXED,) if coder == "fixed" else (ADAPTIVE, FIXED)
    written = [_encode(codes, coder, way, value_bits or 1) for way in ways]
    return min(written, key=lambda pair: len(pair[0]))


def _checked(code: KernelCode, shape: tuple[int, ...]) -> KernelCode:
    k, t = code.values.shape
    if not 1 <= k <= MAX_KERNELS or t < 1:
        raise ConfigError(f"a codebook of {k:,} kernels of {t} taps; there must be 1 to {MAX_KERNELS:,} of at least 1")
    wanted = channels_of(shape, code.swapped, t)
    if code.index.shape != wanted or (code.gain is not None and code.gain.shape != wanted):
        raise ValueError(f"indexes {code.index.shape} were given for a tensor of shape {shape}, which has {wanted} "
                         f"kernels")
    if code.index.size and not (int(code.index.min()) >= 0 and int(code.index.max()) < k):
        raise ValueError(f"an index is outside of 0..{k - 1}")
    if int(code.values.min()) < -MAX_VALUE or int(code.values.max()) >= MAX_VALUE:
        raise ConfigError("a codebook value has more than 16 bits")
    if code.gain is not None and code.gain.size and int(np.abs(code.gain.astype(np.int64)).max()) > MAX_GAIN:
        raise ConfigError(f"a gain is beyond +-{MAX_GAIN:,}")
    if t > max(1, view_shape(shape, code.swapped).columns):
        raise ConfigError(f"kernels of {t} taps for rows of {view_shape(shape, code.swapped).columns} weights")
    return code


def _encode(codes: Sequence[KernelCode], coder: Coder, way: int, least_bits: int) -> tuple[bytes, int]:
    writer = IntegerWriter()
    writer.put([CODERS.index(coder)], _CODER)
    writer.put([way], _VALUES)
    books: list[tuple[KernelCode, Book]] = []
    tensors: list[Tensor] = []
    step = taps = 0
    for i, code in enumerate(codes):
        writer.put([int(code.swapped)], _SWAPPED)
        book = next((b for b, (first, _) in enumerate(books) if first.same_codebook(code)), len(books))
        writer.put([book - len(books)], _BOOK)
        if book == len(books):
            counts = np.sum([used(other) for other in codes[i:] if other.same_codebook(code)], axis=0)
            books.append((code, _describe(code, way, least_bits, coder, counts)))
            _put_book(writer, books[-1][1], taps, coder)
            taps = code.taps
        writer.put([code.step_index - step], _STEP)
        step = code.step_index
        writer.put([-1 if code.row_index is None else code.row_resolution], _RESOLUTION)
        if code.row_index is not None:
            spread.put(writer, code.row_index, 1, _CLASS, _ROW)
        tensors.append(_with_gains(Tensor(book, code.index.shape[0], code.index.shape[1]), code, coder))
        _put_gains(writer, tensors[-1], coder)
    values = encode_values([book for _, book in books], way)
    gains = encode_gains(tensors, [code.gain for code in codes], coder)
    indexes = encode_indexes(tensors, [book for _, book in books], codes, coder)
    writer.put([len(values), len(gains)], _BYTES)
    parameters = writer.finish()
    payload = b"".join([varint.encode([len(parameters)]), parameters, values, gains, indexes])
    return payload, len(gains) + len(indexes)


def _describe(code: KernelCode, way: int, least_bits: int, coder: Coder, counts: npt.NDArray[np.int64]) -> Book:
    size, taps = code.values.shape
    if way == ADAPTIVE:
        bits = context.choose_bypass(code.values)
    else:
        reach = max(int(code.values.max()), -int(code.values.min()) - 1)
        bits = min(16, max(least_bits, 1 + max(reach, 0).bit_length()))
    decay = kernel_indexes.choose_decay(counts) if coder == "adaptive" else 0
    return Book(taps, size, bits, decay, code.values)


def _put_book(writer: IntegerWriter, book: Book, taps_before: int, coder: Coder) -> None:
    writer.put([book.taps - taps_before], _TAPS)
    writer.put([book.size - 1], _SIZE)
    writer.put([book.bits], _BITS)
    if coder == "adaptive":
        writer.put([book.decay], _DECAY)


def _with_gains(tensor: Tensor, code: KernelCode, coder: Coder) -> Tensor:
    """The tensor with the parameters of its gains chosen."""
    if code.gain is None:
        return tensor
    if coder != "fixed":
        return replace(tensor, has_gains=True, bypass=context.choose_bypass(code.gain) if coder == "adaptive" else 0)
    low, high = (int(code.gain.min()), int(code.gain.max())) if code.gain.size else (0, 0)
    if high - low > MAX_SPAN:
        raise ConfigError(f"gains from {low} to {high} are too many for a fixed length; use another coder")
    return replace(tensor, has_gains=True, least=low, span=high - low)


def _put_gains(writer: IntegerWriter, tensor: Tensor, coder: Coder) -> None:
    writer.put([int(tensor.has_gains)], _HAS_GAIN)
    if tensor.has_gains and coder == "fixed":
        writer.put([tensor.least], _GAIN)
        writer.put([tensor.span], _SPAN)
    elif tensor.has_gains and coder == "adaptive":
        writer.put([tensor.bypass], _GAIN)


# ---- decoding ----------------------------------------------------------------------------------------

def decode(payload: bytes, records: Sequence[TensorRecord], limits: Limits,
           threads: int) -> list[npt.NDArray[np.generic]]:
    """The tensors of `records` (at least one axis, a float type).

    Memory: besides the result and its float64 form, 8 bytes per kernel. Raises FormatError for anything that
    `encode` cannot have written. The work is too small for threads.
    """
    codes = decode_codes(payload, records, limits)
    return [to_dtype(code.tensor(record.shape), record.dtype, record.name)
            for code, record in zip(codes, records, strict=True)]


def decode_codes(payload: bytes, records: Sequence[TensorRecord], limits: Limits = DEFAULT_LIMITS) -> list[KernelCode]:
    """The integers as they are, without the restored tensors; tensors of one codebook share its array of values.
    Raises as `decode`."""
    for record in records:
        if not record.shape or record.dtype not in FLOATS:
            raise FormatError(f"{record.name}: a {record.dtype} tensor of shape {list(record.shape)} cannot be in a "
                              f"kernel section")
        limits.check(f"kernels of {record.name}", 8 * record.count, "max_tensor_bytes")
    limits.check("kernels of a section", 8 * sum(record.count for record in records), "max_bytes")
    head = varint.ByteReader(payload, "kernel payload")
    coder, way, tensors, books, sizes = _read(head.take(head.varint(), "bytes of parameters"), records)
    decode_values(head.take(sizes[0], "bytes of codebook values"), books, way)
    gains = decode_gains(head.take(sizes[1], "bytes of gains"), tensors, coder, limits)
    indexes = decode_indexes(head.take(head.left), tensors, books, gains, coder, limits)
    return [KernelCode(books[tensor.book].values, index, tensor.step, gain, tensor.row_index, tensor.resolution,
                       tensor.swapped)
            for tensor, index, gain in zip(tensors, indexes, gains, strict=True)]


def layout_of(payload: bytes, records: Sequence[TensorRecord]) -> tuple[Coder, int]:
    """What `encode` was called with besides codes: the coder, and the least bits of a value where these have a fixed
    length (else 1); raises as `decode`."""
    head = varint.ByteReader(payload, "kernel payload")
    coder, way, _, books, _ = _read(head.take(head.varint(), "bytes of parameters"), records)
    return coder, min((book.bits for book in books), default=1) if way == FIXED else 1


def _read(data: bytes, records: Sequence[TensorRecord]) -> tuple[Coder, int, list[Tensor], list[Book], list[int]]:
    """Coder, coder of values, tensors, codebooks, bytes of the values' and the gains' stream."""
    reader = IntegerReader(data)
    coder = CODERS[reader.one(_CODER, 0, len(CODERS) - 1, "the coder of a kernel section")]
    way = reader.one(_VALUES, FIXED, ADAPTIVE, "the coder of codebook values")
    books: list[Book] = []
    tensors: list[Tensor] = []
    step = taps = 0
    for record in records:
        name = record.name
        swapped = bool(reader.one(_SWAPPED, 0, int(len(record.shape) > 1), f"{name}: axis order"))
        book = len(books) + reader.one(_BOOK, -len(books), 0, f"{name}: the codebook")
        columns = view_shape(record.shape, swapped).columns
        if book == len(books):
            books.append(_read_book(reader, taps, coder, way, name))
            taps = books[-1].taps
        if books[book].taps > max(1, columns):
            raise FormatError(f"{name}: kernels of {books[book].taps} taps for rows of {columns} weights: "
                              f"the file is corrupt")
        rows, channels = channels_of(record.shape, swapped, books[book].taps)
        step += int(reader.take(1, _STEP)[0])
        resolution = reader.one(_RESOLUTION, -1, 5, f"{name}: resolution of row steps")
        row_index = spread.take(reader, rows, _CLASS, _ROW, name) if resolution >= 0 else None
        _check_steps(step, row_index, resolution, name)
        tensor = Tensor(book, rows, channels, step, row_index, max(resolution, 0), swapped)
        tensors.append(_take_gains(reader, tensor, coder, name))
    sizes = [reader.one(_BYTES, 0, 1 << 40, "the length of a stream") for _ in range(2)]
    reader.end()
    for b, book_ in enumerate(books):
        kernels = sum(tensor.count for tensor in tensors if tensor.book == b)
        if book_.size > max(1, kernels):
            raise FormatError(f"a codebook of {book_.size} for {kernels} kernels: the file is corrupt")
    return coder, way, tensors, books, sizes


def _read_book(reader: IntegerReader, taps_before: int, coder: Coder, way: int, name: str) -> Book:
    taps = taps_before + int(reader.take(1, _TAPS)[0])
    if not 1 <= taps <= 1 << 40:
        raise FormatError(f"{name}: kernels of {taps} taps: the file is corrupt")
    size = reader.one(_SIZE, 0, MAX_KERNELS - 1, f"{name}: the size of the codebook") + 1
    low, high = (1, 16) if way == FIXED else (0, context.MAX_BYPASS)
    bits = reader.one(_BITS, low, high, f"{name}: bits of codebook values")
    return Book(taps, size, bits, reader.one(_DECAY, 0, MAX_DECAY, f"{name}: decay") if coder == "adaptive" else 0)


def _take_gains(reader: IntegerReader, tensor: Tensor, coder: Coder, name: str) -> Tensor:
    """The inverse of `_put_gains`."""
    if not reader.one(_HAS_GAIN, 0, 1, f"{name}: whether there are gains"):
        return tensor
    least = span = bypass = 0
    if coder == "fixed":
        least = reader.one(_GAIN, -MAX_GAIN, MAX_GAIN, f"{name}: the least gain")
        span = reader.one(_SPAN, 0, MAX_SPAN, f"{name}: the range of gains")
    elif coder == "adaptive":
        bypass = reader.one(_GAIN, 0, context.MAX_BYPASS, f"{name}: bypass bits of gains")
    return replace(tensor, has_gains=True, least=least, span=span, bypass=bypass)


def _check_steps(step: int, row_index: npt.NDArray[np.int64] | None, resolution: int, name: str) -> None:
    if row_index is not None and row_index.size and int(np.abs(row_index).max()) > grid.MAX_INDEX:
        raise FormatError(f"{name}: a row's step is beyond the grid: the file is corrupt")
    steps = row_grid(1, step, None, 0) if row_index is None or not row_index.size else \
        row_grid(row_index.size, step, row_index, resolution)
    if int(np.abs(steps).max()) > grid.MAX_INDEX:
        raise FormatError(f"{name}: a step is beyond the grid: the file is corrupt")
