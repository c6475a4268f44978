"""The fast entropy coder: static models, interleaved rANS (Duda, arXiv 1311.2540; Giesen, arXiv 1402.3392).

    plan = rans.plan([q0, q1])                  # decisions: low bits, classes of rows, tables, lanes
    payload = rans.encode([q0, q1], plan)       # one group of matrices -> bytes
    q0, q1 = rans.decode(payload, [q0.shape, q1.shape])
    rans.decode_float32(payload, shapes, row_scales, out)   # fused with the reconstruction

Matrices are int32 [rows, columns] of small signed integers. Format: docs/format-rans.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..limits import DEFAULT_LIMITS, Limits
from . import native, varint
from .rans_plan import Matrix, Plan, beyond, check_matrices, estimate, map_symbols, members_of, plan, split
from .rans_tables import Table

__all__ = ["Plan", "check_shapes", "decode", "decode_float32", "encode", "estimate", "plan"]

Shapes = Sequence[tuple[int, int]]

_INT64 = native.array(np.int64)
_encode = native.function("tersor_rans_encode", [
    native.array(np.uint8), native.INT64, native.INT64, _INT64, _INT64, native.array(np.uint32),
    native.INT64, native.INT64, native.array(np.uint32, writable=True),
    native.array(np.uint16, writable=True), native.INT64])
_pack = native.function("tersor_rans_pack", [
    native.array(np.int32), native.INT64, native.INT64, native.array(np.uint8, writable=True), native.INT64,
    native.INT64])
_ADDRESSES = native.array(np.uintp)
_decode = native.function("tersor_rans_decode", [
    native.BYTES, native.INT64, native.INT64, _INT64, _INT64, _ADDRESSES,
    native.POINTER, _ADDRESSES, _INT64, native.INT32])


# ---- encoding ----------------------------------------------------------------------------------------

def encode(matrices: Sequence[Matrix], chosen: Plan | None = None) -> bytes:
    """One payload for a group of int32 [rows, columns] matrices; empty if they have no elements.

    Raises ConfigError if a given plan has no code for a value, TypeError as `plan` does.
    """
    chosen = plan(matrices) if chosen is None else chosen
    check_matrices(matrices)
    if not any(q.size for q in matrices):
        return b""
    parts = [split(q, b) for q, b in zip(matrices, chosen.bypass, strict=True)]
    high = [h for h, _ in parts]
    k = len(chosen.tables)
    streams, numbers = [], []
    if chosen.map_table is not None:
        said = map_symbols(high, chosen.classes, k)
        streams.append((said - chosen.map_table.first).astype(np.uint8))
    for c, table in enumerate(chosen.tables):
        values = members_of(high, chosen.classes, c)
        streams.append(_symbols(values, table))
        numbers.append(beyond(values, table))
    states, words = _words(streams, chosen)
    head = bytes([chosen.lanes.bit_length() - 1 | (chosen.precision - 12) << 3 | (k - 1) << 5])
    same = len(set(chosen.bypass)) == 1
    head += bytes(chosen.bypass[:1]) if same else b"\xff" + bytes(chosen.bypass)
    tables = [*chosen.tables, *([chosen.map_table] if chosen.map_table else [])]
    head += b"".join(table.stored for table in tables)
    if any(table.escape for table in chosen.tables):
        codes = _store_escapes(np.concatenate(numbers), chosen.order)
        head += bytes([chosen.order]) + varint.encode([len(codes)]) + codes
    return head + _store_low(parts, chosen) + states + words


def _store_escapes(numbers: NDArray[np.int64], order: int) -> bytes:
    bits: list[int] = []
    for number in numbers.tolist():
        value = number + (1 << order)
        length = value.bit_length() - 1
        bits += [1] * (length - order) + [0] + [value >> i & 1 for i in range(length)]
    return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


def _symbols(values: Matrix, table: Table) -> NDArray[np.uint8]:
    wide = values.astype(np.int64) - table.first
    outside = (wide < 0) | (wide >= table.size)
    if not table.escape and outside.any():
        raise ConfigError("the plan was made for other values: one is outside an alphabet without escape")
    symbols: NDArray[np.uint8] = np.where(outside, table.size, wide).astype(np.uint8)
    return symbols


def _store_low(parts: Sequence[tuple[Matrix, Matrix]], chosen: Plan) -> bytes:
    total = sum(high.size * b for (high, _), b in zip(parts, chosen.bypass, strict=True))
    packed, position = np.zeros((total + 7) // 8, np.uint8), 0
    for c in range(len(chosen.tables)):
        for (_, low), b, of in zip(parts, chosen.bypass, chosen.classes, strict=True):
            if b:
                values = np.ascontiguousarray(low[of == c])
                position = native.check(_pack(values, values.size, b, packed, packed.size, position), "pack")
    return packed.tobytes()


def _words(streams: Sequence[NDArray[np.uint8]], chosen: Plan) -> tuple[bytes, bytes]:
    """The final states and the words of all segments; the map comes first but its table is the last."""
    symbols = np.concatenate(streams)
    k = len(chosen.tables)
    frequencies = np.zeros((k + 1, 256), np.uint32)
    for i, table in enumerate([*chosen.tables, *([chosen.map_table] if chosen.map_table else [])]):
        frequencies[i, : table.frequencies.size] = table.frequencies
    order = ([k] if chosen.map_table else []) + list(range(k))
    states, words = np.zeros(chosen.lanes, np.uint32), np.empty(symbols.size, np.uint16)
    result = _encode(symbols, symbols.size, len(streams), np.array([s.size for s in streams], np.int64),
                     np.array(order, np.int64), frequencies, chosen.precision, chosen.lanes, states, words,
                     words.size)
    if result == -1:
        raise ConfigError("the plan was made for other values: one has no code")
    used = native.check(result, "encode")
    return states.astype("<u4").tobytes(), words[words.size - used :].astype("<u2").tobytes()


# ---- decoding ----------------------------------------------------------------------------------------

def decode(payload: bytes | memoryview, shapes: Shapes, limits: Limits = DEFAULT_LIMITS) -> list[Matrix]:
    """The int32 matrices of a payload; shapes [(rows, columns), ...] come from elsewhere in the file.

    Raises FormatError if the payload does not decode to exactly such matrices, LimitError before
    allocating more than `limits` allows.
    """
    check_shapes(shapes, limits)
    out = [np.empty(shape, np.int32) for shape in shapes]
    none = np.zeros(len(shapes), np.uintp)
    _run(payload, shapes, out, None, none, np.full(len(shapes), -1, np.int64))
    return out


def decode_float32(payload: bytes | memoryview, shapes: Shapes, row_scales: Sequence[NDArray[np.float32]],
                   out: Sequence[NDArray[np.float32]],
                   levels: Sequence[NDArray[np.float32] | None] | None = None,
                   limits: Limits = DEFAULT_LIMITS) -> None:
    """Decode and reconstruct in one pass: out[m][r, c] = level_m(q[r, c]) * row_scales[m][r], in float32.

    row_scales[m]: float32 [rows]. out[m]: float32 [rows, columns], C-contiguous, written. levels[m]:
    float32 [2 * reach + 1], level(q) for q = -reach .. reach; beyond that, and for None, level(q) is
    float32(q). Raises as `decode`; after an error the content of `out` means nothing. Re-entrant.
    """
    check_shapes(shapes, limits)
    levels = [None] * len(shapes) if levels is None else levels
    if not len(shapes) == len(row_scales) == len(out) == len(levels):
        raise ValueError("shapes, row_scales, out and levels must have one entry per matrix")
    for shape, scale, target, level in zip(shapes, row_scales, out, levels, strict=True):
        _check_float32(scale, (shape[0],), "row_scales")
        _check_float32(target, tuple(shape), "out")
        if not target.flags.writeable:
            raise ValueError("out is read-only")
        if level is not None:
            _check_float32(level, (level.size | 1,), "levels")
    reach = np.array([-1 if level is None else level.size // 2 for level in levels], np.int64)
    _run(payload, shapes, out, _addresses(row_scales), _addresses(levels), reach)


def _check_float32(array: NDArray[np.float32], shape: tuple[int, ...], name: str) -> None:
    if array.dtype != np.float32 or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{name}: expected C-contiguous float32 {shape}, got {array.dtype} {array.shape}")


def check_shapes(shapes: Shapes, limits: Limits) -> None:
    """Raise LimitError before a group of such matrices is decoded to four bytes for each element."""
    total = 0
    for i, (rows, columns) in enumerate(shapes):
        limits.check(f"matrix {i} of a rANS payload", 4 * rows * columns, "max_tensor_bytes")
        total += 4 * rows * columns
    limits.check("matrices of a rANS payload", total, "max_bytes")


def _addresses(arrays: Sequence[NDArray[np.float32] | None]) -> NDArray[np.uintp]:
    return np.array([0 if a is None else a.ctypes.data for a in arrays], np.uintp)


def _run(payload: bytes | memoryview, shapes: Shapes, out: Sequence[NDArray[np.generic]],
         scales: NDArray[np.uintp] | None, levels: NDArray[np.uintp], reach: NDArray[np.int64]) -> None:
    rows, columns = (np.array([shape[axis] for shape in shapes], np.int64) for axis in (0, 1))
    targets = np.array([a.ctypes.data for a in out], np.uintp)
    where = None if scales is None else scales.ctypes.data
    result = _decode(native.bytes_of(payload), len(payload), len(shapes), rows, columns, targets, where, levels, reach,
                     native.simd_level())
    native.check(result, "decoding a rANS payload")
