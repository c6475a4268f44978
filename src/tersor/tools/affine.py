"""The small numbers of a network, each as precise as its sensitivity asks: BatchNorm's two per channel, biases.

A number of sensitivity h (D = h * error^2) on a uniform grid of step s costs h s^2 / 12 and log2(1/s) bits:
the slope equals lambda at s = sqrt(6 lambda / (ln 2 h)), the same rule as for weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..synthesis import grid
from ..synthesis.batchnorm import MAX_OCTAVE, MAX_RESOLUTION, BatchNormCode
from ..synthesis.vector import VectorCode
from .metric import Matrix

UNMEASURED_STEP = 1.0 / 64.0
"""Step over root mean square where no sensitivity is known, or less: about 8 bits a number."""
UNMEASURED_RESOLUTION = 5
"""And the resolution of scales, or more."""
FINEST = 2.0**-20
"""Finest step over the largest magnitude."""


def ideal_step(sensitivity: npt.NDArray[np.floating], price: float) -> float:
    """One step for numbers of the given sensitivities (any shape) at lambda = price; 0 if none matters."""
    mean = float(np.mean(sensitivity)) if sensitivity.size else 0.0
    return float(np.sqrt(6.0 * price / (np.log(2.0) * mean))) if mean > 0 else 0.0


def quantize_vector(values: npt.NDArray[np.floating], sensitivity: npt.NDArray[np.floating] | None,
                    price: float) -> VectorCode:
    """A small tensor (any shape) on a uniform grid.

    Without a sensitivity: the relative error counts, as for weights without one, but the step is at most
    UNMEASURED_STEP of the r.m.s."""
    x = np.asarray(values, dtype=np.float64)
    largest = float(np.abs(x).max(initial=0.0))
    if largest == 0.0:
        return VectorCode(np.zeros(x.shape, dtype=np.int64), 0)
    if sensitivity is None:
        energy = float(np.sum(x**2))
        step = min(UNMEASURED_STEP * float(np.sqrt(energy / x.size)),
                   ideal_step(np.full(x.shape, 1.0 / energy), price)) if energy > 0 else largest
    else:
        step = ideal_step(sensitivity, price) or 4.0 * largest
    step_index = _step_index(step, largest)
    return VectorCode(np.rint(x / float(grid.value(step_index))).astype(np.int64), step_index)


def quantize_scale(scale: Matrix, relative_sensitivity: Matrix | None,
                   price: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], int]:
    """BatchNorm scales a [C] on the logarithmic grid: (index, sign, resolution).

    relative_sensitivity: float64 [C], cost of the square of a *relative* error, h a^2. The resolution j, 2^j points
    per octave, minimises sum h (ln 2 / 2^j)^2 / 12 + lambda C j.
    """
    sign = np.sign(scale).astype(np.int8)
    largest = float(np.abs(scale).max(initial=0.0))
    # A scale that is negligible beside its fellows is a dead channel: zero, and not an outlier of the grid.
    sign[np.abs(scale) < largest * 2.0**-24] = 0
    coarsest = 0
    if relative_sensitivity is None:
        relative_sensitivity, coarsest = np.full(scale.shape, 1.0 / max(scale.size, 1)), UNMEASURED_RESOLUTION
    octave = np.log(2.0) / np.exp2(np.arange(MAX_RESOLUTION + 1))
    cost = relative_sensitivity.sum() * octave**2 / 12 + price * scale.size * np.arange(MAX_RESOLUTION + 1)
    resolution = max(coarsest, int(np.argmin(cost)))
    magnitude = np.where(sign != 0, np.abs(scale), 1.0)
    limit = MAX_OCTAVE << resolution
    index = np.clip(np.rint(np.log2(magnitude) * (1 << resolution)), -limit, limit).astype(np.int64)
    index[sign == 0] = 0
    return index, sign, resolution


def batchnorm_code(scale: tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], int], shift: Matrix,
                   shift_sensitivity: Matrix | None, price: float, eps: float) -> BatchNormCode:
    """The code of a BatchNorm from its quantised scales and its shifts b [C]."""
    vector = quantize_vector(shift, shift_sensitivity, price)
    return BatchNormCode(*scale, vector.index, vector.step_index, eps)


def _step_index(step: float, largest: float) -> int:
    """Grid index of a step, at least FINEST and at most four times the largest magnitude."""
    return int(grid.nearest(min(max(step, largest * FINEST), 4.0 * largest)))
