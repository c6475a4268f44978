"""Tool 1: weights as integers times a step, the step given per tensor or per row.

    weight[r, c] = sign(q) * (|q| - shift) * step[r]        q: the coded integer at row r, column c

`shift` moves the reconstruction point towards zero, one number for |q| = 1 and one for |q| > 1, in
1/64 of a step. With a trellis (dependent quantization) the step is a sub-step, there is no shift, and
two quantizers take turns: see trellis.py. The matrix view of a tensor is [axis 0, all others], or
[axis 1, all others] where the tensor is marked as swapped (transposed convolutions, embeddings: output
channels first). The integers are coded by the fast (rANS) or the small (context) coder.
docs/format.md, "Tool 1: scalar".
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..bitstream import buffers, context, rans, varint
from ..bitstream.dtypes import FLOATS
from ..bitstream.integers import IntegerReader, IntegerWriter
from ..bitstream.manifest import TensorRecord
from ..errors import FormatError
from ..limits import DEFAULT_LIMITS, Limits
from . import grid, spread, trellis
from .rounding import to_dtype

_Element = TypeVar("_Element", bound=np.generic)

FAST, SMALL = 0, 1
"""Entropy coders: static rANS, adaptive contexts."""

SHIFT_UNIT = 64
MAX_SHIFT = 48
MAX_REACH = 4096
"""Reconstruction levels up to this |q| come from a table, beyond it there is no shift."""
SAFE_STEP = 2.0**95
"""Up to this step no level (at most 2^32) gives a weight beyond the range of float32."""

# Contexts of the integer code.
_MODE, _LAYOUT, _STEP, _SHIFT, _BYPASS, _RESOLUTION, _CLASS, _PART = range(8)
_ROW = 8  # the first of eight


@dataclass(frozen=True)
class ScalarCode:
    """The integers of one tensor.

    q: int32 [rows, columns], the tensor's matrix view.
    step_index: the step on the logarithmic grid; with `row_index`, the step that row exponents count from.
    row_index: int64 [rows] or None; row r's step is 2^(step_index/32 + row_index[r] / 2^row_resolution).
    shift: reconstruction shifts for |q| = 1 and |q| > 1, each 0..48, in 1/64 of a step; (0, 0) with a trellis.
    trellis: states of dependent quantization: 0 (none), 4 or 8.
    """

    q: npt.NDArray[np.int32]
    step_index: int
    row_index: npt.NDArray[np.int64] | None = None
    row_resolution: int = 2
    shift: tuple[int, int] = (0, 0)
    swapped: bool = False
    trellis: int = 0

    def __post_init__(self) -> None:
        if self.trellis not in trellis.STATES or (self.trellis and any(self.shift)):
            raise ValueError(f"a trellis of {self.trellis} states with shifts {self.shift}; there are "
                             f"{trellis.STATES}, with shifts only without a trellis")

    def row_steps(self) -> npt.NDArray[np.float32]:
        """float32 [rows]: the step of each row."""
        return _row_steps(self.q.shape[0], self.step_index, self.row_index, self.row_resolution)

    def matrix(self) -> npt.NDArray[np.float32]:
        """float32 [rows, columns]: what a decoder restores, before rounding to the element type."""
        if self.trellis:
            return trellis.restore(self.q, self.trellis, self.row_steps())
        return levels_of(self.q, self.shift) * self.row_steps()[:, None]

    def tensor(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The restored tensor, float32 of the given shape."""
        return unview(self.matrix(), shape, self.swapped)


def view_shape(shape: tuple[int, ...], swapped: bool) -> context.Shape:
    """The matrix view of a tensor's shape, with its kernels.

    >>> view_shape((64, 16, 3, 3), False)
    Shape(rows=64, columns=144, taps=9, width=3, bypass=0)
    """
    axis = 1 if swapped else 0
    rows = shape[axis] if len(shape) > axis else 1
    rest = [extent for i, extent in enumerate(shape) if i != axis]
    taps = prod(shape[2:])
    return context.Shape(rows, prod(rest), max(taps, 1), max(shape[-1], 1) if len(shape) > 2 else 1)


def view(tensor: npt.NDArray[np.generic], swapped: bool) -> npt.NDArray[np.generic]:
    """The matrix view [rows, columns] of a tensor with at least one axis (two where swapped)."""
    shape = view_shape(tensor.shape, swapped)
    return (tensor.swapaxes(0, 1) if swapped else tensor).reshape(shape.rows, shape.columns)


