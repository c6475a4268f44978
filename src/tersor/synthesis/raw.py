"""Tool 0: tensors kept bit for bit, deflated where that is shorter. docs/format.md, "Tool 0: raw"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..bitstream.deflate import deflate, inflate
from ..bitstream.dtypes import NUMPY, from_bytes, to_bytes
from ..bitstream.manifest import TensorRecord
from ..errors import FormatError
from ..limits import Limits

STORED, DEFLATED, SHUFFLED = range(3)
"""The method byte. Shuffled: byte 0 of all elements of a tensor, then byte 1 of all, ..., then deflated."""


def encode(arrays: Sequence[npt.NDArray[np.generic]]) -> bytes:
    """The payload for the arrays, in the order of the manifest: the shortest of the three methods."""
    whole = b"".join(to_bytes(array) for array in arrays)
    candidates = [bytes([STORED]) + whole, bytes([DEFLATED]) + deflate(whole)]
    if any(array.dtype.itemsize > 1 for array in arrays):
        planes = b"".join(_shuffle(to_bytes(array), array.dtype.itemsize) for array in arrays)
        candidates.append(bytes([SHUFFLED]) + deflate(planes))
    return min(candidates, key=len)


def decode(payload: bytes, records: Sequence[TensorRecord], limits: Limits,
           threads: int) -> list[npt.NDArray[np.generic]]:
    """The tensors of `records`, of any type. `limits` has been applied to the records already.

    Raises FormatError where the payload has not exactly the bytes of the tensors.
    """
    expected = sum(record.nbytes for record in records)
    if not payload or payload[0] > SHUFFLED:
        raise FormatError(f"a raw section starts with {payload[:1].hex() or 'nothing'}, which is no method")
    whole = memoryview(payload)[1:]
    if payload[0] != STORED:
        whole = memoryview(inflate(payload[1:], expected, "a raw section"))
    if len(whole) != expected:
        raise FormatError(f"a raw section has {len(whole):,} bytes, its tensors {expected:,}: corrupt file")
    out, position = [], 0
    for record in records:
        data: bytes | memoryview = whole[position : position + record.nbytes]
        position += record.nbytes
        if payload[0] == SHUFFLED:
            data = _unshuffle(data, NUMPY[record.dtype].itemsize)
        if record.dtype == "BOOL" and np.frombuffer(data, dtype=np.uint8).max(initial=0) > 1:
            raise FormatError(f"tensor {record.name!r} is boolean but has a byte that is neither 0 nor 1")
        out.append(from_bytes(data, record.dtype, record.shape))
    return out


def _shuffle(data: bytes, itemsize: int) -> bytes:
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, itemsize).T.tobytes()


def _unshuffle(data: bytes | memoryview, itemsize: int) -> bytes:
    return np.frombuffer(data, dtype=np.uint8).reshape(itemsize, -1).T.tobytes()
