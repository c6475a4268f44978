"""The integers of one tensor whose unit is the kernel: what tool 6 stores and what the encoder and tuning produce."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from . import grid
from .scalar import unview, view_shape

Integers = npt.NDArray[np.int32]

MAX_VALUE = 1 << 15
"""Codebook values are -MAX_VALUE .. MAX_VALUE - 1."""
MAX_GAIN = 1 << 20
"""Largest |gain|."""


@dataclass(frozen=True)
class KernelCode:
    """A tensor as indexes of kernels (Yu, Shi, Huang, Yu, "Kernel quantization", 2022).

        weight[r, c * t + tap] = gain[r, c] * values[index[r, c], tap] * step[r]

    * `values`: int32 [k, t], the codebook: k kernels of t taps, each -2^15 .. 2^15 - 1. Tensors of a section with
      equal codebooks (`same_codebook`) share it in the file.
    * `index`: int32 [rows, channels], 0 .. k - 1. The rows are those of the matrix view (`scalar.view_shape`), and a
      channel is t of its columns; beyond the last column the last kernel of a row is cut off.
    * `gain`: int32 [rows, channels], |gain| <= 2^20, or None for 1 everywhere. Where it is 0, the index is 0.
    * `step_index`, `row_index`, `row_resolution`, `swapped`: as in `ScalarCode`.
    """

    values: Integers
    index: Integers
    step_index: int
    gain: Integers | None = None
    row_index: npt.NDArray[np.int64] | None = None
    row_resolution: int = 2
    swapped: bool = False

    @property
    def taps(self) -> int:
        return int(self.values.shape[1])

    def row_steps(self) -> npt.NDArray[np.float64]:
        """float64 [rows]."""
        return grid.value(row_grid(len(self.index), self.step_index, self.row_index, self.row_resolution))

    def tensor(self, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """What a decoder restores before rounding to the element type, float64 of the given shape."""
        return restore(self.values, self.index, self.gain, self.row_steps(), shape, self.swapped)

    def same_codebook(self, other: KernelCode) -> bool:
        return self.values is other.values or np.array_equal(self.values, other.values)


def row_grid(rows: int, step: int, row_index: npt.NDArray[np.int64] | None, resolution: int) -> npt.NDArray[np.int64]:
    """Grid index of each row's step, int64 [rows]."""
    if row_index is None:
        return np.full(rows, step, dtype=np.int64)
    return np.asarray(step + (row_index << (grid.RESOLUTION.bit_length() - 1 - resolution)))


def channels_of(shape: tuple[int, ...], swapped: bool, taps: int) -> tuple[int, int]:
    """(rows, kernels in a row) of a tensor.

    >>> channels_of((64, 16, 3, 3), False, 9), channels_of((10, 30), False, 8)
    ((64, 16), (10, 4))
    """
    view = view_shape(shape, swapped)
    return view.rows, -(-view.columns // taps)


_ROWS_AT_ONCE = 1 << 20
"""Weights that are restored at once: bounds the room for intermediate results."""


def restore(values: Integers, index: Integers, gain: Integers | None, steps: npt.NDArray[np.float64],
            shape: tuple[int, ...], swapped: bool) -> npt.NDArray[np.float64]:
    """The tensor of a code, float64: (gain * value) * step, the first product exact."""
    rows, channels = index.shape
    columns = prod(shape) // rows if rows else 0
    out = np.empty((rows, columns))
    table = values.astype(np.float64)
    taps = values.shape[1]
    height = max(1, _ROWS_AT_ONCE // max(1, channels * taps))
    for first in range(0, rows, height):
        part = slice(first, first + height)
        kernels = table[index[part]]
        if gain is not None:
            kernels *= gain[part, :, None]
            kernels += 0.0  # an integer 0 has no sign
        kernels *= steps[part, None, None]
        out[part] = kernels.reshape(len(kernels), -1)[:, :columns]
    return np.asarray(unview(out, shape, swapped))


def compact(codes: list[KernelCode]) -> list[KernelCode]:
    """The same tensors by codebooks without unused kernels, the likeliest first; one code per tensor.

    Codes of equal codebooks keep sharing one, and kernels of gain 0 have index 0.
    """
    out = list(codes)
    done: set[int] = set()
    for i, code in enumerate(codes):
        if i in done:
            continue
        members = [j for j in range(i, len(codes)) if codes[j].same_codebook(code)]
        done.update(members)
        counts = np.zeros(len(code.values), dtype=np.int64)
        for j in members:
            counts += used(codes[j])
        order = np.argsort(-counts, kind="stable")[: max(1, int(np.count_nonzero(counts)))]
        place = np.zeros(len(counts), dtype=np.int32)
        place[order] = np.arange(order.size)
        values = np.ascontiguousarray(code.values[order])
        for j in members:
            gain, index = codes[j].gain, place[codes[j].index]
            out[j] = replace(codes[j], values=values, index=index if gain is None else np.where(gain == 0, 0, index))
    return out


def used(code: KernelCode) -> npt.NDArray[np.int64]:
    """How often each kernel of the codebook is used, int64 [k]."""
    flat = code.index.ravel() if code.gain is None else code.index[code.gain != 0]
    return np.bincount(flat, minlength=len(code.values)).astype(np.int64)
