"""Tool 5: weights as coefficients of transforms over output rows, input channels and taps ("Transform
quantization for CNN compression", Young, Wang, Taubman and Girod, TPAMI 2021).

    payload, weight_bytes = transform.encode_counted(codes, shapes, transform.SMALL)
    arrays = transform.decode(payload, records, limits, threads)
    codes = transform.decode_codes(payload, records, limits, threads)

The bases may be stored, the taps may have a DCT, each may be absent; there may be one joint basis over
(channel, tap). Coefficients and bases are integers times steps, as in tool 1, or blocks of fixed-length
integers. See transform_code.py for the maths, docs/format-transform.md for the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ..bitstream import context, rans, varint
from ..bitstream.dtypes import FLOATS
from ..bitstream.integers import IntegerReader, IntegerWriter
from ..bitstream.manifest import TensorRecord
from ..errors import FormatError
from ..limits import DEFAULT_LIMITS, Limits
from . import trellis
from .scalar import ScalarCode
from .transform_blocks import BlockCode, Cuts, unpack
from .transform_code import MAX_TAP_SCALE, Extents, TransformCode, extents
from .transform_heads import BASIS, COEFFICIENTS, FAST, FIXED, SMALL, BlockHead, Code, Heads, ScalarHead, running_sums
from .transform_maps import Dct, Maps, apply_maps, dct_matrix

__all__ = [
    "FAST",
    "FIXED",
    "SMALL",
    "BlockCode",
    "Cuts",
    "Dct",
    "Extents",
    "Maps",
    "TransformCode",
    "apply_maps",
    "basis_bytes",
    "bits_of",
    "dct_matrix",
    "decode",
    "decode_codes",
    "encode",
    "encode_counted",
    "extents",
]

# Contexts of the integer code; transform_heads.py has 6 to 12 and 14 to 31.
_MODE, _LAYOUT, _ROWS, _INNER, _TAPS, _RANK = range(6)
_PART, _TAP_SCALE = 13, 15

_NONE, _CHANNELS, _JOINT = range(3)  # values of _INNER
_DCTS = len(Dct)
_STORED = 3  # value of _TAPS; 0 for none, else a Dct, with _SCALED added where its frequencies are scaled
_SCALED = 3


# ---- encoding ----------------------------------------------------------------------------------------

def encode(codes: Sequence[TransformCode], shapes: Sequence[tuple[int, ...]], mode: int,
           rows_per_part: int = 0) -> bytes:
    """The payload alone; see `encode_counted`."""
    return encode_counted(codes, shapes, mode, rows_per_part)[0]


def encode_counted(codes: Sequence[TransformCode], shapes: Sequence[tuple[int, ...]], mode: int,
                   rows_per_part: int = 0) -> tuple[bytes, int]:
    """The payload for tensors in the order of the manifest, and how many of its bytes are codes of matrices
    (coefficients and bases; see `basis_bytes` for the share of the latter).

    mode: FAST or SMALL for ScalarCodes, FIXED for BlockCodes. rows_per_part: 0 for one part; else (one
    tensor only, not in FIXED) so many rows of coefficients to a part, for decoders with threads.
    Raises ValueError where matrices, shapes and mode do not fit each other.
    """
    if rows_per_part and (len(codes) != 1 or mode == FIXED):
        raise ValueError("only a single tensor, in the modes FAST and SMALL, can be cut in parts")
    parameters, matrices, views = _parameters(codes, shapes, mode, rows_per_part)
    data = _encode_parts(matrices, views, mode, rows_per_part)
    head = varint.encode([len(parameters)]) + parameters + varint.encode(len(part) for part in data[:-1])
    return b"".join([head, *data]), sum(map(len, data))


def bits_of(code: TransformCode, shape: tuple[int, ...], mode: int) -> tuple[float, float]:
    """Bits of the payload of one tensor, and how many of them are its bases' (`basis_bytes`), for comparisons: in the
    fast mode estimates, since tables take long to make."""
    if mode != FAST:
        return 8.0 * len(encode([code], [shape], mode)), 8.0 * basis_bytes(code, shape, mode)
    parameters, matrices, _ = _parameters([code], [shape], mode, 0)
    integers = [matrix.q for matrix in matrices]
    return 8.0 * len(parameters) + rans.estimate(integers), rans.estimate(integers[:-1])


def _parameters(codes: Sequence[TransformCode], shapes: Sequence[tuple[int, ...]], mode: int,
                rows_per_part: int) -> tuple[bytes, list[Code], list[context.Shape]]:
    """The payload's head, and the matrices that follow with their shapes."""
    writer, heads = IntegerWriter(), Heads(mode)
    writer.put([mode], _MODE)
    matrices: list[Code] = []
    views: list[context.Shape] = []
    for code, shape in zip(codes, shapes, strict=True):
        viewed = code.matrix_shapes(shape)
        _put_maps(writer, code, extents(shape, code.swapped), mode)
        parts = [(basis, BASIS) for basis in code.bases()] + [(code.coefficients, COEFFICIENTS)]
        for (matrix, kind), view in zip(parts, viewed, strict=True):
            views.append(heads.put(writer, matrix, view, kind))
            matrices.append(matrix)
    if len(codes) == 1 and mode != FIXED:
        writer.put([rows_per_part], _PART)
    return writer.finish(), matrices, views


