"""Tool 4: weights as indexes into a table of shared values ("Towards the limit of network quantization",
Choi, El-Khamy and Lee, ICLR 2017).

    payload, stream_bytes = codebook.encode(code, shapes, "arithmetic")
    arrays = codebook.decode(payload, records, limits, threads)
    code = codebook.decode_codebook(payload, records, limits)

One section is one codebook, shared by all tensors of the section. Each tensor is dense (an index for
every element) or sparse (gaps between the elements that are not the origin, usually 0.0, and the
indexes of those). docs/format.md, "Tool 4: codebook".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from ..bitstream import varint
from ..bitstream.context import Shape
from ..bitstream.dtypes import FLOATS
from ..bitstream.huffman import MAX_ALPHABET
from ..bitstream.integers import IntegerReader, IntegerWriter
from ..bitstream.manifest import TensorRecord
from ..errors import ConfigError, FormatError
from ..limits import DEFAULT_LIMITS, Limits
from . import codebook_gaps as gaps_of
from . import codebook_streams as streams
from .codebook_code import CodebookCode
from .codebook_layout import Layout, candidates, counted_bits
from .codebook_streams import CODERS, Coder, Matrix, Stream
from .rounding import to_dtype
from .scalar import view_shape

__all__ = ["CODERS", "CodebookCode", "Coder", "Layout", "decode", "decode_codebook", "encode",
           "paper_bits"]

FLOAT32, FLOAT16 = 0, 1
"""How the values are stored."""

# Contexts of the integer code; codebook_streams.py has 8 to 10.
_CODER, _SIZE, _VALUES, _ORIGIN, _SPARSE, _SYMBOLS, _SKIP, _PART = range(8)
_BYTES = 11

PART = 21
"""Large sections are cut into parts of 2^21 indexes, which are decoded in parallel."""
_LEAST_PART, _MOST_PART = 16, 40


# ---- encoding ----------------------------------------------------------------------------------------

def encode(code: CodebookCode, shapes: Sequence[tuple[int, ...]], coder: Coder,
           layout: Layout = "auto") -> tuple[bytes, int]:
    """The payload of `code.compact()` for tensors of these shapes, in the order of the manifest, and how
    many of its bytes are codes of weights (not values, tables or other parameters).

    layout: "dense" or "sparse" for all tensors, "auto" for what makes the payload shortest. The values
    are stored with 16 bits where that loses nothing (see `CodebookCode.halved`), else with 32.
    Raises ConfigError for an unknown coder or layout or too many values, ValueError where indexes and
    shapes do not fit each other.
    """
    if coder not in CODERS:
        raise ConfigError(f"unknown coder {coder!r}; there are {', '.join(CODERS)}")
    code = code.compact()
    if code.values.size > MAX_ALPHABET:
        raise ConfigError(f"{code.values.size:,} shared values are more than the format's {MAX_ALPHABET:,}")
    origin = code.origin
    matrices, viewed = [], []
    for index, shape in zip(code.indexes, shapes, strict=True):
        if index.size != prod(shape):
            raise ValueError(f"{index.size:,} indexes were given for a tensor of shape {shape}")
        viewed.append(view_shape(shape, False))
        matrices.append(index.reshape(viewed[-1].rows, viewed[-1].columns))
    choices = candidates(matrices, code.values.size, origin, coder, layout)
    return min((_encode(code, matrices, viewed, coder, sparse) for sparse in choices),
               key=lambda written: len(written[0]))


def paper_bits(code: CodebookCode, coder: Coder, layout: Layout = "auto") -> float:
    """The size in bits as the paper counts it (equations 1 and 2), with b = 32 bits to a value.

    "huffman": sum over clusters of (members + 1) * bits of its word, + k * b: the words themselves are
    counted as the table. "fixed": N * ceil(log2 k) + k * b. Of sparse tensors the same is counted for the
    gap symbols and for the survivors. The other coders are not in the paper: bits of their streams + k * b.
    Only weights: no manifest, no checksums. Raises as `encode`.
    """
    code = code.compact()
    values = 32.0 * code.values.size
    if coder not in ("fixed", "huffman"):
        shapes = [index.shape for index in code.indexes]
        return values + 8 * encode(code, shapes, coder, layout)[1]
    choices = candidates(code.indexes, code.values.size, code.origin, coder, layout)
    return values + min(counted_bits(code.indexes, code.values.size, code.origin, coder, sparse)
                        for sparse in choices)


def _encode(code: CodebookCode, matrices: Sequence[Matrix], shapes: Sequence[Shape], coder: Coder,
            sparse: Sequence[bool]) -> tuple[bytes, int]:
    k, origin = code.values.size, code.origin
    split = [gaps_of.split(matrix, origin) for matrix, thin in zip(matrices, sparse, strict=True) if thin]
    skip = gaps_of.choose_skip([gaps for gaps, _ in split], coder)
    symbols = [gaps_of.symbols_of(gaps, skip) for gaps, _ in split]
    with np.errstate(over="ignore"):
        halves = code.values.astype(np.float16)
    short = np.array_equal(halves.astype(np.float32), code.values)
    writer = IntegerWriter()
    writer.put([CODERS.index(coder)], _CODER)
    writer.put([k - 1], _SIZE)
    writer.put([FLOAT16 if short else FLOAT32], _VALUES)
    writer.put([origin], _ORIGIN)
    counts = iter(symbols)
    for thin in sparse:
        writer.put([int(thin)], _SPARSE)
        if thin:
            writer.put([next(counts).size], _SYMBOLS)
    indexes, skips, survivors = _streams(coder, k, origin, skip)
    dense = [i for i, thin in enumerate(sparse) if not thin]
    data = _encode_dense(writer, indexes, [matrices[i] for i in dense], [shapes[i] for i in dense])
    if any(one.size for one in symbols):
        if skips.has_table:
            writer.put([skip], _SKIP)
        data.append(_encode_rows(writer, skips, symbols))
        data.append(_encode_rows(writer, survivors, [alive for _, alive in split]))
    writer.put([len(one) for one in data[:-1]], _BYTES)
    parameters = writer.finish()
    table = (halves.astype("<f2") if short else code.values.astype("<f4")).tobytes()
    return b"".join([varint.encode([len(parameters)]), parameters, table, *data]), sum(map(len, data))


def _encode_dense(writer: IntegerWriter, stream: Stream, matrices: Sequence[Matrix],
                  shapes: Sequence[Shape]) -> list[bytes]:
    count = sum(matrix.size for matrix in matrices)
    if not count:
        return []
    part = PART if count >= 2 << PART else 0
    writer.put([part], _PART)
    stream = _fit(writer, stream, matrices)
    return [streams.encode(stream, [matrices[i][rows] for i, rows in pieces],
                           [replace(shapes[i], rows=rows.stop - rows.start) for i, rows in pieces])
            for pieces in _cut(shapes, part)]


def _encode_rows(writer: IntegerWriter, stream: Stream, lists: Sequence[Matrix]) -> bytes:
    rows = [one.reshape(1, -1) for one in lists]
    return streams.encode(_fit(writer, stream, rows), rows, [Shape(1, one.size) for one in rows])


def _fit(writer: IntegerWriter, stream: Stream, matrices: Sequence[Matrix]) -> Stream:
    """The stream with parameters for these matrices, which are written."""
    stream = streams.fitted(stream, matrices)
    streams.put(writer, stream)
    return stream


def _streams(coder: Coder, k: int, origin: int, skip: int) -> tuple[Stream, Stream, Stream]:
    """Indexes of dense tensors; gap symbols and survivors of sparse ones. Parameters are to be filled in."""
    return Stream(coder, k, origin), Stream(coder, skip + 1), Stream(coder, k - 1, origin)


def _cut(shapes: Sequence[Shape], part: int) -> Iterator[list[tuple[int, slice]]]:
    """The matrices that have elements in parts: (number, rows), each part closed with the row that brings
    it to 2^part elements; with part = 0 there is one part."""
    pieces: list[tuple[int, slice]] = []
    room = 1 << part
    for i, shape in enumerate(shapes):
        first = 0
        while shape.count and first < shape.rows:
            stop = min(shape.rows, first + -(-room // shape.columns)) if part else shape.rows
            pieces.append((i, slice(first, stop)))
            room -= (stop - first) * shape.columns
            first = stop
            if part and room <= 0:
                yield pieces
                pieces, room = [], 1 << part
    if pieces:
        yield pieces


# ---- decoding ----------------------------------------------------------------------------------------

def decode(payload: bytes, records: Sequence[TensorRecord], limits: Limits,
           threads: int) -> list[npt.NDArray[np.generic]]:
    """The tensors of `records`, of any shape and float type.

    Memory: besides the result, 4 bytes per weight. Raises FormatError for anything that `encode` cannot
    have written.
    """
    values, indexes = _decode(payload, records, limits, threads)
    wide = values.astype(np.float64)
    dtypes = {record.dtype for record in records}
    tables = {dtype: to_dtype(wide, dtype, "a shared value") for dtype in dtypes}
    return [tables[record.dtype][index].reshape(record.shape)
            for index, record in zip(indexes, records, strict=True)]


def decode_codebook(payload: bytes, records: Sequence[TensorRecord], limits: Limits = DEFAULT_LIMITS,
                    threads: int = 1) -> CodebookCode:
    """Values and indexes as they are, without the restored tensors; raises as `decode`."""
    values, indexes = _decode(payload, records, limits, threads)
    return CodebookCode.of(values, indexes)


def coder_of(payload: bytes) -> Coder:
    """The entropy coder of a section; raises as `decode`."""
    cursor = varint.ByteReader(payload, "codebook payload")
    reader = IntegerReader(cursor.take(cursor.varint(), "bytes of parameters"))
    return CODERS[reader.one(_CODER, 0, len(CODERS) - 1, "the entropy coder of a codebook section")]


@dataclass(frozen=True)
class _Head:
    """All parameters of a section."""

    values: npt.NDArray[np.float32]
    origin: int
    skip: int
    symbols: list[int]
    """Gap symbols of each tensor, -1 for dense ones."""
    part: int
    indexes: Stream
    skips: Stream
    survivors: Stream
    data: list[bytes]


def _decode(payload: bytes, records: Sequence[TensorRecord], limits: Limits,
            threads: int) -> tuple[npt.NDArray[np.float32], list[Matrix]]:
    for record in records:
        if record.dtype not in FLOATS:
            raise FormatError(f"{record.name}: a {record.dtype} tensor cannot be in a codebook section")
    shapes = [view_shape(record.shape, False) for record in records]
    total = 0
    for record, shape in zip(records, shapes, strict=True):
        limits.check(f"indexes of {record.name}", 4 * shape.count, "max_tensor_bytes")
        total += 4 * shape.count
    limits.check("indexes of a codebook section", total, "max_bytes")
    head = _read(payload, records, shapes)
    out = [np.empty((shape.rows, shape.columns), dtype=np.int32) for shape in shapes]
    dense = [i for i, count in enumerate(head.symbols) if count < 0]
    parts = list(_cut([shapes[i] for i in dense], head.part))

    def run(part: int) -> None:
        pieces = [(dense[i], rows) for i, rows in parts[part]]
        cut = [replace(shapes[i], rows=rows.stop - rows.start) for i, rows in pieces]
        found = streams.decode(head.indexes, head.data[part], cut, limits)
        for (i, rows), matrix in zip(pieces, found, strict=True):
            out[i][rows] = matrix

    with ThreadPoolExecutor(max(1, min(threads, len(parts)))) as pool:
        list(pool.map(run, range(len(parts))))
    _fill_sparse(head, records, head.data[len(parts) :], out, limits)
    return head.values, out


def _fill_sparse(head: _Head, records: Sequence[TensorRecord], data: Sequence[bytes], out: Sequence[Matrix],
                 limits: Limits) -> None:
    sparse = [(i, count) for i, count in enumerate(head.symbols) if count >= 0]
    symbols = [np.empty((1, 0), np.int32) for _ in sparse]
    survivors = symbols
    if data:
        symbols = streams.decode(head.skips, data[0], [Shape(1, count) for _, count in sparse], limits)
        kept = [int(np.count_nonzero(one < head.skip)) for one in symbols]
        survivors = streams.decode(head.survivors, data[1], [Shape(1, count) for count in kept], limits)
    for (i, _), one, alive in zip(sparse, symbols, survivors, strict=True):
        gaps_of.join(one[0], alive[0], head.skip, head.origin, out[i].reshape(-1), records[i].name)


def _read(payload: bytes, records: Sequence[TensorRecord], shapes: Sequence[Shape]) -> _Head:
    cursor = varint.ByteReader(payload, "codebook payload")
    reader = IntegerReader(cursor.take(cursor.varint(), "bytes of parameters"))
    coder = CODERS[reader.one(_CODER, 0, len(CODERS) - 1, "the entropy coder of a codebook section")]
    k = reader.one(_SIZE, 0, MAX_ALPHABET - 1, "the last index of a codebook") + 1
    stored = reader.one(_VALUES, FLOAT32, FLOAT16, "the form of the values")
    origin = reader.one(_ORIGIN, 0, k - 1, "the origin of a codebook")
    symbols = [-1] * len(records)
    for i, (record, shape) in enumerate(zip(records, shapes, strict=True)):
        if reader.one(_SPARSE, 0, 1, f"{record.name}: layout"):
            symbols[i] = reader.one(_SYMBOLS, 0, shape.count, f"{record.name}: gap symbols")
    dense = [shape for shape, count in zip(shapes, symbols, strict=True) if count < 0]
    part, parts, skip = 0, 0, gaps_of.UNBOUNDED_SKIP
    indexes, skips, survivors = _streams(coder, k, origin, skip)
    if any(shape.count for shape in dense):
        part = reader.one(_PART, 0, _MOST_PART, "the size of parts")
        if 0 < part < _LEAST_PART:
            raise FormatError(f"parts of 2^{part} indexes: the file is corrupt")
        indexes = streams.take(reader, indexes)
        parts = sum(1 for _ in _cut(dense, part))
    if any(count > 0 for count in symbols):
        if skips.has_table:
            skip = reader.one(_SKIP, 1, gaps_of.MAX_SKIP, "the longest gap")
            skips = replace(skips, alphabet=skip + 1)
        skips, survivors = streams.take(reader, skips), streams.take(reader, survivors)
        parts += 2
    lengths = reader.take(max(0, parts - 1), _BYTES).tolist()
    reader.end()
    dtype = np.dtype("<f2" if stored == FLOAT16 else "<f4")
    values = np.frombuffer(cursor.take(k * dtype.itemsize, "bytes of values"), dtype)
    if not np.isfinite(values).all():
        raise FormatError("a shared value is not finite: the file is corrupt")
    if min(lengths, default=0) < 0:
        raise FormatError("a stream of a codebook section has a negative length: the file is corrupt")
    data = [cursor.take(length, "bytes of a stream") for length in lengths]
    data += [cursor.take(cursor.left)] if parts else []
    if cursor.left:
        raise cursor.fail("bytes are left after the last stream")
    return _Head(values.astype(np.float32), origin, skip, symbols, part, indexes, skips, survivors, data)
