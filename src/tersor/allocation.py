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
NARROWEST = 1e-3
"""In log2 lambda: no finer than this."""
FLAT = 160.0
"""A value that stays the same so far from the first guess, in log2 lambda, will not change."""
WIDEST = 400.0
"""Lambda is searched within 2^+-WIDEST of the first guess."""


@dataclass(frozen=True)
class Trial(Generic[T]):
    """One encoding: lambda as log2, the quantity that has a target, and what was encoded."""

    log_price: float
    value: float
    result: T


def search(encode: Callable[[float], tuple[float, T]], target: float, start: float, slope: float, *,
           what: str, sign: float = 1.0, progress: Callable[[str], None] | None = None) -> Trial[T]:
    """The trial whose value is at most `target` and within 1% of it: bracketed secant steps in log2 lambda.

    encode(log2 lambda) -> (value, result). Values fall as lambda rises (bytes). A caller who wants at *least*
    a target of what also falls (signal-to-noise) passes both with the opposite sign (`sign` -1, for messages)
    and -log2 lambda. slope: first guess of d value / d log2 lambda. Where the grids of steps allow nothing
    within 1% (tiny models), the nearest value below the target. Raises TargetError that says what is
    reachable.
    """
    low: Trial[T] | None = None   # value <= target: lambda is large enough
    high: Trial[T] | None = None  # value > target
    x, reach, least = start, 1.0, 2.5e-3
    slack = TOLERANCE * abs(target)
    aim = target - 0.4 * slack
    before: Trial[T] | None = None
    width = np.inf
    for _ in range(MAX_TRIALS):
        value, result = encode(x)
        trial = Trial(x, value, result)
        if progress is not None:
            progress(f"{what} {sign * value:,.4g} for a target of {sign * target:,.4g}")
        if value <= target:
            low = trial if low is None or value >= low.value else low
            if target - value <= slack:
                return trial
        else:
            high = trial if high is None or value < high.value else high
        if low is not None and high is not None:
            last, width = width, low.log_price - high.log_price
            if width < NARROWEST:
                return low
            # A secant that hardly moved met a jump: halve instead.
            x = (low.log_price + high.log_price) / 2 if width > 0.5 * last else _between(high, low, aim)
        else:
            if before is not None and before.value == value and abs(x - start) > FLAT:
                break  # nothing changes any more
            reach *= 2.0
            if before is not None:
                # The slope from the last two, trusted within a factor of four.
                measured = (value - before.value) / (x - before.log_price)
                slope = float(np.clip(measured, 4 * slope, slope / 4)) if np.isfinite(measured) else slope
                least *= 4.0
            x += np.copysign(np.clip(abs((aim - value) / slope), least, reach), value - target)
            if abs(x - start) > WIDEST:
                break
        before = trial
    if low is not None and high is not None:
        return low
    raise _unreachable(low, high, target, what, sign)


def search_accepted(attempt: Callable[[float], tuple[bool, float, T]], start: float, *, stride: float = 2.0,
                    finest: float = 0.25, most: int = 12) -> T | None:
    """The smallest result that is accepted, by bisection in log2 lambda; None if none was within `most` strides.

    attempt(log2 lambda) -> (accepted, size, result). Larger lambdas are rejected and smaller ones accepted, up to noise
    near the border. From `start` in strides to the other side of the border, then halved down to `finest` (a quarter
    is about 0.12 bits/weight).
    """
    tried: list[tuple[bool, float, T]] = []

    def accepts(x: float) -> bool:
        tried.append(attempt(x))
        return tried[-1][0]

    x = start
    first = accepts(x)
    for _ in range(most):
        x += stride if first else -stride
        if accepts(x) != first:
            low, high = (x - stride, x) if first else (x, x + stride)
            while high - low > finest:
                middle = (low + high) / 2
                low, high = (middle, high) if accepts(middle) else (low, middle)
            break
    fitting = [trial for trial in tried if trial[0]]
    return min(fitting, key=lambda trial: trial[1])[2] if fitting else None


def _between(high: Trial[T], low: Trial[T], aim: float) -> float:
    """Secant between the two, kept away from the ends so that the bracket shrinks."""
    spread = high.value - low.value
    share = (high.value - aim) / spread if 0 < spread < np.inf else 0.5
    return high.log_price + float(np.clip(share, 0.05, 0.95)) * (low.log_price - high.log_price)


def _unreachable(low: Trial[T] | None, high: Trial[T] | None, target: float, what: str,
                 sign: float) -> TargetError:
    nearest = low if low is not None else high
    assert nearest is not None
    bound = "at most" if (low is not None) == (sign > 0) else "at least"
    return TargetError(f"a {what} of {sign * target:,.6g} is out of reach for this model: it can be {bound} "
                       f"{sign * nearest.value:,.6g} with these options")
