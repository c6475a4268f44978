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

# 2^(1/2), 2^(1/4), ... 2^(1/32): each the correctly rounded square root of the one before.
_ROOTS: list[float] = []
_root = 2.0
for _ in range(5):
    _root = math.sqrt(_root)
    _ROOTS.append(_root)

_TABLE = np.ones(RESOLUTION, dtype=np.float64)
for _bit, _factor in zip((16, 8, 4, 2, 1), _ROOTS, strict=True):
    for _i in range(RESOLUTION):
        if _i & _bit:
            _TABLE[_i] *= _factor


def value(index: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """2^(index/32) as float64, bit-exact on every IEEE machine.

    >>> float(value(64)), float(value(-32))
    (4.0, 0.5)
    """
    k = np.asarray(index, dtype=np.int64)
    return np.asarray(np.ldexp(_TABLE[k % RESOLUTION], (k // RESOLUTION).astype(np.int32)))


def nearest(x: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The grid index whose value is nearest to x > 0 in the logarithm; x is clipped to the grid's range.

    >>> nearest([1.0, 2.0, 3.0]).tolist()
    [0, 32, 51]
    """
    positive = np.maximum(np.asarray(x, dtype=np.float64), np.finfo(np.float64).tiny)
    index = np.rint(np.log2(positive) * RESOLUTION)
    return np.asarray(np.clip(index, -MAX_INDEX, MAX_INDEX).astype(np.int64))
