"""Dependent (trellis-coded) quantization with error feedback: a Viterbi search over the states of a row.

Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources" (IEEE Trans. Comm.
1990), with the sequential states of VVC and NNC (Schwarz et al., DCC 2019): synthesis/trellis.py. The search runs
inside the feedback of feedback.py: every survivor carries the row that its own errors have left, and a path costs

    sum over j of  g_i d_j (y_j - step level_j)^2 + mu lambda bits(q_j | quantizer, class of the row).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..bitstream import native
from ..synthesis import trellis
from .feedback import LIMIT, REACH
from .metric import Matrix, Triangular

SUB_STEP = 0.7
"""Sub-step over the step that a scalar quantiser would have at the same lambda."""
WHOLE = 640
"""Rows of up to so many columns are searched as a whole."""
BLOCK = 128
"""Else the columns of a search; corrections of later columns are a matrix product."""
LOOK = 32
"""Columns beyond a block that its search takes into account."""

_F64 = native.array(np.float64)
_OUT = native.array(np.float64, writable=True)
_block = native.function("tersor_trellis_block", [
    _OUT, _F64, native.INT64, native.INT64, native.INT64, native.INT64, native.INT64, native.POINTER,
    native.INT64, native.POINTER, _F64, _F64, _F64, _F64, native.array(np.int32), native.INT64, native.INT64,
    native.INT64, native.INT64, native.array(np.uint8, writable=True), native.array(np.int32, writable=True), _OUT,
    _OUT])


@dataclass(frozen=True)
class Rounding:
    """How values become integers.

    step: float64 [rows], sub-steps. price: float64 [rows], mu lambda / (g step^2): what a bit costs in squared
    sub-steps over the column's cost. bits: float64 [classes, 2, REACH + 1], code length of |q|, its sign included,
    by quantizer. row_class: int32 [rows]. states: 4 or 8.
    """

    step: Matrix
    price: Matrix
    bits: Matrix
    row_class: npt.NDArray[np.int32]
    states: int


def quantize(target: Matrix, columns: Triangular, rows: Triangular,
             rounding: Rounding) -> tuple[npt.NDArray[np.int32], Matrix]:
    """Integers int32 [m, n] and reconstruction float64 [m, n] of a target float64 [m, n]; see feedback.quantize.

    Every row begins in state 0. Cost: m n (states * block / 2 + n / 2 + m / 2) multiply-adds.
    """
    m, n = target.shape
    work = np.array(target, dtype=np.float64, order="C")
    carried = np.zeros((m, n))
    codes = np.zeros((m, n), dtype=np.int32)
    quantised = np.zeros((m, n))
    state = np.zeros(m, dtype=np.uint8)
    weights = None
    if rows.upper is not None:
        # weights[r, i] = V_ir / V_ii for i < r
        weights = np.ascontiguousarray(np.tril((rows.upper / np.diag(rows.upper)[:, None]).T, -1))
    block = n if n <= WHOLE else columns.cuts(BLOCK)
    for first in range(0, n, max(block, 1)):
        last = min(first + block, n)
        end = min(last + LOOK, n)
        scaled = np.zeros((m, last - first))
        diagonal = columns.within(first, end)
        native.check(_block(
            work, carried, m, n, first, last - first, end - last, native.pointer(diagonal), columns.run,
            native.pointer(weights),
            rounding.step, rounding.price, np.ascontiguousarray(columns.cost[first:end]), rounding.bits,
            rounding.row_class, len(rounding.bits), REACH, LIMIT, rounding.states, state, codes, scaled, quantised),
            "searching a trellis")
        beyond = columns.beyond(first, last)
        if beyond is not None:
            tail = torch.from_numpy(carried[:, last:])
            tail -= torch.from_numpy(scaled) @ torch.from_numpy(beyond)
    return codes, quantised


def code_lengths(counts: Matrix, seen: bool = True) -> Matrix:
    """Code lengths float64 [classes, 2, REACH + 1] of |q| and its sign, from counts of |q| by class and quantizer.

    seen: whether the entropy coder tells the quantizers apart. Where there is little to count, a quantizer and a class
    borrow from the shape that all classes have together.
    """
    if not seen:
        counts = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    total = counts.sum(axis=0, keepdims=True) + 0.1 * 0.9 ** np.arange(REACH + 1.0)
    own = counts + 4.0 * total / total.sum(axis=2, keepdims=True)
    bits = -np.log2(own / own.sum(axis=2, keepdims=True))
    bits[:, :, 1:] += 1.0
    return np.ascontiguousarray(bits)


def count(codes: npt.NDArray[np.int32], states: int, row_class: npt.NDArray[np.int32], classes: int) -> Matrix:
    """Counts float64 [classes, 2, REACH + 1] of |q|, clipped to REACH, of integers int32 [m, n] by the class of their
    row, int32 [m], and the quantizer they are decoded with."""
    quantizer = np.array(trellis.QUANTIZER[states])[trellis.active_states(codes, states)]
    return _count(np.abs(codes.astype(np.int64)), quantizer, row_class, classes)


def count_nearest(values: Matrix, row_class: npt.NDArray[np.int32], classes: int) -> Matrix:
    """The same of values float64 [m, n] in sub-steps, were each rounded to the nearest level of both quantizers."""
    size = np.minimum(np.abs(values), 2.0 * LIMIT)
    odd = np.where(size < 0.5, 0, np.floor(size / 2) + 1)
    quantizer = np.zeros(values.shape, dtype=np.int64)
    return _count(np.rint(size / 2).astype(np.int64), quantizer, row_class, classes) \
        + _count(odd.astype(np.int64), quantizer + 1, row_class, classes)


def _count(magnitudes: npt.NDArray[np.int64], quantizer: npt.NDArray[np.int64], row_class: npt.NDArray[np.int32],
           classes: int) -> Matrix:
    place = (row_class[:, None].astype(np.int64) * 2 + quantizer) * (REACH + 1) + np.minimum(magnitudes, REACH)
    counted = np.bincount(place.ravel(), minlength=classes * 2 * (REACH + 1))
    return counted.reshape(classes, 2, REACH + 1).astype(np.float64)
