"""The small entropy coder: adaptive contexts mixed in the logistic domain (after Mahoney's PAQ mixing).

Contexts say what to expect of a weight: its value, predicted from the taps before it in its kernel, and how far
off that will be, predicted from its row, column, channel and kernel. Both predictions learn as they go.

    payload = context.encode([Part(q0, taps=9, width=3), Part(q1)])
    q0, q1 = context.decode(payload, [Shape(16, 27, taps=9, width=3), Shape(10, 64)])

Matrices of one payload share their adaptive state, in order, so that many small layers learn
together. Bits are 9 to 13% below an ideal order-0 code per layer on quantised networks.
Format: docs/format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import native

_encode = native.function("tersor_context_encode", [
    native.array(np.int32), native.INT64, native.array(np.int64), native.array(np.uint8, writable=True),
    native.INT64])
_decode = native.function("tersor_context_decode", [
    native.BYTES, native.INT64, native.INT64, native.array(np.int64), native.array(np.int32, writable=True)])

MAX_BYPASS = 24
TRELLIS_STATES = (0, 4, 8)
WEIGHTS, BASIS = 0, 1
"""Kinds of matrices; each has an adaptive state of its own in a payload."""
_WEIGHTS_PER_BYTE = 12_000
"""No code is shorter than 11,360 weights to a byte (each costs at least log2(65536 / 65504) bits)."""


@dataclass(frozen=True)
class Shape:
    """A matrix [rows, columns] whose columns come in kernels of `taps`, each in rows of `width` taps.

    `bypass` low bits of every (offset) integer are stored as they are: for fine steps, where they
    are noise, so that magnitudes stay small. `trellis`: states of dependent quantization (0 for none), so that
    contexts know which quantizer is at work. `kind`: WEIGHTS, or BASIS for a transform's basis, whose rows and
    columns are smooth or sparse rather than made of kernels.
    """

    rows: int
    columns: int
    taps: int = 1
    width: int = 1
    bypass: int = 0
    trellis: int = 0
    kind: int = WEIGHTS

    @property
    def count(self) -> int:
        return self.rows * self.columns


def choose_bypass(q: npt.NDArray[np.int32]) -> int:
    """Low bits to leave uncoded: those that keep the mean magnitude of the rest below 6.

    At least one where -2^31 occurs, whose magnitude has no code.

    >>> choose_bypass(np.array([[1, -2, 0]], np.int32)), choose_bypass(np.full((2, 2), 100, np.int32))
    (0, 5)
    """
    mean = float(np.abs(q.astype(np.int64)).mean()) if q.size else 0.0
    bypass = int(_holds_minimum(q))
    while mean / (1 << bypass) > 6.0 and bypass < MAX_BYPASS:
        bypass += 1
    return bypass


def encode(matrices: Sequence[npt.NDArray[np.int32]], shapes: Sequence[Shape]) -> bytes:
    """One payload for int32 matrices [rows, columns], in order, sharing the adaptive state."""
    for q, shape in zip(matrices, shapes, strict=True):
        if q.shape != (shape.rows, shape.columns):
            raise ValueError(f"a matrix of shape {q.shape} was announced as {(shape.rows, shape.columns)}")
        if shape.bypass == 0 and _holds_minimum(q):
            raise ValueError("-2^31 has no code without bypass bits")
    flat = np.concatenate([np.empty(0, np.int32), *(q.ravel() for q in matrices)])
    capacity = 64 + 2 * flat.size
    while True:
        out = np.empty(capacity, dtype=np.uint8)
        table = _table(shapes)
        written = int(_encode(flat, len(table), table, out, out.size))
        if written != native.NO_ROOM:
            code = out[: native.check(written, "coding weights")].tobytes()
            return code.ljust(_least_bytes(flat.size), b"\0")
        capacity *= 4


def decode(payload: bytes | memoryview, shapes: Sequence[Shape]) -> list[npt.NDArray[np.int32]]:
    """The matrices of a payload. Raises FormatError where no encoder wrote such bits.

    The caller has checked the sizes of `shapes` against its limits: 4 bytes per weight are allocated,
    and only if the payload is long enough to hold that many.
    """
    count = sum(shape.count for shape in shapes)
    if len(payload) < _least_bytes(count):
        raise FormatError(f"{len(payload)} bytes cannot hold {count:,} weights: the file is corrupt")
    flat = np.empty(count, dtype=np.int32)
    table = _table(shapes)
    result = int(_decode(native.bytes_of(payload), len(payload), len(table), table, flat))
    consumed = native.check(result, "decoding weights")
    if len(payload) > max(consumed, 8):
        raise FormatError(f"{len(payload) - consumed} bytes left after the last weight: the file is corrupt")
    ends = np.cumsum([shape.count for shape in shapes])
    return [part.reshape(shape.rows, shape.columns)
            for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)] if shapes else []


def _table(shapes: Sequence[Shape]) -> npt.NDArray[np.int64]:
    """int64 [matrices, 7]; without those that have no elements: the kernel would make room for columns."""
    return np.array([[s.rows, s.columns, s.taps, s.width, s.bypass, s.trellis, s.kind] for s in shapes if s.count],
                    dtype=np.int64).reshape(-1, 7)


def _least_bytes(count: int) -> int:
    """The shortest payload for so many weights; encoders keep zero bytes at the end to reach it.

    Always less than a decoder reads, but some streams (all weights -1) are zero bytes only.
    """
    return max(0, -(-(-(-count // _WEIGHTS_PER_BYTE) - 64) // 4))


def _holds_minimum(q: npt.NDArray[np.int32]) -> bool:
    return q.size > 0 and int(q.min()) == np.iinfo(np.int32).min
