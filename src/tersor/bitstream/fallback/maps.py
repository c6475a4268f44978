"""Linear maps and the trellis' levels: native/mix.cpp, native/trellis.cpp."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import BAD_ARGUMENT

NEXT = {4: ((0, 2), (2, 0), (1, 3), (3, 1)),
         8: ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))}
QUANTIZER = {4: (0, 0, 1, 1), 8: (0, 1, 0, 1, 0, 1, 0, 1)}


def simd_level() -> int:
    """There is no SIMD here."""
    return 0


def mix(values: npt.NDArray[np.float64], in_size: int, basis: npt.NDArray[np.float64], basis_size: int,
        out: npt.NDArray[np.float64], out_size: int, outer: int, terms: int, inner: int, outputs: int, first: int,
        last: int, simd: int) -> int:
    """out[a, j, b] = sum over i of values[a, i, b] * basis[i, j], in order, for lines first .. last - 1.

    Every product is rounded before it is added: NumPy multiplies and adds in two steps.
    """
    if not 0 <= first <= last <= outer * inner or in_size != outer * terms * inner:
        return BAD_ARGUMENT
    a, b = np.divmod(np.arange(first, last), max(inner, 1))
    lines = values.reshape(outer, terms, inner)[a, :, b]
    sums = np.zeros((last - first, outputs))
    matrix = basis.reshape(terms, outputs)
    for i in range(terms):
        sums += lines[:, i, None] * matrix[i]
    out.reshape(outer, outputs, inner)[a, :, b] = sums
    return 0


def trellis_restore(q: npt.NDArray[np.int32], rows: int, columns: int, states: int, step: npt.NDArray[np.float32],
                    out: npt.NDArray[np.float32]) -> int:
    """Weights of integers by dependent quantization: level times step, both rounded to binary32."""
    following, quantizer = np.array(NEXT[states]), np.array(QUANTIZER[states])
    state = np.zeros(rows, dtype=np.int64)
    for column in range(columns):
        wide = q[:, column].astype(np.int64)
        level = 2 * wide - quantizer[state] * np.sign(wide)
        with np.errstate(over="ignore", invalid="ignore"):
            out[:, column] = level.astype(np.float32) * step
        state = following[state, wide & 1]
    return 0
