"""The search for lambda: which price of a bit gives the file that the user asked for.

Everything that is quantised follows one lambda, so that at the end every layer, channel and number has the
same slope -dD/dR = lambda; bytes fall and distortion grows monotonically with it, but for small noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .errors import TargetError

T = TypeVar("T")

TOLERANCE = 0.01
"""A target is met within this share, never overshot."""
MAX_TRIALS = 24
WIDEST = 400.0
"""Lambda is searched within 2^+-WIDEST of the first guess."""


@dataclass(frozen=True)
class Trial(Generic[T]):
    """One encoding: lambda as log2, the quantity that has a target, and what was encoded."""

    log_price: float
    value: float
    result: T


def search(encode: Callable[[float], tuple[float, T]], target: float, start: float, slope: float, *,
           what: str, progress: Callable[[str], None] | None = None) -> Trial[T]:
    """The trial whose value is at most `target` and within 1% of it: bracketed secant steps in log2 lambda.

    encode(log2 lambda) -> (value, result). Values fall as lambda rises (bytes). A caller who wants at *least*
    a target of what also falls (signal-to-noise) passes both with the opposite sign, and -log2 lambda.
    slope: first guess of d value / d log2 lambda. Raises TargetError that says what is reachable.
    """
    low: Trial[T] | None = None   # value <= target: lambda is large enough
    high: Trial[T] | None = None  # value > target
    x, reach = start, 1.0
    slack = TOLERANCE * abs(target)
    for _ in range(MAX_TRIALS):
        value, result = encode(x)
        trial = Trial(x, value, result)
        if progress is not None:
            progress(f"{what} {abs(value):,.4g} for a target of {abs(target):,.4g}")
        if value <= target:
            low = trial if low is None or value >= low.value else low
            if target - value <= slack:
                return trial
        else:
            high = trial if high is None or value < high.value else high
        if low is not None and high is not None:
            if low.log_price - high.log_price < 1e-4:
                break
            x = _between(high, low, target - 0.4 * slack)
        else:
            step = (target - 0.4 * slack - value) / slope if slope else 0.0
            reach = min(reach * 2.0, 64.0)
            step = step if abs(step) > 1e-3 else (1e-2 if value > target else -1e-2)
            x += float(np.clip(step, -reach, reach))
            if abs(x - start) > WIDEST:
                break
        if low is not None and high is None and low.value == value and reach >= 64.0:
            break
    if low is not None and high is not None:
        return low  # the finest the grid of steps allows
    return _unreachable(low, high, target, what)


def _between(high: Trial[T], low: Trial[T], aim: float) -> float:
    """Secant between the two, kept away from the ends so that the bracket shrinks."""
    share = (high.value - aim) / (high.value - low.value) if high.value > low.value else 0.5
    return high.log_price + float(np.clip(share, 0.05, 0.95)) * (low.log_price - high.log_price)


def _unreachable(low: Trial[T] | None, high: Trial[T] | None, target: float, what: str) -> Trial[T]:
    nearest = low if low is not None else high
    assert nearest is not None
    bound = "at most" if low is not None else "at least"
    raise TargetError(f"a {what} of {abs(target):,.6g} is out of reach for this model: it can be {bound} "
                      f"{abs(nearest.value):,.6g} with these options")
