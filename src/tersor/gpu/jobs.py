"""A rANS payload as a kernel takes it: tables unfolded, class map read, every row given its place among the symbols.

    job = job_of(payload, [(64, 576), (128, 64)])

This is the small serial part, which stays on the CPU; docs/format-rans.md, sections 1 to 3 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..bitstream.fallback import CORRUPT
from ..bitstream.fallback.rans import Lanes, class_map, escape_of
from ..bitstream.fallback.rans_header import Bits, Header, Refused, Table

MOST_SYMBOLS = 1 << 30
"""Of one payload: the kernel counts in 32 bits."""

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """What is left of a payload once its class map is read.

    * `states`: of the lanes. `read`: words that the map took. `origin`: how many symbols it has; element e is symbol
      origin + e.
    * `segments`: (table, first symbol, last symbol + 1) of each class that has elements.
    * `row_class`, `row_source`, `row_low`: int64 [rows of all matrices]: class, number of the first element in the
      order of decoding, first bit in the low bits. `first_rows`: int64 [matrices + 1].
    """

    header: Header
    shapes: tuple[tuple[int, int], ...]
    states: tuple[int, ...]
    read: int
    origin: int
    segments: tuple[tuple[int, int, int], ...]
    row_class: Longs
    row_source: Longs
    row_low: Longs
    first_rows: Longs

    @property
    def elements(self) -> int:
        """Of all matrices."""
        return sum(rows * columns for rows, columns in self.shapes)

    @property
    def tables(self) -> tuple[Table, ...]:
        """Of the classes."""
        return self.header.tables[: self.header.classes]

    def escaped(self, places: Sequence[Longs]) -> tuple[Longs, Longs]:
        """The elements that were escaped and their integers, both int64.

        places: for each segment the elements that are escapes, in order. Raises Refused, also where escape codes or low
        bits are left over.
        """
        escapes, lows = Bits(self.header.escapes), Bits(self.header.lows)
        found = [escape_of(self.tables[table], self.header.order, escapes)
                 for (table, _, _), here in zip(self.segments, places, strict=True) for _ in range(here.size)]
        elements = np.concatenate([*places, np.zeros(0, np.int64)])
        row, column = self.locate(elements)
        matrix = self.matrix_of(row)
        values = []
        for q, r, c, m in zip(found, row.tolist(), column.tolist(), matrix.tolist(), strict=True):
            low = self.header.bypass[m]
            if low:
                lows.position = int(self.row_low[r]) + c * low
                q = (q << low) + lows.take(low) - (1 << low - 1)
            values.append(q)
        lows.position = sum(rows * columns * low
                            for (rows, columns), low in zip(self.shapes, self.header.bypass, strict=True))
        if any(not -(1 << 31) <= q < 1 << 31 for q in values) or not (escapes.exhausted() and lows.exhausted()):
            raise Refused(CORRUPT)
        return elements, np.array(values, np.int64)

    def locate(self, elements: Longs) -> tuple[Longs, Longs]:
        """The row (of all matrices) and the column of elements in the order of decoding."""
        order = np.argsort(self.row_source, kind="stable")
        order = order[self.columns()[order] > 0]
        row = order[np.searchsorted(self.row_source[order], elements, "right") - 1]
        return row, elements - self.row_source[row]

    def columns(self) -> Longs:
        """int64 [rows of all matrices]."""
        return np.repeat([columns for _, columns in self.shapes], np.diff(self.first_rows)).astype(np.int64)

    def matrix_of(self, row: Longs) -> Longs:
        """The matrix of rows."""
        return np.searchsorted(self.first_rows, row, "right") - 1


def job_of(payload: bytes, shapes: Sequence[tuple[int, int]]) -> Job | None:
    """None where the payload is not for kernels: too large, or with integers that may be beyond 32 bits.

    Raises Refused for one that is corrupt. There must be elements.
    """
    if sum(rows * columns for rows, columns in shapes) > MOST_SYMBOLS:
        return None
    header = Header.of(payload, shapes)
    classes = header.classes
    heights = np.array([rows for rows, _ in shapes], np.int64)
    first_rows = np.concatenate([[0], np.cumsum(heights)])
    most = int(first_rows[-1]) + len(shapes)  # symbols of the map, and so words
    lanes = Lanes(list(header.states), header.words[:most].tolist(), header.precision)
    row_class = np.zeros(int(first_rows[-1]), np.int64)
    if classes > 1:
        row_class[:] = np.concatenate([np.asarray(rows, np.int64)
                                       for rows in class_map(lanes, header.tables, classes, list(shapes))])
    job = Job(header, tuple(shapes), tuple(lanes.states), lanes.read, lanes.count, (), row_class, row_class, row_class,
              first_rows)
    return _placed(job) if _fits(header) else None


def _fits(header: Header) -> bool:
    """Whether all integers have 32 bits, escapes apart."""
    low = max(header.bypass)
    return all(table.first << low >= -(1 << 31) and (table.first + table.size) << low < 1 << 31
               for table in header.tables[: header.classes])


def _placed(job: Job) -> Job:
    """The same with the places of rows and segments."""
    columns = job.columns()
    order = np.argsort(job.row_class, kind="stable")
    low = np.repeat(job.header.bypass, np.diff(job.first_rows))
    row_source, row_low = np.empty_like(columns), np.empty_like(columns)
    row_source[order] = _before(columns[order])
    row_low[order] = _before((columns * low)[order])
    segments, at = [], job.origin
    for table in range(job.header.classes):
        size = int(columns[job.row_class == table].sum())
        if size:
            segments.append((table, at, at + size))
        at += size
    return replace(job, segments=tuple(segments), row_source=row_source, row_low=row_low)


def _before(sizes: Longs) -> Longs:
    """The sum of all that come before each."""
    return np.cumsum(sizes) - sizes