def unview(matrix: npt.NDArray[_Element], shape: tuple[int, ...], swapped: bool) -> npt.NDArray[_Element]:
    """The tensor of which `matrix` is the view; C-contiguous."""
    if not swapped:
        return matrix.reshape(shape)
    return np.ascontiguousarray(matrix.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1))


def encode(codes: Sequence[ScalarCode], shapes: Sequence[tuple[int, ...]], mode: int,
           rows_per_part: int = 0) -> bytes:
    """The payload alone; see `encode_counted`."""
    return encode_counted(codes, shapes, mode, rows_per_part)[0]


def encode_counted(codes: Sequence[ScalarCode], shapes: Sequence[tuple[int, ...]], mode: int,
                   rows_per_part: int = 0) -> tuple[bytes, int]:
    """The payload for tensors in the order of the manifest, and how many of its bytes are codes of weights.

    rows_per_part: 0 for one part with all tensors; else (one tensor only) that many rows to a part, which
    decoders can take up in parallel.
    """
    views = [_with_bypass(code, shape, mode) for code, shape in zip(codes, shapes, strict=True)]
    parameters = _parameters(codes, views, mode, rows_per_part)
    if rows_per_part:
        (code,), (shape,) = codes, views
        cuts = range(0, shape.rows, rows_per_part)
        parts = [_encode_part([q], [replace(shape, rows=len(q))], mode)
                 for q in (code.q[first : first + rows_per_part] for first in cuts)]
    else:
        parts = [_encode_part([code.q for code in codes], views, mode)]
    head = varint.encode([len(parameters)]) + parameters + varint.encode(len(part) for part in parts[:-1])
    return b"".join([head, *parts]), sum(len(part) for part in parts)


def bits_of(code: ScalarCode, shape: tuple[int, ...], mode: int) -> float:
    """Bits of the payload of one tensor, for comparisons: in the fast mode an estimate, since tables take long."""
    if mode == SMALL:
        return 8.0 * len(encode([code], [shape], mode))
    return 8.0 * len(_parameters([code], [view_shape(shape, code.swapped)], mode, 0)) + rans.estimate([code.q])


def _parameters(codes: Sequence[ScalarCode], views: Sequence[context.Shape], mode: int, rows_per_part: int) -> bytes:
    writer = IntegerWriter()
    writer.put([mode], _MODE)
    last_step = 0
    for code, shape in zip(codes, views, strict=True):
        writer.put([int(code.swapped) + 2 * trellis.STATES.index(code.trellis)], _LAYOUT)
        writer.put([code.step_index - last_step], _STEP)
        last_step = code.step_index
        if not code.trellis:
            writer.put(code.shift, _SHIFT)
        if mode == SMALL:
            writer.put([shape.bypass], _BYPASS)
        writer.put([-1 if code.row_index is None else code.row_resolution], _RESOLUTION)
        if code.row_index is not None:
            spread.put(writer, code.row_index, 1, _CLASS, _ROW)
    if len(codes) == 1:
        writer.put([rows_per_part], _PART)
    return writer.finish()


def decode(payload: bytes, records: Sequence[TensorRecord], limits: Limits, threads: int,
           into: Sequence[npt.NDArray[np.generic] | None] | None = None) -> list[npt.NDArray[np.generic]]:
    """The tensors of `records` (at least one axis, a float type).

    into: for each tensor None, or a C-contiguous array of its type and shape, where a float32 tensor is decoded without
    a copy if its axes are in order; a caller compares addresses.

    Memory: besides the result, in the small mode or with a trellis 4 bytes per weight of each part at work. Raises
    FormatError for anything that `encode` cannot have written.
    """
    mode, tensors, data, cuts = read_payload(payload, records)
    given = into or [None] * len(tensors)
    out = [_matrix_for(tensor, target) for tensor, target in zip(tensors, given, strict=True)]
    if cuts:
        def run(part: int) -> None:
            rows = cuts[part]
            _decode_part(data[part], [tensors[0].part(rows)], mode, [out[0][rows]], limits)

        with ThreadPoolExecutor(max(1, min(threads, len(data)))) as pool:
            list(pool.map(run, range(len(data))))
    else:
        _decode_part(data[0], tensors, mode, out, limits)
    return [_as_tensor(matrix, tensor, record)
            for matrix, tensor, record in zip(out, tensors, records, strict=True)]


