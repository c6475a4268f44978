"""Quantization with error feedback: OBS / GPTQ between the columns of a row, and the same between rows.

Frantar et al., GPTQ (arXiv 2210.17323), eq. 2 and 3, with the two-sided metric tr(G E A E^T): an
entry's error is passed on to later columns by the factor of A^-1 and to later rows by that of G^-1.
Columns go in blocks: inside a block the native kernel, between blocks one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..bitstream import native
from .metric import Matrix, Triangular

BLOCK = 128
REACH = 64
"""Code lengths are tabulated for |q| <= REACH."""
LIMIT = 1 << 24
"""Largest |q| that is written."""

_F64 = native.array(np.float64)
_OUT = native.array(np.float64, writable=True)
_block = native.function("tersor_feedback_block", [
    _OUT, _F64, native.INT64, native.INT64, native.INT64, native.INT64, native.POINTER, native.INT64, native.POINTER,
    _F64, _F64, _F64, _F64, native.array(np.int32), native.INT64, native.INT64, native.FLOAT64, native.FLOAT64,
    native.INT64, native.array(np.int32, writable=True), _OUT, _OUT])


@dataclass(frozen=True)
class Rounding:
    """How one value becomes an integer.

    step: float64 [rows]. price: float64 [rows], lambda * weight / (g step^2): what a bit costs in squared
    steps over the column's cost. bits: float64 [classes, 2 * REACH + 1], code length of q at q + REACH.
    row_class: int32 [rows]. shift: reconstruction shifts in steps, for |q| = 1 and above.
    """

    step: Matrix
    price: Matrix
    bits: Matrix
    row_class: npt.NDArray[np.int32]
    shift: tuple[float, float] = (0.0, 0.0)


def quantize(target: Matrix, columns: Triangular, rows: Triangular,
             rounding: Rounding) -> tuple[npt.NDArray[np.int32], Matrix]:
    """Integers int32 [m, n] and reconstruction float64 [m, n] of a target float64 [m, n].

    columns: factor of A (n); rows: factor of G (m). Diagonal factors mean no feedback in that direction.
    Cost: m n^2 / 2 + n m^2 / 2 multiply-adds, almost all in matrix products for wide layers.
    """
    m, n = target.shape
    work = np.array(target, dtype=np.float64, order="C")
    carried = np.zeros((m, n))
    codes = np.zeros((m, n), dtype=np.int32)
    quantised = np.zeros((m, n))
    weights = None
    if rows.upper is not None:
        # weights[r, i] = V_ir / V_ii for i < r
        weights = np.ascontiguousarray(np.tril((rows.upper / np.diag(rows.upper)[:, None]).T, -1))
    block = columns.cuts(BLOCK)
    for first in range(0, n, block):
        last = min(first + block, n)
        scaled = np.zeros((m, last - first))
        diagonal = columns.within(first, last)
        native.check(_block(
            work, carried, m, n, first, last - first, native.pointer(diagonal), columns.run, native.pointer(weights),
            rounding.step, rounding.price, np.ascontiguousarray(columns.cost[first:last]), rounding.bits,
            rounding.row_class, len(rounding.bits), REACH, rounding.shift[0], rounding.shift[1], LIMIT, codes,
            scaled, quantised), "quantizing with feedback")
        beyond = columns.beyond(first, last)
        if beyond is not None:
            tail = torch.from_numpy(carried[:, last:])
            tail -= torch.from_numpy(scaled) @ torch.from_numpy(beyond)
    return codes, quantised
