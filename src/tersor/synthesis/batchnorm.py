"""Tool 2: BatchNorm in eval mode as the two numbers per channel that it is, y = a z + b.

The scale a travels on a logarithmic grid with its sign, the shift b on a uniform grid with one step per
BatchNorm. The four tensors come back as weight = a, bias = b, running_mean = 0, running_var = 1 - eps,
so that weight / sqrt(running_var + eps) is a again. docs/format.md, "Tool 2: batchnorm".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..bitstream import varint
from ..bitstream.integers import IntegerReader, IntegerWriter
from ..bitstream.manifest import TensorRecord
from ..errors import FormatError
from ..limits import Limits
from . import grid, spread
from .rounding import to_dtype

MAX_RESOLUTION = grid.FINEST
"""Resolution j has 2^j points per octave."""
MAX_OCTAVE = grid.MAX_INDEX // grid.RESOLUTION
"""Scales are within 2^+-MAX_OCTAVE."""

# Contexts of the integer code.
_EPS, _RESOLUTION, _BASE, _STEP, _SCALE_CLASS, _SIGN, _SHIFT_CLASS = range(7)
_SCALE, _SHIFT = 8, 16  # the first of eight each


@dataclass(frozen=True)
class BatchNormCode:
    """The integers of one BatchNorm with C channels.

    scale_index: int64 [C]; |a| = 2^(index / 2^resolution). Ignored where the sign is 0.
    scale_sign: int8 [C], each -1, 0 or 1; 0 means a = 0.
    resolution: 0..12.
    shift_index: int64 [C]; b = index * 2^(shift_step_index / 32).
    eps: the module's eps; stored as float32.
    """

    scale_index: npt.NDArray[np.int64]
    scale_sign: npt.NDArray[np.int8]
    resolution: int
    shift_index: npt.NDArray[np.int64]
    shift_step_index: int
    eps: float

    def scale(self) -> npt.NDArray[np.float64]:
        """The values a, float64 [C], that a decoder restores (before rounding to the element type)."""
        return _scale(self.scale_index, self.scale_sign, self.resolution)

    def shift(self) -> npt.NDArray[np.float64]:
        """The values b, float64 [C], likewise."""
        return self.shift_index.astype(np.float64) * grid.value(self.shift_step_index)


def encode(codes: Sequence[BatchNormCode]) -> bytes:
    """The payload for BatchNorms in the order of their tensors in the manifest."""
    eps = [float(np.float32(code.eps)) for code in codes]
    distinct = list(dict.fromkeys(eps))
    if not all(0.0 <= value < 1.0 for value in distinct):
        raise FormatError(f"a BatchNorm eps of {distinct} is not in [0, 1); store its tensors losslessly")
    head = varint.encode([len(distinct)]) + np.array(distinct, dtype="<f4").tobytes()
    which = [distinct.index(value) for value in eps]
    return head + spread.shortest(_encode_integers(codes, which, len(distinct), pooling)
                                  for pooling in spread.POOLINGS)


def decode(payload: bytes, records: Sequence[TensorRecord], limits: Limits,
           threads: int) -> list[npt.NDArray[np.generic]]:
    """The tensors of `records`, which come in fours: weight, bias, running_mean, running_var, each [C].

    Raises FormatError for anything that `encode` cannot have written. `limits` has been applied to the
    records already; the work is too small for threads.
    """
    out: list[npt.NDArray[np.generic]] = []
    for i, code in enumerate(decode_codes(payload, records)):
        channels = code.scale_sign.size
        values = (code.scale(), code.shift(), np.zeros(channels), np.full(channels, 1.0 - code.eps))
        out += [to_dtype(value, record.dtype, record.name)
                for value, record in zip(values, records[4 * i : 4 * i + 4], strict=True)]
    return out


def decode_codes(payload: bytes, records: Sequence[TensorRecord]) -> list[BatchNormCode]:
    """The integers, one code for each four of `records`, without the tensors; raises as `decode`."""
    groups = [tuple(records[i : i + 4]) for i in range(0, len(records), 4)]
    for group in groups:
        if len(group) != 4 or len(group[0].shape) != 1 or len({record.shape for record in group}) != 1:
            raise FormatError(f"a batchnorm section holds {[(r.name, list(r.shape)) for r in group]}: not "
                              f"four vectors of one length")
    head = varint.ByteReader(payload, "batchnorm payload")
    stored = np.frombuffer(head.take(4 * head.varint()), dtype="<f4")
    if not ((stored >= 0.0) & (stored < 1.0)).all():
        raise FormatError("a batchnorm section has an eps outside [0, 1): the file is corrupt")
    distinct = stored.astype(np.float64)  # only now: NumPy warns of signalling NaNs
    reader = IntegerReader(payload[head.position :])
    out = [_decode_group(reader, group, distinct) for group in groups]
    reader.end()
    return out


def _encode_integers(codes: Sequence[BatchNormCode], which: Sequence[int], eps_count: int,
                     pooling: int) -> bytes:
    writer = IntegerWriter()
    for code, eps_index in zip(codes, which, strict=True):
        present = code.scale_sign != 0
        index = code.scale_index[present]
        base = spread.median(index)
        if eps_count > 1:
            writer.put([eps_index], _EPS)
        writer.put([code.resolution], _RESOLUTION)
        writer.put([base], _BASE)
        writer.put([code.shift_step_index], _STEP)
        # 0 is the frequent case (positive), for which the integer code is best.
        writer.put(np.where(code.scale_sign > 0, 0, np.where(code.scale_sign < 0, 1, -1)), _SIGN)
        spread.put(writer, index - base, pooling, _SCALE_CLASS, _SCALE)
        spread.put(writer, code.shift_index, pooling, _SHIFT_CLASS, _SHIFT)
    return writer.finish()


def _decode_group(reader: IntegerReader, group: Sequence[TensorRecord],
                  distinct: npt.NDArray[np.float64]) -> BatchNormCode:
    channels = group[0].count
    name = group[0].name
    eps_index = reader.one(_EPS, 0, len(distinct) - 1, f"{name}: eps index") if len(distinct) != 1 else 0
    resolution = reader.one(_RESOLUTION, 0, MAX_RESOLUTION, f"{name}: scale resolution")
    limit = MAX_OCTAVE << resolution
    base = reader.one(_BASE, -limit, limit, f"{name}: scale base")
    step = reader.one(_STEP, -grid.MAX_INDEX, grid.MAX_INDEX, f"{name}: shift step")
    coded = reader.take(channels, _SIGN)
    if np.abs(coded).max(initial=0) > 1:
        raise FormatError(f"{name}: a sign code is not -1, 0 or 1: the file is corrupt")
    present = coded >= 0
    index = np.zeros(channels, dtype=np.int64)
    index[present] = base + spread.take(reader, int(present.sum()), _SCALE_CLASS, _SCALE, name)
    if np.abs(index).max(initial=0) > limit:
        raise FormatError(f"{name}: a scale is beyond the grid: the file is corrupt")
    sign = np.where(coded == 0, 1, -coded).astype(np.int8)
    sign[coded < 0] = 0
    shift = spread.take(reader, channels, _SHIFT_CLASS, _SHIFT, name)
    return BatchNormCode(index, sign, resolution, shift, step, float(distinct[eps_index]))


def _scale(index: npt.NDArray[np.int64], sign: npt.NDArray[np.int8],
           resolution: int) -> npt.NDArray[np.float64]:
    return sign * grid.fine(index, resolution)
