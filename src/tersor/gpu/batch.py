"""Payloads decoded to symbols at once, each by a program of its own, and their rows to matrices: what is on the device.

    batch = Batch(jobs, device)
    refused = batch.run()                               # the numbers of jobs whose words do not fit
    batch.restore(0, 1, coded, rows, out)               # matrix 1 of job 0, or some of its rows
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..bitstream.fallback import CORRUPT
from ..bitstream.fallback.rans_header import START, Refused
from ..synthesis import scalar
from ..synthesis.scalar import Coded
from . import kernels
from .jobs import Job, Longs

TABLE = 1 << 14
"""Slots of the largest table."""
MANY = 1 << 16
"""Up to so many elements all may be escapes; beyond it, one in 64."""
MOST_BLOCKS = 65_535
"""Programs along the second axis of a grid."""
_ROWS = 32
"""Rows to a program that restores a trellis: a warp."""


class Batch:
    """Jobs that are decoded together. Memory on the device: a byte for each element, and the words."""

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        self.jobs, self.device = jobs, device
        self.starts = _before([job.elements for job in jobs])  # of each job's symbols
        self.first_table = _before([len(job.tables) for job in jobs])
        self.first_row = _before([job.row_class.size for job in jobs])
        tables = [table for job in jobs for table in job.tables]
        symbol_of, range_of = np.zeros((len(tables), TABLE), np.uint8), np.zeros((len(tables), 256), np.uint32)
        for i, table in enumerate(tables):
            symbol_of[i, : len(table.symbol)] = table.symbol
            start = np.array(table.start, np.uint32)
            range_of[i, : start.size] = np.array(table.frequency, np.uint32) | start << 16
        self.symbol_of, self.range_of = self._there(symbol_of), self._there(range_of.view(np.int32))
        self.first_of = self._there(np.array([table.first for table in tables], np.int64))
        self.symbols = torch.empty(sum(job.elements for job in jobs), dtype=torch.uint8, device=device)
        joined = [np.concatenate([getattr(job, name) + start for job, start in zip(jobs, offsets, strict=True)])
                  for name, offsets in (("row_source", self.starts), ("row_class", self.first_table))]
        self.row_source, self.row_table = self._there(joined[0]), self._there(joined[1].astype(np.int32))
        self._lows: dict[int, Tensor] = {}

    def _there(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def run(self) -> set[int]:
        """Decode all symbols; the numbers of the jobs whose words or states contradict themselves."""
        refused: set[int] = set()
        for lanes in sorted({len(job.states) for job in self.jobs}):
            chosen = [i for i, job in enumerate(self.jobs) if len(job.states) == lanes]
            refused |= self._run(chosen, lanes)
        return refused

    def _run(self, chosen: list[int], lanes: int) -> set[int]:
        """The same for jobs with one number of lanes."""
        rows: list[list[int]] = []
        segments: list[tuple[int, int, int]] = []
        place = 0
        for i, number in enumerate(chosen):
            job = self.jobs[number]
            words = job.header.words.size - job.read
            own = [(self.first_table[number] + table, begin, end) for table, begin, end in job.segments]
            rows.append([place, words, i * lanes, self.starts[number], job.origin, len(segments),
                         len(segments) + len(own), job.header.precision])
            segments += own
            place += words
        stream = np.concatenate([self.jobs[i].header.words[self.jobs[i].read :] for i in chosen])
        states = self._there(np.array([self.jobs[i].states for i in chosen], np.uint32).view(np.int32))
        read = torch.zeros(len(chosen), dtype=torch.int32, device=self.device)
        kernels.decode_symbols[(len(chosen),)](
            self._there(stream.astype(np.uint16).view(np.int16)), states, self._there(np.array(rows, np.int64)),
            self._there(np.array(segments, np.int64)), self.symbol_of, self.range_of, self.symbols, read, LANES=lanes,
            num_warps=1 if lanes <= 32 else 2)
        right = (states == START).all(dim=1).cpu().numpy() & (read.cpu().numpy() == np.array([row[1] for row in rows]))
        return {number for number, good in zip(chosen, right.tolist(), strict=True) if not good}

    def escapes(self, number: int) -> tuple[Longs, Longs]:
        """Of a job: the elements that were escaped and their integers. Takes them from the device.

        Raises Refused, also where there are more than an encoder makes: Python reads them, one by one.
        """
        job, places = self.jobs[number], []
        for table, begin, end in job.segments:
            first = begin - job.origin
            if job.tables[table].escape:
                symbols = self.symbols[self.starts[number] + first : self.starts[number] + end - job.origin]
                places.append((symbols == job.tables[table].size).nonzero().flatten().cpu().numpy() + first)
            else:
                places.append(np.zeros(0, np.int64))
        if 64 * sum(here.size for here in places) > job.elements + MANY:
            raise Refused(CORRUPT)
        return job.escaped(places)

    def restore(self, number: int, matrix: int, coded: Coded, out: Tensor, escapes: tuple[Longs, Longs]) -> None:
        """Write a matrix of a job to `out`, float32 [rows, columns], contiguous. coded: its steps and levels."""
        job = self.jobs[number]
        rows, columns = job.shapes[matrix]
        if rows * columns == 0:
            return
        steps = self._there(coded.steps)
        q = torch.empty((rows, columns), dtype=torch.int32, device=self.device) if coded.trellis else out
        self._fill(number, matrix, coded, steps, q)
        element, value = escapes
        if element.size:
            row, column = job.locate(element)
            mine = job.matrix_of(row) == matrix
            row, column, value = row[mine] - job.first_rows[matrix], column[mine], value[mine]
            new = value.astype(np.int32)
            with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
                right = new if coded.trellis else scalar.levels_of(new, coded.shift) * coded.steps[row]
            q[self._there(row), self._there(column)] = self._there(right)
        if coded.trellis:
            following, quantizer = ((kernels.NEXT_4, kernels.QUANTIZER_4) if coded.trellis == 4
                                    else (kernels.NEXT_8, kernels.QUANTIZER_8))
            kernels.restore_trellis[(-(-rows // _ROWS),)](q, steps, out, rows, columns, NEXT=following,
                                                          QUANTIZER=quantizer, BLOCK=_ROWS, num_warps=1)

    def _fill(self, number: int, matrix: int, coded: Coded, steps: Tensor, out: Tensor) -> None:
        """All elements but escapes: weights, or the integers of a trellis."""
        job = self.jobs[number]
        rows, columns = job.shapes[matrix]
        first, last = (int(row) for row in job.first_rows[matrix : matrix + 2])
        mine = slice(self.first_row[number] + first, self.first_row[number] + last)
        low = job.header.bypass[matrix]
        if number not in self._lows:
            self._lows[number] = self._there(np.frombuffer(job.header.lows or b"\0", np.uint8).copy())
        lows = self._lows[number]
        reach = scalar.MAX_REACH if any(coded.shift) else -1
        levels = scalar.level_table(coded.shift, reach) if reach > 0 else np.zeros(1, np.float32)
        block = min(1024, 1 << (columns - 1).bit_length())
        while columns > block * MOST_BLOCKS:
            block *= 2
        kernels.restore_rows[(rows, -(-columns // block))](
            self.symbols, self.row_source[mine], self.row_table[mine], self._there(job.row_low[first:last]), steps,
            self.first_of, lows, self._there(levels.copy()), out, columns, lows.numel(), reach,
            LOW=low, FLOATS=not coded.trellis, BLOCK=block, num_warps=min(8, max(1, block // 256)))


def _before(sizes: Sequence[int]) -> list[int]:
    """The sum of all that come before each."""
    return list(itertools.accumulate(sizes, initial=0))[:-1]
