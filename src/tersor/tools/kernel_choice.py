"""Which kernel of a codebook each kernel of a layer becomes: argmin of D + lambda * code length, with error feedback.

The block version of `feedback`: input channels in order, all rows of one at a time; what a channel gets wrong is
passed on to the later ones by the factor of A^-1, and from row to row by that of G^-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ..bitstream import native
from .kernel_blocks import Blocks, Group
from .metric import Matrix

Integers = npt.NDArray[np.int32]
Variant: TypeAlias = Literal["plain", "signs", "gains"]

_F64, _I32 = native.array(np.float64), native.array(np.int32)
_I32_OUT = native.array(np.int32, writable=True)
_choose = native.function("tersor_kernels_choose", [
    native.array(np.float64, writable=True), native.INT64, native.INT64, native.POINTER, _F64, native.INT64, _F64,
    _F64, _F64, native.INT64, native.INT64, _I32_OUT, _I32_OUT])

TOGETHER = 16
"""Blocks whose errors reach the columns behind them in one matrix product."""
REACH = 24
"""Gains are -REACH .. REACH."""
RANGES: dict[Variant, tuple[int, int]] = {"plain": (1, 1), "signs": (-1, 1), "gains": (-REACH, REACH)}


@dataclass(frozen=True)
class Book:
    """A codebook with its code lengths.

    * `words`: float64 [k, t], in units of the rows.
    * `bits`: float64 [k], length of each index. `gain_bits`: float64, length of each gain of the variant's range; that
      of gain 0 is infinite for signs.
    """

    words: Matrix
    variant: Variant
    bits: Matrix
    gain_bits: Matrix

    @property
    def size(self) -> int:
        return len(self.words)

    @property
    def low(self) -> int:
        return RANGES[self.variant][0]

    @property
    def high(self) -> int:
        return RANGES[self.variant][1]


@dataclass(frozen=True)
class Chosen:
    """Per group int32 [c, m]: indexes and gains; `cost`: sum of weight |error R|^2 as the pass saw it."""

    index: list[Integers]
    gain: list[Integers]
    cost: float

    def kernels(self, words: Matrix) -> list[Matrix]:
        """Per group float64 [c, m, t]."""
        return [words[index] * gain[..., None] for index, gain in zip(self.index, self.gain, strict=True)]

    def counts(self, k: int) -> Matrix:
        """How often each index is coded, float64 [k]: those of gain 0 are not."""
        flat = np.concatenate([index[gain != 0] for index, gain in zip(self.index, self.gain, strict=True)])
        return np.bincount(flat, minlength=k).astype(np.float64)

    def gain_counts(self, low: int, high: int) -> Matrix:
        flat = np.concatenate([gain.ravel() for gain in self.gain])
        return np.bincount(flat - low, minlength=high - low + 1).astype(np.float64)


def choose(blocks: Blocks, book: Book, price: float, feedback: bool = True) -> Chosen:
    """One pass over a layer; price: what a bit costs."""
    parts = [_group(group, book, price, feedback) for group in blocks.groups]
    return Chosen([part[0] for part in parts], [part[1] for part in parts], sum(part[2] for part in parts))


def _group(group: Group, book: Book, price: float, feedback: bool) -> tuple[Integers, Integers, float]:
    c, m, t = group.y.shape
    index, gain = np.zeros((c, m), np.int32), np.zeros((c, m), np.int32)
    per_row = np.ascontiguousarray(price / group.weight)
    row_weight = group.row_weight if feedback else None
    cost = 0.0

    def one(j: int, white: Matrix) -> Matrix:
        """Choose the kernels of block j for whitened targets [m, t]; their errors."""
        nonlocal cost
        errors = np.array(white, dtype=np.float64, order="C")
        words = np.ascontiguousarray((book.words @ group.whiten[j]).T)
        native.check(_choose(errors, m, t, native.pointer(row_weight), words, book.size, per_row, book.bits,
                             book.gain_bits, book.low, book.high, index[j], gain[j]), "choosing kernels")
        cost += float(group.weight @ np.einsum("mt,mt->m", errors, errors))
        return errors

    upper = group.columns.upper if feedback else None
    if upper is None:
        for j in range(c):
            one(j, group.white[j])
        return index, gain, cost
    n = len(upper)
    carried = np.zeros((m, n))
    for start in range(0, c, TOGETHER):
        stop = min(c, start + TOGETHER)
        errors = np.zeros((m, min(stop * t, n) - start * t))
        for j in range(start, stop):
            first, last = j * t, min((j + 1) * t, n)
            # What the blocks just before passed on has not been carried yet.
            recent = errors[:, : first - start * t] @ upper[start * t : first, first:last]
            white = group.white[j] + (carried[:, first:last] - recent) @ group.whiten[j][: last - first]
            errors[:, first - start * t : last - start * t] = one(j, white)[:, : last - first]
        if stop < c:
            tail = torch.from_numpy(carried[:, stop * t :])
            tail -= torch.from_numpy(errors) @ torch.from_numpy(upper[start * t : stop * t, stop * t :])
    return index, gain, cost
