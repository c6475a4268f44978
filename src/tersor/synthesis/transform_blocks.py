"""Matrices in blocks of fixed-length integers, each block with a bit depth and a step of its own.

    element = q * step[block]        -2^(depth - 1) <= q < 2^(depth - 1),  q = 0 where depth = 0

The quantiser of "Transform quantization for CNN compression" (Young, Wang, Taubman, Girod, TPAMI 2021),
section 4: clip(round(t / s)) in `depth` bits, no entropy coding. docs/format-transform.md, "Coder 2".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..bitstream import huffman
from ..bitstream.varint import ByteReader
from . import grid

MAX_BLOCKS = 255
MAX_DEPTH = 16
"""Bits of an element."""


@dataclass(frozen=True)
class BlockCode:
    """The integers of one matrix.

    q: int32 [rows, columns].
    depths: int64 [blocks], bits of each element, 0..16; at most 255 blocks.
    step_index: int64 [blocks], the steps on the logarithmic grid; 0 where the depth is 0.
    axis: 0 where a block is some of the rows, 1 where it is some of the columns.
    unit: columns that stay together (of one input channel, say) where axis = 1.
    """

    q: npt.NDArray[np.int32]
    depths: npt.NDArray[np.int64]
    step_index: npt.NDArray[np.int64]
    axis: int = 0
    unit: int = 1

    def matrix(self) -> npt.NDArray[np.float32]:
        """float32 [rows, columns]: what a decoder restores."""
        out = np.zeros(self.q.shape, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            steps = grid.value(self.step_index).astype(np.float32)
            for area, depth, step in zip(self.areas(), self.depths.tolist(), steps, strict=True):
                if depth:
                    out[area] = self.q[area].astype(np.float32) * step
        return out

    def areas(self) -> list[tuple[slice, slice]]:
        """Rows and columns of each block."""
        return areas(self.q.shape, len(self.depths), self.axis, self.unit)

    def check(self) -> None:
        """Raises ValueError where a number is beyond what the format has."""
        if not 1 <= len(self.depths) <= MAX_BLOCKS or len(self.depths) != len(self.step_index):
            raise ValueError(f"{len(self.depths)} depths and {len(self.step_index)} steps: give 1 to "
                             f"{MAX_BLOCKS} of each")
        if self.axis not in (0, 1) or self.unit < 1:
            raise ValueError(f"blocks along axis {self.axis} by {self.unit}: give axis 0 or 1 and at least 1")
        if int(np.abs(self.step_index).max()) > grid.MAX_INDEX:
            raise ValueError("a step is beyond the grid")
        for area, depth in zip(self.areas(), self.depths.tolist(), strict=True):
            if not 0 <= depth <= MAX_DEPTH:
                raise ValueError(f"a depth of {depth} bits: give 0 to {MAX_DEPTH}")
            q, half = self.q[area], 1 << depth >> 1
            if q.size and not (q.min() >= -half and q.max() <= max(half - 1, 0)):
                raise ValueError(f"a block has integers {q.min()} to {q.max()}: too many for {depth} bits")

    def pack(self) -> bytes:
        """The integers, block by block; each block fills whole bytes. Raises ValueError as `check`."""
        self.check()
        return b"".join(huffman.encode_fixed(self.q[area] + np.int32(1 << depth >> 1), depth)
                        for area, depth in zip(self.areas(), self.depths.tolist(), strict=True) if depth)


def unpack(cursor: ByteReader, shape: tuple[int, int], depths: npt.NDArray[np.int64], axis: int,
           unit: int) -> npt.NDArray[np.int32]:
    """The inverse of `BlockCode.pack`: int32 of the given shape.

    The caller has checked the shape against its limits. FormatError where bytes are missing or bits are set
    after the last element of a block.
    """
    q = np.zeros(shape, dtype=np.int32)
    for area, depth in zip(areas(shape, len(depths), axis, unit), depths.tolist(), strict=True):
        if depth:
            part = q[area]
            data = cursor.take((part.size * depth + 7) // 8, "bytes of a block")
            part[:] = huffman.decode_fixed(data, depth, part.size).reshape(part.shape) - (1 << depth >> 1)
    return q


def areas(shape: tuple[int, ...], blocks: int, axis: int, unit: int) -> list[tuple[slice, slice]]:
    """Rows and columns of each block: block b has the units floor(b U / blocks) to floor((b + 1) U / blocks),
    the last one excluded, of the U units of the axis.

    >>> areas((4, 6), 2, 1, 2)
    [(slice(None, None, None), slice(0, 2, None)), (slice(None, None, None), slice(2, 6, None))]
    """
    width = unit if axis else 1
    units = shape[axis] // width
    cuts = [b * units // blocks * width for b in range(blocks + 1)]
    return [(slice(a, b), slice(None)) if axis == 0 else (slice(None), slice(a, b))
            for a, b in pairwise(cuts)]
