"""Tool 3: small float tensors (biases, LayerNorm, single numbers) on a uniform grid, one step each.

    value = index * 2^(step_index / 32)

docs/format.md, "Tool 3: vector".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..bitstream.integers import IntegerReader, IntegerWriter
from ..bitstream.manifest import TensorRecord
from ..limits import Limits
from . import grid, spread
from .rounding import to_dtype

# Contexts of the integer code.
_STEP, _BASE, _CLASS = range(3)
_RESIDUAL = 8  # the first of eight


@dataclass(frozen=True)
class VectorCode:
    """The integers of one tensor: index int64 of the tensor's shape, and the step on the logarithmic grid."""

    index: npt.NDArray[np.int64]
    step_index: int

    def values(self) -> npt.NDArray[np.float64]:
        """What a decoder restores (before rounding to the element type), float64 of the tensor's shape."""
        return self.index.astype(np.float64) * grid.value(self.step_index)


def encode(codes: Sequence[VectorCode]) -> bytes:
    """The payload for tensors in the order of the manifest. Tensors without elements occupy nothing."""
    return spread.shortest(_encode(codes, pooling) for pooling in spread.POOLINGS)


def decode(payload: bytes, records: Sequence[TensorRecord], limits: Limits,
           threads: int) -> list[npt.NDArray[np.generic]]:
    """The tensors of `records`, of any shape and float type.

    Raises FormatError for anything that `encode` cannot have written. `limits` has been applied to the
    records already; the work is too small for threads.
    """
    return [to_dtype(code.values(), record.dtype, record.name)
            for code, record in zip(decode_codes(payload, records), records, strict=True)]


def decode_codes(payload: bytes, records: Sequence[TensorRecord]) -> list[VectorCode]:
    """The integers, without the tensors; raises as `decode`."""
    reader = IntegerReader(payload)
    out = []
    for record in records:
        index, step = np.zeros(0, dtype=np.int64), 0
        if record.count:
            step = reader.one(_STEP, -grid.MAX_INDEX, grid.MAX_INDEX, f"{record.name}: step")
            base = reader.take(1, _BASE)
            index = base + spread.take(reader, record.count, _CLASS, _RESIDUAL, record.name)
        out.append(VectorCode(index.reshape(record.shape), step))
    reader.end()
    return out


def _encode(codes: Sequence[VectorCode], pooling: int) -> bytes:
    writer = IntegerWriter()
    for code in codes:
        index = code.index.ravel()
        if not index.size:
            continue
        writer.put([code.step_index], _STEP)
        base = _base(index)
        writer.put([base], _BASE)
        spread.put(writer, index - base, pooling, _CLASS, _RESIDUAL)
    return writer.finish()


def _base(index: npt.NDArray[np.int64]) -> int:
    """The median where the values lie on one side of zero (LayerNorm weights), else 0 (biases)."""
    base = spread.median(index)
    return base if abs(base) > np.median(np.abs(index - base)) else 0