def basis_bytes(code: TransformCode, shape: tuple[int, ...], mode: int) -> int:
    """Bytes that the integers of one tensor's stored bases take when they are coded alone.

    In a section they share their stream, and what its contexts learn, with all other matrices: the true share
    is a little smaller, and has no exact value. In FIXED it is exact.
    """
    bases = code.bases()
    heads, writer = Heads(mode), IntegerWriter()
    views = [heads.put(writer, basis, view, BASIS)
             for basis, view in zip(bases, code.matrix_shapes(shape), strict=False)]
    return len(_encode_part(bases, views, mode))


def _put_maps(writer: IntegerWriter, code: TransformCode, of: Extents, mode: int) -> None:
    states = code.coefficients.trellis if isinstance(code.coefficients, ScalarCode) and mode != FIXED else 0
    writer.put([int(code.swapped) + 2 * trellis.STATES.index(states)], _LAYOUT)
    writer.put([int(code.rows is not None)], _ROWS)
    writer.put([_JOINT if code.joint else _CHANNELS if code.channels is not None else _NONE], _INNER)
    if not code.joint:
        taps = _STORED if isinstance(code.taps, Code) else 0 if code.taps is None else int(code.taps)
        writer.put([taps + (_SCALED if code.tap_scale is not None else 0)], _TAPS)
        if code.tap_scale is not None:
            writer.put(np.diff(code.tap_scale, prepend=0), _TAP_SCALE)
    for basis, most in zip((code.rows, code.channels, code.taps), of.most(code.joint), strict=True):
        if isinstance(basis, Code):
            writer.put([most - len(basis.q)], _RANK)


def _encode_parts(matrices: Sequence[Code], views: Sequence[context.Shape], mode: int,
                  rows_per_part: int) -> list[bytes]:
    if not rows_per_part:
        return [_encode_part(matrices, views, mode)]
    q, view = matrices[-1].q, views[-1]
    cuts = [q[first : first + rows_per_part] for first in range(0, len(q), rows_per_part)]
    parts = [_encode_integers([part], [replace(view, rows=len(part))], mode) for part in cuts]
    return [_encode_part(matrices[:-1], views[:-1], mode), *parts]


def _encode_part(matrices: Sequence[Code], views: Sequence[context.Shape], mode: int) -> bytes:
    if mode == FIXED:
        return b"".join(matrix.pack() for matrix in matrices if isinstance(matrix, BlockCode))
    return _encode_integers([matrix.q for matrix in matrices], views, mode)


def _encode_integers(matrices: Sequence[npt.NDArray[np.int32]], views: Sequence[context.Shape],
                     mode: int) -> bytes:
    return context.encode(matrices, views) if mode == SMALL else rans.encode(matrices)


