"""Adaptive coding of indexes into codebooks of kernels, over `native/kernels_index.cpp`.

Matrices of one payload share what the mixers learn, those of one codebook also the probabilities.
Format: docs/format-kernels.md, "Adaptive index coder".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import native

_I32 = native.array(np.int32)
_encode = native.function("tersor_kernels_encode", [
    _I32, _I32, native.INT64, native.array(np.int64), native.array(np.uint8, writable=True), native.INT64])
_decode = native.function("tersor_kernels_decode", [
    native.BYTES, native.INT64, _I32, native.INT64, native.array(np.int64), native.array(np.int32, writable=True)])

Matrix = npt.NDArray[np.int32]

MAX_KERNELS = 1 << 16
MAX_DECAY = 256
FLOOR = 256
"""Least weight in the geometric law."""
_INDEXES_PER_BYTE = 12_000
"""No code is shorter than 11,360 indexes to a byte (each costs at least log2(65536 / 65504) bits)."""


@dataclass(frozen=True)
class Part:
    """A matrix [rows, columns] of indexes below `size`; `decay` / 256 is the ratio of the geometric law.

    fresh: the first matrix of its codebook. gain: int32 [rows, columns] or None; where it is 0, no index is coded.
    """

    rows: int
    columns: int
    size: int
    decay: int
    fresh: bool
    gain: Matrix | None = None

    @property
    def coded(self) -> int:
        """Indexes that take up room."""
        if self.size == 1:
            return 0
        return self.rows * self.columns if self.gain is None else int(np.count_nonzero(self.gain))


def choose_decay(counts: npt.ArrayLike) -> int:
    """The decay whose law gives the shortest code for indexes that occur so often, 0 .. 256.

    >>> choose_decay([8, 4, 2, 1]), choose_decay([5, 5, 5])
    (127, 256)
    """
    many = np.asarray(counts, dtype=np.float64)
    place = np.arange(many.size)
    decays = np.arange(1, MAX_DECAY + 1)
    with np.errstate(divide="ignore"):
        exponents = np.log2(decays / 256)[:, None] * place
    weights = np.maximum(np.exp2(24.0 + exponents), FLOOR)
    bits = many.sum() * np.log2(weights.sum(axis=1)) - np.log2(weights) @ many
    return int(decays[int(bits.argmin())])


def encode(indexes: Sequence[Matrix], parts: Sequence[Part]) -> bytes:
    """One payload for int32 matrices, in order. Raises KernelError where an index is not below its codebook's size."""
    flat = _joined(indexes)
    capacity = 64 + 3 * flat.size
    while True:
        out = np.empty(capacity, dtype=np.uint8)
        written = int(_encode(flat, _gains(parts), len(parts), _table(parts), out, out.size))
        if written != native.NO_ROOM:
            code = out[: native.check(written, "coding kernel indexes")].tobytes()
            return code.ljust(_least_bytes(sum(part.coded for part in parts)), b"\0")
        capacity *= 2


def decode(payload: bytes, parts: Sequence[Part]) -> list[Matrix]:
    """The matrices of a payload. Raises FormatError where no encoder wrote such bits.

    The caller has checked the sizes of the parts against its limits.
    """
    count = sum(part.coded for part in parts)
    if len(payload) < _least_bytes(count):
        raise FormatError(f"{len(payload)} bytes cannot hold {count:,} kernel indexes: the file is corrupt")
    flat = np.zeros(sum(part.rows * part.columns for part in parts), dtype=np.int32)
    consumed = native.check(int(_decode(payload, len(payload), _gains(parts), len(parts), _table(parts), flat)),
                            "decoding kernel indexes")
    if len(payload) > max(consumed, 8):
        raise FormatError(f"{len(payload) - consumed} bytes are left after the last kernel index: the file is corrupt")
    ends = np.cumsum([part.rows * part.columns for part in parts])
    return [piece.reshape(part.rows, part.columns)
            for piece, part in zip(np.split(flat, ends[:-1]), parts, strict=True)] if parts else []


def _joined(matrices: Sequence[Matrix]) -> Matrix:
    return np.concatenate([np.empty(0, np.int32), *(matrix.ravel() for matrix in matrices)]).astype(np.int32)


def _gains(parts: Sequence[Part]) -> Matrix:
    """All gains one after the other; whatever stands where a part has none is not read."""
    return _joined([np.zeros(part.rows * part.columns, np.int32) if part.gain is None else part.gain for part in parts])


def _table(parts: Sequence[Part]) -> npt.NDArray[np.int64]:
    # Without rows the kernel needs no room for columns, of which a file may claim any number.
    rows = [[part.rows, part.columns if part.rows else 0, part.size, part.decay, int(part.fresh),
             int(part.gain is not None)] for part in parts]
    return np.array(rows, dtype=np.int64).reshape(-1, 6)


def _least_bytes(count: int) -> int:
    """The shortest payload for so many indexes; encoders keep zero bytes at the end to reach it."""
    return max(0, -(-(-(-count // _INDEXES_PER_BYTE) - 64) // 4))
