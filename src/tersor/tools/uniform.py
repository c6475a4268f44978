"""Uniform quantization with (Hessian-weighted) cluster means: the paper's headline method.

Choi, El-Khamy, Lee, ICLR 2017: one step over all layers together, each bin's value the mean of its members,
then an entropy code. At high rate a uniform quantizer is asymptotically optimal under an entropy constraint
(Gish and Pierce, 1968), and with the diagonal as weights in the means the Hessian still counts.
"""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from .clusters import Clusters, Floats, checked, entropy, weighted_means

MAX_BINS = 1 << 20
"""More bins than this between the extremes: the step is far finer than any codebook is good for."""


def uniform(w: Floats, h: Floats | None, step: float, *, offset: float = 0.0,
            zero: bool = False) -> Clusters:
    """Clusters of equal width: bin q holds the weights in [offset + (q - 1/2) step, offset + (q + 1/2) step).

    * `w`: weights, any shape; `h`: sensitivities >= 0 of the same shape, or None for plain means.
    * `step` > 0 and `offset` in the unit of the weights.
    * `zero`: the bin that 0 lies in has the value 0, not its mean.

    Values are the weighted means of the bins; empty bins are left out. `history` holds the one objective.
    Raises `ConfigError` for an unusable step or numbers, or more than 2^20 bins.
    """
    flat, weight = checked(w, h)
    if not (np.isfinite(step) and step > 0.0 and np.isfinite(offset)):
        raise ConfigError(f"step {step} and offset {offset}: the step must be above 0, both finite")
    low = _bin(float(flat.min()), step, offset)
    bins = _bin(float(flat.max()), step, offset) - low + 1
    if not bins <= MAX_BINS:
        raise ConfigError(f"step {step} makes {bins:.0f} bins; choose one above "
                          f"{(float(flat.max()) - float(flat.min())) / MAX_BINS:.3g}")
    number = np.floor((flat.astype(np.float64) - offset) / step + 0.5)
    number -= low
    raw = number.astype(np.int32)
    used = np.bincount(raw, minlength=int(bins)) > 0
    position = np.cumsum(used, dtype=np.int32) - np.int32(1)
    index = position[raw]
    values = weighted_means(flat, weight, index, int(used.sum()))
    at = -1
    if zero and 0 <= (origin := int(_bin(0.0, step, offset) - low)) < used.size and used[origin]:
        at = int(position[origin])
        values[at] = 0.0
    clusters = Clusters(values, index, (), at)
    return Clusters(values, index, (clusters.distortion(flat, weight),), at)


def step_for_entropy(w: Floats, bits: float, *, offset: float = 0.0, tolerance: float = 1e-3) -> float:
    """The step at which the bins' entropy is `bits` per weight, within `tolerance` bits where possible; else
    the finest that was found below it.

    Raises `ConfigError` for bits <= 0 or unusable weights.
    """
    flat, _ = checked(w, None)
    if not bits > 0.0:
        raise ConfigError(f"{bits} bits/weight: must be above 0")
    spread = float(flat.max()) - float(flat.min())
    if spread == 0.0:
        return max(abs(float(flat[0])), 1.0)
    fine, coarse = np.log(spread / (MAX_BINS / 2)), np.log(4.0 * max(spread, abs(float(flat.max()))))
    for _ in range(48):
        middle = (fine + coarse) / 2
        found = _entropy_at(flat, float(np.exp(middle)), offset)
        if found > bits:
            fine = middle
        else:
            coarse = middle
        if 0.0 <= bits - found <= tolerance:
            break
    return float(np.exp(coarse))


def _entropy_at(w: Floats, step: float, offset: float) -> float:
    number = np.floor((w.astype(np.float64) - offset) / step + 0.5)
    number -= number.min()
    return entropy(np.bincount(number.astype(np.int64)))


def _bin(x: float, step: float, offset: float) -> float:
    return float(np.floor((x - offset) / step + 0.5))
