"""Matrices in blocks of fixed-length integers, each block with a bit depth and a step of its own.

    element = q * step[block]        -2^(depth - 1) <= q < 2^(depth - 1),  q = 0 where depth = 0

The quantiser of "Transform quantization for CNN compression" (Young, Wang, Taubman, Girod, TPAMI 2021),
section 4: clip(round(t / s)) in `depth` bits, no entropy coding. docs/format-transform.md, "Coder 2".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..bitstream import huffman
from ..bitstream.varint import ByteReader
from . import grid

MAX_BLOCKS = 255
MAX_DEPTH = 16
"""Bits of an element."""

Box: TypeAlias = tuple[slice, slice, slice]
"""A block's rows, channels and taps."""


@dataclass(frozen=True)
class Cuts:
    """A matrix as rows x channels x taps, cut into boxes: `rows` * `channels` * `taps` of them.

    unit: columns of a channel, its taps. Of U rows, part i of b has the rows floor(i U / b) to floor((i + 1) U / b),
    the last one excluded; channels and taps likewise.
    """

    rows: int = 1
    channels: int = 1
    taps: int = 1
    unit: int = 1

    @property
    def blocks(self) -> int:
        return self.rows * self.channels * self.taps

    def view(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[rows, columns] as [rows, channels, taps], the same memory where that is contiguous."""
        return matrix.reshape(len(matrix), matrix.shape[1] // self.unit, self.unit)

    def boxes(self, shape: tuple[int, ...]) -> list[Box]:
        """The blocks of a matrix of this shape, in the order of the file: taps fastest, rows slowest.

        >>> Cuts(channels=2, unit=2).boxes((4, 6))
        [(slice(0, 4, None), slice(0, 1, None), slice(0, 2, None)), (slice(0, 4, None), slice(1, 3, None), \
slice(0, 2, None))]
        """
        rows, columns = shape
        return list(product(*(
            [slice(a, b) for a, b in pairwise(i * size // parts for i in range(parts + 1))]
            for size, parts in ((rows, self.rows), (columns // self.unit, self.channels), (self.unit, self.taps)))))


@dataclass(frozen=True)
class BlockCode:
    """The integers of one matrix.

    q: int32 [rows, columns].
    depths: int64 [blocks], bits of each element, 0..16; at most 255 blocks.
    step_index: int64 [blocks], the steps on the logarithmic grid; 0 where the depth is 0.
    cuts: where the blocks are.
    """

    q: npt.NDArray[np.int32]
    depths: npt.NDArray[np.int64]
    step_index: npt.NDArray[np.int64]
    cuts: Cuts

    def matrix(self) -> npt.NDArray[np.float32]:
        """float32 [rows, columns]: what a decoder restores."""
        out = np.zeros(self.q.shape, dtype=np.float32)
        view, q = self.cuts.view(out), self.cuts.view(self.q)
        with np.errstate(over="ignore", invalid="ignore"):
            steps = grid.value(self.step_index).astype(np.float32)
            for box, depth, step in zip(self.boxes(), self.depths.tolist(), steps, strict=True):
                if depth:
                    view[box] = q[box].astype(np.float32) * step
        return out

    def boxes(self) -> list[Box]:
        """Where each block is in `cuts.view` of a matrix."""
        return self.cuts.boxes(self.q.shape)

    def check(self) -> None:
        """Raises ValueError where a number is beyond what the format has."""
        cuts = self.cuts
        if not 1 <= len(self.depths) <= MAX_BLOCKS or len(self.depths) != len(self.step_index):
            raise ValueError(f"{len(self.depths)} depths and {len(self.step_index)} steps: give 1 to "
                             f"{MAX_BLOCKS} of each")
        if min(cuts.rows, cuts.channels, cuts.taps, cuts.unit) < 1 or cuts.blocks != len(self.depths) \
                or self.q.shape[1] % cuts.unit:
            raise ValueError(f"{cuts} do not cut a matrix of shape {self.q.shape} into {len(self.depths)} blocks")
        if int(np.abs(self.step_index).max()) > grid.MAX_INDEX:
            raise ValueError("a step is beyond the grid")
        q = cuts.view(self.q)
        for box, depth in zip(self.boxes(), self.depths.tolist(), strict=True):
            if not 0 <= depth <= MAX_DEPTH:
                raise ValueError(f"a depth of {depth} bits: give 0 to {MAX_DEPTH}")
            part, half = q[box], 1 << depth >> 1
            if part.size and not (part.min() >= -half and part.max() <= max(half - 1, 0)):
                raise ValueError(f"a block has integers {part.min()} to {part.max()}: too many for {depth} bits")

    def pack(self) -> bytes:
        """The integers, block by block; each block fills whole bytes. Raises ValueError as `check`."""
        self.check()
        q = self.cuts.view(self.q)
        return b"".join(huffman.encode_fixed(q[box] + np.int32(1 << depth >> 1), depth)
                        for box, depth in zip(self.boxes(), self.depths.tolist(), strict=True) if depth)


def unpack(cursor: ByteReader, shape: tuple[int, int], depths: npt.NDArray[np.int64],
           cuts: Cuts) -> npt.NDArray[np.int32]:
    """The inverse of `BlockCode.pack`: int32 of the given shape.

    The caller has checked the shape against its limits. FormatError where bytes are missing or bits are set
    after the last element of a block.
    """
    q = np.zeros(shape, dtype=np.int32)
    view = cuts.view(q)
    for box, depth in zip(cuts.boxes(shape), depths.tolist(), strict=True):
        if depth:
            part = view[box]
            data = cursor.take((part.size * depth + 7) // 8, "bytes of a block")
            part[:] = huffman.decode_fixed(data, depth, part.size).reshape(part.shape) - (1 << depth >> 1)
    return q
