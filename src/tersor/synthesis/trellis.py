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

_restore = native.function("tersor_trellis_restore", [
    native.array(np.int32), native.INT64, native.INT64, native.INT64, native.array(np.float32),
    native.array(np.float32, writable=True)])


def restore(q: npt.NDArray[np.int32], states: int, steps: npt.NDArray[np.float32],
            out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Weights float32 [rows, columns] of integers int32 [rows, columns]: level times the row's step.

    states: 4 or 8; every row begins in state 0. steps: float32 [rows], sub-steps. The level is rounded to
    binary32, then the product is.
    """
    rows, columns = q.shape
    if steps.shape != (rows,) or (out is not None and out.shape != q.shape):
        raise ValueError(f"integers of shape {q.shape} with steps {steps.shape}")
    out = np.empty((rows, columns), dtype=np.float32) if out is None else out
    native.check(_restore(np.ascontiguousarray(q), rows, columns, states, steps, out), "restoring from a trellis")
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
