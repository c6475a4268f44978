"""The logarithmic grid on which positive scales travel as integers.

A step or a BatchNorm scale x > 0 is stored as k with x = 2^(k/32): a relative precision of 1.1%,
which costs nothing where the encoder is free to choose the scale (it quantises with the *rounded*
one), and an exact value on every machine, because only IEEE square roots and products are used.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

RESOLUTION = 32
"""Grid points per octave."""

MAX_INDEX = 32 * 900
"""Largest |k|: beyond it, 2^(k/32) nears the ends of the float64 range."""

FINEST = 12
"""2^FINEST points per octave are the most that `fine` has."""

# _TABLES[j][i] = 2^(i / 2^j): the product of 2^(1/2) for the highest of the j bits of i, and so on to
# 2^(1/2^j) for the lowest, each of these the correctly rounded square root of the one before.
_TABLES = [np.ones(1)]
_root = 2.0
for _ in range(FINEST):
    _root = math.sqrt(_root)
    _TABLES.append(np.stack([_TABLES[-1], _TABLES[-1] * _root], axis=1).ravel())


def value(index: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """2^(index/32) as float64, bit-exact on every IEEE machine.

    >>> float(value(64)), float(value(-32))
    (4.0, 0.5)
    """
    return fine(index, 5)


def fine(index: npt.ArrayLike, resolution: int) -> npt.NDArray[np.float64]:
    """2^(index / 2^resolution) as float64, bit-exact on every IEEE machine; resolution 0 to FINEST.

    >>> float(fine(-3, 0)), float(fine(2, 2)) == float(value(16))
    (0.125, True)
    """
    k = np.asarray(index, dtype=np.int64)
    table = _TABLES[resolution]
    return np.asarray(np.ldexp(table[k & (len(table) - 1)], (k >> resolution).astype(np.int32)))


def nearest(x: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The grid index whose value is nearest to x > 0 in the logarithm; x is clipped to the grid's range.

    >>> nearest([1.0, 2.0, 3.0]).tolist()
    [0, 32, 51]
    """
    positive = np.maximum(np.asarray(x, dtype=np.float64), np.finfo(np.float64).tiny)
    index = np.rint(np.log2(positive) * RESOLUTION)
    return np.asarray(np.clip(index, -MAX_INDEX, MAX_INDEX).astype(np.int64))