# ---- decoding ----------------------------------------------------------------------------------------

def decode(payload: bytes, records: Sequence[TensorRecord], limits: Limits,
           threads: int) -> list[npt.NDArray[np.generic]]:
    """The tensors of `records` (at least one axis, a float type).

    Memory: besides the result, 4 bytes for each coefficient and number of a basis of the section, and 20 for
    each weight of one tensor. Raises FormatError for anything that `encode` cannot have written.
    """
    codes = decode_codes(payload, records, limits, threads)
    out = []
    for record in records:
        code = codes.pop(0)
        try:
            out.append(code.tensor(record.shape, record.dtype, threads))
        except FormatError as error:
            raise FormatError(f"{record.name}: {error}") from error
    return out


def decode_codes(payload: bytes, records: Sequence[TensorRecord], limits: Limits = DEFAULT_LIMITS,
                 threads: int = 1) -> list[TransformCode]:
    """Integers and bases as they are, without the restored tensors; raises as `decode`."""
    cursor = varint.ByteReader(payload, "transform payload")
    mode, tensors, rows_per_part = _read_parameters(cursor.take(cursor.varint(), "bytes of parameters"),
                                                    records, limits)
    heads = [head for tensor in tensors for head in tensor.heads]
    if mode == FIXED:
        integers = [unpack(cursor, (head.shape.rows, head.shape.columns), head.depths, head.cuts)
                    for head in heads if isinstance(head, BlockHead)]
        if cursor.left:
            raise cursor.fail("bytes are left after the last block")
    elif rows_per_part:
        integers = _decode_parts(cursor, [head.shape for head in heads], mode, rows_per_part, limits, threads)
    else:
        integers = _decode_part(cursor.take(cursor.left), [head.shape for head in heads], mode, limits)
    left = iter(integers)
    return [tensor.code([head.code(next(left)) for head in tensor.heads]) for tensor in tensors]