def _matrix_for(tensor: Coded, target: npt.NDArray[np.generic] | None) -> npt.NDArray[np.float32]:
    """Where the matrix of a tensor is decoded: the given memory where it can be the tensor, else new memory."""
    if target is not None and target.dtype == np.float32 and not tensor.swapped:
        return target.view(np.float32).reshape(tensor.shape.rows, tensor.shape.columns)
    return buffers.empty((tensor.shape.rows, tensor.shape.columns))


def decode_codes(payload: bytes, records: Sequence[TensorRecord], limits: Limits = DEFAULT_LIMITS,
                 threads: int = 1) -> list[ScalarCode]:
    """The integers and steps as they are, without the restored tensors; raises as `decode`."""
    mode, tensors, data, cuts = read_payload(payload, records)

    def run(part: int) -> list[npt.NDArray[np.int32]]:
        return _decode_integers(data[part], [tensors[0].part(cuts[part])] if cuts else tensors, mode, limits)

    with ThreadPoolExecutor(max(1, min(threads, len(data)))) as pool:
        found = list(pool.map(run, range(len(data))))
    matrices = [np.concatenate([part for (part,) in found])] if cuts else found[0]
    return [ScalarCode(q, about.step_index, about.row_index, about.resolution, about.shift, about.swapped,
                       about.trellis) for q, about in zip(matrices, tensors, strict=True)]


def layout_of(payload: bytes, records: Sequence[TensorRecord]) -> tuple[int, int]:
    """What `encode` was called with besides codes: mode and rows_per_part; raises as `decode`."""
    mode, _, _, cuts = read_payload(payload, records)
    return mode, cuts[0].stop if len(cuts) > 1 else 0


@dataclass(frozen=True)
class Coded:
    """What the parameters say about one tensor: all but its integers."""

    shape: context.Shape
    steps: npt.NDArray[np.float32]
    shift: tuple[int, int]
    swapped: bool
    trellis: int
    step_index: int
    row_index: npt.NDArray[np.int64] | None
    resolution: int

    def part(self, rows: slice) -> Coded:
        """The same for a range of its rows."""
        return replace(self, steps=self.steps[rows], shape=replace(self.shape, rows=rows.stop - rows.start))


def read_payload(payload: bytes, records: Sequence[TensorRecord]
                 ) -> tuple[int, list[Coded], list[memoryview], list[slice]]:
    """Mode, tensors, parts, and the rows of each part (none: one part with all tensors); raises as `decode`."""
    head = varint.ByteReader(payload, "scalar payload")
    mode, tensors, rows_per_part = _read_parameters(head.take(head.varint(), "bytes of parameters"), records)
    starts = range(0, max(tensors[0].shape.rows, 1), rows_per_part) if rows_per_part else range(0)
    lengths = head.varints(max(len(starts) - 1, 0))
    whole, data = memoryview(payload), []
    for length in [*lengths, head.left - sum(lengths)]:
        head.require(length, "bytes of a part")
        data.append(whole[head.position : head.position + length])
        head.position += length
    cuts = [slice(first, min(first + rows_per_part, tensors[0].shape.rows)) for first in starts]
    return mode, tensors, data, cuts


def _read_parameters(data: bytes, records: Sequence[TensorRecord]) -> tuple[int, list[Coded], int]:
    """Mode, tensors, and rows per part (0: one part with all tensors)."""
    reader = IntegerReader(data)
    mode = reader.one(_MODE, FAST, SMALL, "the entropy coder of a scalar section")
    tensors, step = [], 0
    for record in records:
        if not record.shape or record.dtype not in FLOATS:
            raise FormatError(f"{record.name}: a {record.dtype} tensor of shape {list(record.shape)} "
                              f"cannot be in a scalar section")
        layout = reader.one(_LAYOUT, 0, 2 * len(trellis.STATES) - 1, f"{record.name}: axis order and trellis")
        swapped, states = bool(layout & 1), trellis.STATES[layout >> 1]
        if swapped and len(record.shape) < 2:
            raise FormatError(f"{record.name}: one axis cannot be swapped: the file is corrupt")
        step += int(reader.take(1, _STEP)[0])
        first = more = 0
        if not states:
            first, more = (reader.one(_SHIFT, 0, MAX_SHIFT, f"{record.name}: reconstruction shift") for _ in "ab")
        bypass = 0
        if mode == SMALL:
            bypass = reader.one(_BYPASS, 0, context.MAX_BYPASS, f"{record.name}: bypass bits")
        resolution = reader.one(_RESOLUTION, -1, 5, f"{record.name}: resolution of row steps")
        shape = replace(view_shape(record.shape, swapped), bypass=bypass, trellis=states)
        rows = None
        if resolution >= 0:
            rows = spread.take(reader, shape.rows, _CLASS, _ROW, record.name)
        if beyond_grid(step, rows, resolution):
            raise FormatError(f"{record.name}: a step is beyond the grid: the file is corrupt")
        tensors.append(Coded(shape, _row_steps(shape.rows, step, rows, resolution), (first, more), swapped,
                               states, step, rows, max(resolution, 0)))
    rows_per_part = reader.one(_PART, 0, 1 << 40, "rows per part") if len(records) == 1 else 0
    reader.end()
    return mode, tensors, rows_per_part


