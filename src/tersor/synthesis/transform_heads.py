"""What the parameters of a transform section say about one matrix: all but its integers.

    Heads.put(writer, code, ...)  ->  take(reader, ...).code(q)

A matrix is a basis or the coefficients of a tensor; the two kinds have contexts of their own.
docs/format-transform.md, "Parameters of a matrix".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..bitstream import context
from ..bitstream.integers import IntegerReader, IntegerWriter
from ..errors import FormatError
from . import grid, spread
from .scalar import MAX_SHIFT, ScalarCode, beyond_grid
from .transform_blocks import MAX_BLOCKS, MAX_DEPTH, BlockCode, Cuts

Code: TypeAlias = ScalarCode | BlockCode

FAST, SMALL, FIXED = 0, 1, 2
"""Coders: static rANS, adaptive contexts, fixed-length integers."""

BASIS, COEFFICIENTS = 0, 1
"""Kinds of matrices."""

# Contexts of the integer code; those in pairs are of BASIS and COEFFICIENTS. transform.py has 0 to 5.
_STEP = (6, 7)
_SHIFT, _BYPASS, _RESOLUTION = 8, 9, 10
_CLASS, _ROW = (11, 12), (16, 24)
_AXIS, _DEPTH = 14, 15

_ALONG_ROWS, _ALONG_CHANNELS, _ALONG_ALL = range(3)  # values of _AXIS


@dataclass(frozen=True)
class ScalarHead:
    """Of a ScalarCode: as in tool 1."""

    shape: context.Shape
    step_index: int
    row_index: npt.NDArray[np.int64] | None
    resolution: int
    shift: tuple[int, int]
    trellis: int = 0

    def code(self, q: npt.NDArray[np.int32]) -> ScalarCode:
        return ScalarCode(q, self.step_index, self.row_index, max(self.resolution, 0), self.shift,
                          trellis=self.trellis)


@dataclass(frozen=True)
class BlockHead:
    """Of a BlockCode."""

    shape: context.Shape
    cuts: Cuts
    depths: npt.NDArray[np.int64]
    step_index: npt.NDArray[np.int64]

    def code(self, q: npt.NDArray[np.int32]) -> BlockCode:
        return BlockCode(q, self.depths, self.step_index, self.cuts)


@dataclass
class Heads:
    """Writes or reads the heads of a section; remembers the last step of each kind, from which the next counts."""

    mode: int
    _last: list[int] = field(default_factory=lambda: [0, 0])

    def put(self, writer: IntegerWriter, code: Code, shape: context.Shape, kind: int) -> context.Shape:
        """Write a head; returns the shape with its bypass. Raises ValueError for codes of another mode."""
        if code.q.shape != (shape.rows, shape.columns):
            raise ValueError(f"a matrix of shape {code.q.shape} was given for {(shape.rows, shape.columns)}")
        if isinstance(code, ScalarCode) != (self.mode != FIXED):
            raise ValueError(f"coder {self.mode} cannot hold a {type(code).__name__}")
        if isinstance(code, BlockCode):
            self._put_blocks(writer, code, _unit(shape, kind), kind)
            return shape
        if code.trellis and kind == BASIS:
            raise ValueError("a basis has no trellis, only coefficients may have one")
        writer.put([code.step_index - self._last[kind]], _STEP[kind])
        self._last[kind] = code.step_index
        if not code.trellis:
            writer.put(code.shift, _SHIFT)
        if self.mode == SMALL:
            shape = replace(shape, bypass=context.choose_bypass(code.q), trellis=code.trellis)
            writer.put([shape.bypass], _BYPASS)
        writer.put([-1 if code.row_index is None else code.row_resolution], _RESOLUTION)
        if code.row_index is not None:
            rows = np.diff(code.row_index, prepend=0) if kind == BASIS else code.row_index
            spread.put(writer, rows, 1, _CLASS[kind], _ROW[kind])
        return shape

    def _put_blocks(self, writer: IntegerWriter, code: BlockCode, unit: int, kind: int) -> None:
        code.check()
        cuts = code.cuts
        if cuts.blocks == cuts.rows:
            axis, parts = _ALONG_ROWS, [cuts.rows]
        elif cuts.blocks == cuts.channels:
            axis, parts = _ALONG_CHANNELS, [cuts.channels]
        else:
            axis, parts = _ALONG_ALL, [cuts.rows, cuts.channels, cuts.taps]
        if axis != _ALONG_ROWS and cuts.unit != unit:
            raise ValueError(f"blocks of channels need a unit of {unit}, not {cuts.unit}")
        writer.put([axis, *(count - 1 for count in parts)], _AXIS)
        writer.put(np.diff(code.depths, prepend=0), _DEPTH)
        steps = code.step_index[code.depths > 0]
        writer.put(np.diff(steps, prepend=self._last[kind]), _STEP[kind])
        if steps.size:
            self._last[kind] = int(steps[-1])

    def take(self, reader: IntegerReader, shape: context.Shape, kind: int, what: str,
             states: int = 0) -> ScalarHead | BlockHead:
        """Read a head; states: of the matrix' trellis, 0 for none. FormatError that names `what`."""
        if self.mode == FIXED:
            return self._take_blocks(reader, shape, kind, what)
        self._last[kind] += int(reader.take(1, _STEP[kind])[0])
        first = more = 0
        if not states:
            first, more = (reader.one(_SHIFT, 0, MAX_SHIFT, f"{what}: reconstruction shift") for _ in "ab")
        if self.mode == SMALL:
            bypass = reader.one(_BYPASS, 0, context.MAX_BYPASS, f"{what}: bypass bits")
            shape = replace(shape, bypass=bypass, trellis=states)
        resolution = reader.one(_RESOLUTION, -1, 5, f"{what}: resolution of row steps")
        rows = None
        if resolution >= 0:
            rows = spread.take(reader, shape.rows, _CLASS[kind], _ROW[kind], what)
            if kind == BASIS:
                rows = running_sums(rows, 0, f"{what}: row exponents", grid.MAX_INDEX)
        if beyond_grid(self._last[kind], rows, resolution):
            raise FormatError(f"{what}: a step is beyond the grid: the file is corrupt")
        return ScalarHead(shape, self._last[kind], rows, resolution, (first, more), states)

    def _take_blocks(self, reader: IntegerReader, shape: context.Shape, kind: int,
                     what: str) -> BlockHead:
        axis = reader.one(_AXIS, _ALONG_ROWS, _ALONG_ALL, f"{what}: the axis of its blocks")
        cut = [axis == _ALONG_ROWS, axis == _ALONG_CHANNELS, False] if axis < _ALONG_ALL else [True] * 3
        rows, channels, taps = (1 + reader.one(_AXIS, 0, MAX_BLOCKS - 1, f"{what}: the number of blocks") if here
                                else 1 for here in cut)
        cuts = Cuts(rows, channels, taps, _unit(shape, kind))
        blocks = cuts.blocks
        if blocks > MAX_BLOCKS:
            raise FormatError(f"{what}: {blocks} blocks, there are {MAX_BLOCKS} at most: the file is corrupt")
        depths = running_sums(reader.take(blocks, _DEPTH), 0, f"{what}: bit depths", MAX_DEPTH)
        if int(depths.min()) < 0:
            raise FormatError(f"{what}: a bit depth is negative: the file is corrupt")
        steps = np.zeros(blocks, dtype=np.int64)
        coded = reader.take(int(np.count_nonzero(depths)), _STEP[kind])
        steps[depths > 0] = running_sums(coded, self._last[kind], f"{what}: steps", grid.MAX_INDEX)
        if coded.size:
            self._last[kind] = int(steps[depths > 0][-1])
        return BlockHead(shape, cuts, depths, steps)


def _unit(shape: context.Shape, kind: int) -> int:
    """Columns that blocks keep together: the taps of a channel, in coefficients."""
    return shape.taps if kind == COEFFICIENTS else 1


def running_sums(differences: npt.NDArray[np.int64], start: int, what: str, most: int) -> npt.NDArray[np.int64]:
    """start + the running sums; FormatError where one is beyond +-most (also of the differences: no overflow)."""
    sums = start + np.cumsum(differences)
    if differences.size and max(int(np.abs(differences).max()) - most, int(np.abs(sums).max())) > most:
        raise FormatError(f"{what} are beyond +-{most}: the file is corrupt")
    return sums
