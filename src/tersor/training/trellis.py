"""The path through a trellis that comes nearest to real-valued targets, at a price per bit; without feedback."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..synthesis import trellis as synthesis
from ..tools import trellis
from ..tools.metric import Matrix, Triangular
from ..tools.scalar import CLASSES

Integers = npt.NDArray[np.int32]


def search(target: Matrix, states: int, price: float = 0.0) -> Integers:
    """Integers int32 [rows, columns] whose levels are nearest to `target`, float64 of that shape in sub-steps.

    price: in squared sub-steps per bit, of code lengths as the targets suggest (the encoder's would be 0.19). Without
    one, a path is found again from targets that lean away from it by less than half a sub-step. Every row begins in
    state 0.
    """
    rows, columns = target.shape
    if not target.size:
        return np.zeros(target.shape, dtype=np.int32)
    spread = np.abs(target).mean(axis=1)
    cuts = np.quantile(spread, np.arange(1, CLASSES) / CLASSES) if rows >= 4 * CLASSES else np.zeros(0)
    row_class = np.searchsorted(cuts, spread).astype(np.int32)
    counts = trellis.count_nearest(target, row_class, CLASSES)
    rounding = trellis.Rounding(np.ones(rows), np.full(rows, price), trellis.code_lengths(counts), row_class, states)
    found, _ = trellis.quantize(target, Triangular(None, np.ones(columns)), Triangular(None, np.ones(rows)), rounding)
    return found


def levels(q: Integers, states: int) -> npt.NDArray[np.float32]:
    """float32 [rows, columns]: what integers stand for, in sub-steps."""
    return synthesis.restore(q, states, np.ones(len(q), np.float32))