def beyond_grid(step: int, rows: npt.NDArray[np.int64] | None, resolution: int) -> bool:
    """Whether a step index, or with row exponents (int64) the index of any row, is not on the grid."""
    if rows is None or not rows.size:
        return abs(step) > grid.MAX_INDEX
    if int(np.abs(rows).max()) > grid.MAX_INDEX:
        return True
    offsets = rows << (5 - resolution)
    return max(abs(step + int(offsets.min())), abs(step + int(offsets.max()))) > grid.MAX_INDEX


def _row_steps(rows: int, step: int, row_index: npt.NDArray[np.int64] | None,
               resolution: int) -> npt.NDArray[np.float32]:
    same = np.zeros(rows, dtype=np.int64)
    index = step + (same if row_index is None else row_index << (5 - resolution))
    with np.errstate(over="ignore"):
        return grid.value(index).astype(np.float32)


@lru_cache(maxsize=64)
def level_table(shift: tuple[int, int], reach: int) -> npt.NDArray[np.float32]:
    """float32 [2 * reach + 1]: the level of q = -reach .. reach, exact in float32."""
    return levels_of(np.arange(-reach, reach + 1, dtype=np.int32), shift)


def levels_of(q: npt.NDArray[np.int32], shift: tuple[int, int]) -> npt.NDArray[np.float32]:
    magnitude = np.abs(q.astype(np.int64))
    units = np.where(magnitude > 1, shift[1], np.where(magnitude == 1, shift[0], 0))
    less = np.where(magnitude > MAX_REACH, 0, units) / SHIFT_UNIT
    return (np.sign(q) * (magnitude - less)).astype(np.float32)


def _with_bypass(code: ScalarCode, shape: tuple[int, ...], mode: int) -> context.Shape:
    viewed = view_shape(shape, code.swapped)
    return replace(viewed, bypass=context.choose_bypass(code.q), trellis=code.trellis) if mode == SMALL else viewed


def _encode_part(matrices: Sequence[npt.NDArray[np.int32]], shapes: Sequence[context.Shape],
                 mode: int) -> bytes:
    return context.encode(matrices, shapes) if mode == SMALL else rans.encode(matrices)


def _decode_integers(data: bytes | memoryview, tensors: Sequence[Coded], mode: int,
                     limits: Limits) -> list[npt.NDArray[np.int32]]:
    if mode == SMALL:
        return context.decode(data, [t.shape for t in tensors])
    return rans.decode(data, [(t.shape.rows, t.shape.columns) for t in tensors], limits)


def _decode_part(data: bytes | memoryview, tensors: Sequence[Coded], mode: int,
                 out: Sequence[npt.NDArray[np.float32]], limits: Limits) -> None:
    """Decode one part into float32 matrices."""
    if mode == FAST and not any(t.trellis for t in tensors):
        levels = [level_table(t.shift, MAX_REACH) if any(t.shift) else None for t in tensors]
        rans.decode_float32(data, [(t.shape.rows, t.shape.columns) for t in tensors],
                            [t.steps for t in tensors], out, levels, limits)
        return
    for q, tensor, matrix in zip(_decode_integers(data, tensors, mode, limits), tensors, out, strict=True):
        if tensor.trellis:
            trellis.restore(q, tensor.trellis, tensor.steps, matrix)
            continue
        level = levels_of(q, tensor.shift) if any(tensor.shift) else q.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # `_as_tensor` refuses what comes of it
            np.multiply(level, tensor.steps[:, None], out=matrix)


def _as_tensor(matrix: npt.NDArray[np.float32], about: Coded,
               record: TensorRecord) -> npt.NDArray[np.generic]:
    tensor = unview(matrix, record.shape, about.swapped)
    if record.dtype == "F32" and about.steps.max(initial=0.0) <= SAFE_STEP:
        return tensor
    return to_dtype(tensor.astype(np.float64), record.dtype, record.name)