def layout_of(payload: bytes, records: Sequence[TensorRecord], limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """What `encode` was called with besides codes: mode and rows_per_part; raises as `decode`."""
    cursor = varint.ByteReader(payload, "transform payload")
    mode, _, rows_per_part = _read_parameters(cursor.take(cursor.varint(), "bytes of parameters"), records, limits)
    return mode, rows_per_part


@dataclass(frozen=True)
class _Tensor:
    """What the parameters say about one tensor: all but its integers. Heads: stored bases, coefficients."""

    swapped: bool
    inner: int
    taps: int
    rows: bool
    tap_scale: npt.NDArray[np.int64] | None
    heads: list[ScalarHead | BlockHead]

    def code(self, matrices: list[Code]) -> TransformCode:
        left = iter(matrices)
        return TransformCode(
            rows=next(left) if self.rows else None,
            channels=next(left) if self.inner != _NONE else None,
            taps=next(left) if self.taps == _STORED else Dct(self.taps) if self.taps else None,
            coefficients=next(left), joint=self.inner == _JOINT, swapped=self.swapped,
            tap_scale=self.tap_scale)


def _read_parameters(data: bytes, records: Sequence[TensorRecord],
                     limits: Limits) -> tuple[int, list[_Tensor], int]:
    """Mode, tensors, and rows per part (0: one part with all matrices)."""
    reader = IntegerReader(data)
    mode = reader.one(_MODE, FAST, FIXED, "the coder of a transform section")
    heads = Heads(mode)
    tensors, total = [], 0
    for record in records:
        if not record.shape or record.dtype not in FLOATS:
            raise FormatError(f"{record.name}: a {record.dtype} tensor of shape {list(record.shape)} "
                              f"cannot be in a transform section")
        limits.check(f"weights of {record.name} at work", 8 * record.count, "max_tensor_bytes")
        one = partial(_one, reader, record.name)
        layout = one(_LAYOUT, 1 if mode == FIXED else 2 * len(trellis.STATES) - 1, "axis order and trellis")
        swapped, states = bool(layout & 1), trellis.STATES[layout >> 1]
        if swapped and len(record.shape) < 2:
            raise FormatError(f"{record.name}: one axis cannot be swapped: the file is corrupt")
        of = extents(record.shape, swapped)
        rows, inner = bool(one(_ROWS, 1, "the map over rows")), one(_INNER, _JOINT, "the map over channels")
        taps = one(_TAPS, _STORED + _DCTS, "the map over taps") if inner != _JOINT else 0
        is_scaled, taps = taps > _STORED, taps - _SCALED if taps > _STORED else taps
        if taps in (Dct.I, Dct.II) and not of.has_dct:
            raise FormatError(f"{record.name}: there is no DCT for kernels {of.kernel}: the file is corrupt")
        scale = _tap_scale(reader, of, record) if is_scaled else None
        ranks = [most - one(_RANK, most, "the rank of a basis") if stored else None
                 for stored, most in zip((rows, inner != _NONE, taps == _STORED), of.most(inner == _JOINT),
                                         strict=True)]
        shapes = of.matrices(ranks, inner == _JOINT)
        for shape in shapes:
            limits.check(f"a matrix of {record.name}", 4 * shape.count, "max_tensor_bytes")
            total += 4 * shape.count
        limits.check("matrices of a transform section", total, "max_bytes")
        kinds = [BASIS] * (len(shapes) - 1) + [COEFFICIENTS]
        found = [heads.take(reader, shape, kind, record.name, states if kind == COEFFICIENTS else 0)
                 for shape, kind in zip(shapes, kinds, strict=True)]
        tensors.append(_Tensor(swapped, inner, taps, rows, scale, found))
    rows_per_part = 0
    if len(records) == 1 and mode != FIXED:
        rows_per_part = reader.one(_PART, 0, 1 << 40, "rows per part")
    reader.end()
    return mode, tensors, rows_per_part


def _tap_scale(reader: IntegerReader, of: Extents, record: TensorRecord) -> npt.NDArray[np.int64]:
    if not record.count:  # a kernel of no weights may have any number of taps
        raise FormatError(f"{record.name}: a tensor without elements has scaled frequencies: the file is corrupt")
    return running_sums(reader.take(of.taps, _TAP_SCALE), 0, f"{record.name}: scales of frequencies", MAX_TAP_SCALE)


def _one(reader: IntegerReader, name: str, where: int, most: int, what: str) -> int:
    return reader.one(where, 0, most, f"{name}: {what}")


def _decode_part(data: bytes, shapes: Sequence[context.Shape], mode: int,
                 limits: Limits) -> list[npt.NDArray[np.int32]]:
    if mode == SMALL:
        return context.decode(data, shapes)
    return rans.decode(data, [(shape.rows, shape.columns) for shape in shapes], limits)


def _decode_parts(cursor: varint.ByteReader, shapes: Sequence[context.Shape], mode: int, rows_per_part: int,
                  limits: Limits, threads: int) -> list[npt.NDArray[np.int32]]:
    """Of one tensor: its bases in the first part, then its coefficients, `rows_per_part` rows to a part."""
    rows = shapes[-1].rows
    starts = range(0, rows, rows_per_part)
    lengths = cursor.varints(len(starts))  # the bytes that are there bound the number of parts
    cuts = [replace(shapes[-1], rows=min(rows_per_part, rows - first)) for first in starts]
    data = [cursor.take(length, "bytes of a part") for length in lengths]
    data.append(cursor.take(cursor.left))
    groups = [list(shapes[:-1]), *([cut] for cut in cuts)]
    with ThreadPoolExecutor(max(1, min(threads, len(groups)))) as pool:
        found = list(pool.map(lambda part, group: _decode_part(part, group, mode, limits), data, groups))
    none = np.empty((0, shapes[-1].columns), dtype=np.int32)
    return [*found[0], np.concatenate([none, *(part for (part,) in found[1:])])]
