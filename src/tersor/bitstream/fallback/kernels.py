"""Adaptive coding of kernel indexes: native/kernels_index.cpp, docs/format-kernels.md."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import BAD_ARGUMENT
from .binary import BitDecoder
from .mixing import RECIPROCAL, SQUASH, STRETCH, probability

_INPUTS = 6
_CLASSES = 16
_TRUST = 12
_MEAN_LIMIT = 30
_WEIGHT_LIMIT = 1 << 20

Slot = list[int]
"""A probability of a 1 in 22 bits, and a count."""


class _Book:
    """What adapts to one codebook: slots by input, and node or (node, context)."""

    def __init__(self, size: int, decay: int) -> None:
        self.size, self.depth = size, (size - 1).bit_length()
        below, weight = [0], 1 << 24
        for _ in range(size):
            below.append(below[-1] + weight)
            weight = max(weight * decay >> 8, 256)
        self.first: dict[int, int] = {}
        for level in range(self.depth):
            span = 1 << self.depth - level
            for i in range(1 << level):
                low, middle, high = i * span, i * span + span // 2, min((i + 1) * span, size)
                if middle >= size:
                    break
                ones, every = below[high] - below[middle], below[high] - below[low]
                self.first[(1 << level) + i] = (ones << 22) // every
        self.slots: dict[tuple[int, int, int], Slot] = {}

    def slot(self, which: int, node: int, context: int) -> Slot:
        found = self.slots.get((which, node, context))
        if found is None:
            found = self.slots[which, node, context] = [self.first[node], _TRUST]
        return found


def kernels_decode(data: bytes, size: int, gain: npt.NDArray[np.int32], matrices: int,
                   shape: npt.NDArray[np.int64], index: npt.NDArray[np.int32]) -> int:
    """Indexes of all matrices, shape [matrices, 6]; the bytes consumed, or an error code."""
    coder = BitDecoder(data)
    mixers = [[65536 // _INPUTS] * _INPUTS for _ in range(16)]
    book: _Book | None = None
    at = 0
    for rows, columns, entries, decay, fresh, has_gains in shape[:matrices].tolist():
        if fresh:
            book = _Book(entries, decay)
        if book is None or book.size != entries:
            return BAD_ARGUMENT
        count = rows * columns
        gains = gain[at : at + count].tolist() if has_gains else [1] * count
        index[at : at + count] = _matrix(coder, mixers, book, gains, rows, columns)
        at += count
    return coder.position


def _matrix(coder: BitDecoder, mixers: list[list[int]], book: _Book, gains: list[int], rows: int,
            columns: int) -> list[int]:
    column_mean, above = [1024] * columns, [0] * columns
    coarse = max(0, book.depth - 4)
    out = []
    for r in range(rows):
        row_mean, left = 1024, 0
        for c in range(columns):
            g = gains[r * columns + c]
            if g == 0:
                out.append(0)
                continue
            context = (0, min(abs(g), 15), left >> coarse, above[c] >> coarse, row_mean >> 7, column_mean[c] >> 7)
            value = _one(coder, mixers, book, context)
            out.append(value)
            left = above[c] = value
            position = (value << 11) // book.size
            row_mean += ((position - row_mean) * RECIPROCAL[min(c, _MEAN_LIMIT)]) >> 16
            column_mean[c] += ((position - column_mean[c]) * RECIPROCAL[min(r, _MEAN_LIMIT)]) >> 16
    return out


def _one(coder: BitDecoder, mixers: list[list[int]], book: _Book, context: tuple[int, ...]) -> int:
    node, low = 1, 0
    for place in reversed(range(book.depth)):
        middle = low + (1 << place)
        if middle >= book.size:
            node *= 2
            continue
        slots = [book.slot(which, node, context[which]) for which in range(_INPUTS)]
        inputs = [STRETCH[slot[0] >> 10] for slot in slots]
        weights = mixers[book.depth - 1 - place]
        total = sum(w * x for w, x in zip(weights, inputs, strict=True)) >> 16
        x = min(2047, max(-2047, total))
        bit = coder.decode(probability(x))
        error = (65535 if bit else 0) - SQUASH[x + 2048]
        for i, value in enumerate(inputs):
            weights[i] = min(_WEIGHT_LIMIT, max(-_WEIGHT_LIMIT, weights[i] + ((value * error + (1 << 13)) >> 15)))
        target = (1 << 22) - 1 if bit else 0
        for slot in slots:
            slot[0] += ((target - slot[0]) * RECIPROCAL[slot[1]]) >> 16
            slot[1] += slot[1] < 255
        node = 2 * node + bit
        if bit:
            low = middle
    return low
