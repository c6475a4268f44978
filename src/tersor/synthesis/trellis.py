"""Dependent quantization: the states of a row and the levels of its integers. docs/format.md, "Trellis".

Two quantizers, in sub-steps: quantizer 0 has the levels 2 q, quantizer 1 the levels sign(q) (2 |q| - 1). The
parity of q leads from state to state; each state uses one of the quantizers. (Marcellin and Fischer's
trellis-coded quantization as Schwarz et al., "Hybrid video coding with trellis-coded quantization", DCC 2019,
made it sequential: the tables of VVC and NNC.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..bitstream import native

STATES = (0, 4, 8)
"""What a tensor may use; 0: none."""

NEXT: dict[int, tuple[tuple[int, int], ...]] = {
    4: ((0, 2), (2, 0), (1, 3), (3, 1)),
    8: ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))}
"""NEXT[states][state][parity of q]; native/trellis.h has the same."""

QUANTIZER: dict[int, tuple[int, ...]] = {4: (0, 0, 1, 1), 8: (0, 1, 0, 1, 0, 1, 0, 1)}
"""QUANTIZER[states][state]: 0 or 1."""

_levels = native.function("tersor_trellis_levels", [
    native.array(np.int32), native.INT64, native.INT64, native.INT64, native.array(np.float32, writable=True)])


def levels(q: npt.NDArray[np.int32], states: int) -> npt.NDArray[np.float32]:
    """Levels in sub-steps, float32 [rows, columns], of integers int32 [rows, columns]; every row begins in state 0."""
    rows, columns = q.shape
    out = np.empty((rows, columns), dtype=np.float32)
    native.check(_levels(np.ascontiguousarray(q), rows, columns, states, out), "levels of a trellis")
    return out


def active_states(q: npt.NDArray[np.int32], states: int) -> npt.NDArray[np.uint8]:
    """uint8 [rows, columns]: the state in which each integer of int32 [rows, columns] is decoded."""
    following = np.array(NEXT[states], dtype=np.uint8)
    out = np.zeros(q.shape, dtype=np.uint8)
    state = np.zeros(q.shape[0], dtype=np.uint8)
    for column in range(q.shape[1]):
        out[:, column] = state
        state = following[state, q[:, column] & 1]
    return out
