"""Limits of Gaussian sources with squared error: reverse water-filling, and entropy-coded scalar quantization.

For independent Gaussian components of variances lam_k (for a layer: eigenvalues of C_w C_g, in units of the
output's squared error), at water level theta,

    R = mean max(0, 1/2 log2(lam_k / theta)),  D = mean min(theta, lam_k)

(Cover and Thomas, "Elements of information theory", section 10.3.3). No code does better. A uniform quantizer
with a dead zone, centroids and an ideal entropy code stays above it, by pi e / 6 = 1.53 dB = 0.255 bit at high
rate and by less at low rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .transforms import Matrix

Variances = npt.NDArray[np.floating]


def waterfill_rate(variances: Variances, distortion: float) -> float:
    """R(D) in bits per component: the least rate at which the mean squared error is `distortion`. Exact.

    variances: [n], at least 0. 0 if `distortion` is their mean or more; infinite for 0 (unless all are 0).
    """
    lam = np.sort(_positive(variances))
    if not lam.size or distortion >= lam.mean():
        return 0.0
    if distortion <= 0:
        return math.inf
    theta = _level(lam, distortion)
    return float(np.log2(np.maximum(lam, theta) / theta).mean() / 2)


def waterfill_distortion(variances: Variances, rate: float) -> float:
    """D(R): the least mean squared error at `rate` bits per component. Exact."""
    lam = _positive(variances)
    positive = np.sort(lam[lam > 0])[::-1]
    if not positive.size:
        return 0.0
    # With the j largest active: n R = sum of 1/2 log2 lam - j/2 log2 theta. Right where lam_(j+1) <= theta < lam_j.
    count = np.arange(1, len(positive) + 1)
    logs = (np.cumsum(np.log2(positive)) - 2 * rate * len(lam)) / count
    active = int(np.flatnonzero(logs <= np.log2(positive))[-1]) if (logs <= np.log2(positive)).any() else 0
    theta = 2.0 ** float(logs[active])
    return float(np.minimum(lam, theta).mean())


@dataclass(frozen=True)
class ScalarCurve:
    """Best operational points of a uniform entropy-coded quantizer for a source of variance 1: D against R.

    `slope` float64 [k] falling: -dD/dR in 1/bit; `rate` rising, bits; `distortion` falling: the lower convex
    hull of all points, as a Lagrangian picks from them. Beyond the last point D = constant 2^(-2R).
    """

    source: str
    slope: Matrix
    rate: Matrix
    distortion: Matrix

    def at_rate(self, rate: float) -> float:
        """D at R bits, at most 1."""
        if rate >= self.rate[-1]:
            return float(self.distortion[-1] * 4.0 ** (self.rate[-1] - rate))
        return float(np.exp(np.interp(rate, self.rate, np.log(self.distortion))))

    def at_slope(self, slope: Variances) -> tuple[Matrix, Matrix]:
        """(R, D) float64 where -dD/dR = slope: 0 and 1 from the first slope up, the high-rate law below the last."""
        log = np.log(np.maximum(np.asarray(slope, np.float64), 1e-300))
        grid = np.log(self.slope)[::-1]
        rate = np.interp(log, grid, self.rate[::-1])
        distortion = np.exp(np.interp(log, grid, np.log(self.distortion)[::-1]))
        off, fine = log > grid[-1], log < grid[0]
        shift = np.where(fine, (grid[0] - log) / math.log(4), 0.0)
        rate = np.where(off, 0.0, rate + shift)
        return rate, np.where(off, 1.0, distortion * 4.0**-shift)


@lru_cache(maxsize=4)
def scalar_curve(source: str = "gaussian") -> ScalarCurve:
    """The curve of "gaussian" or "laplacian", computed over steps and dead zones (under a second, once).

    Bins: |x| < t to 0, then steps of s; reconstruction at the centroids, the rate is the entropy. At high rate
    R = h - log2 s and D = s^2 / 12, h the differential entropy: for a Gaussian 0.255 bit above 1/2 log2(1/D).
    (Other phases of the thresholds, and thresholds that are free, were tried: for a Gaussian they gain nothing.)
    Raises ConfigError for another source.
    """
    if source not in _TAILS:
        raise ConfigError(f"there is no source {source!r}; it is one of {', '.join(_TAILS)}")
    points = [(0.0, 1.0)]
    last = 24.0 if source == "laplacian" else 9.0  # less than 1e-14 of the probability is beyond
    for step in np.geomspace(0.06, 12.0, 140):
        k = step * np.arange(max(2, math.ceil(last / step) + 1))
        points += [_point(source, k + share * step) for share in np.linspace(0.5, 1.0, 21)]
    points = [(rate, error) for rate, error in points if (rate > 1e-6 and error < 1) or rate == 0]
    hull = _lower_hull(np.array(sorted(points)))
    slope = -np.diff(hull[:, 1]) / np.diff(hull[:, 0])
    # A vertex is best for all slopes between those of its two edges; take their geometric mean.
    middle = np.sqrt(slope[:-1] * slope[1:])
    middle[-1] = 2 * math.log(2) * hull[-2, 1]  # the high-rate law goes on from here
    return ScalarCurve(source, np.concatenate([slope[:1], middle]), hull[:-1, 0], hull[:-1, 1])


def scalar_rate(variances: Variances, distortion: float, source: str = "gaussian") -> float:
    """Bits per component of entropy-coded scalar quantizers of these variances, at equal slope, where the mean
    squared error is `distortion`: `waterfill_rate` plus what scalar quantization costs."""
    lam = _positive(variances)
    if not lam.size or distortion >= lam.mean():
        return 0.0
    if distortion <= 0:
        return math.inf
    curve = scalar_curve(source)
    total = float(distortion * len(lam))
    values, count = _binned(lam[lam > 0])

    def spent(log_level: float) -> tuple[float, float]:
        rate, error = curve.at_slope(math.exp(log_level) / values)
        return float((count * rate).sum()), float((count * values * error).sum())

    low, high = math.log(total) - 60.0, math.log(float(values.max()) * float(curve.slope[0])) + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if spent(middle)[1] > total:
            high = middle
        else:
            low = middle
    return spent(low)[0] / len(lam)


def _binned(values: Matrix) -> tuple[Matrix, Matrix]:
    """(values, counts): as they are, or, of very many, means of those that are within 0.3% of each other."""
    if len(values) <= 4096:
        return values, np.ones(len(values))
    key = np.floor(np.log2(values) * 256).astype(np.int64)
    _, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    return np.bincount(inverse, weights=values) / count, count.astype(np.float64)


def _level(lam: Matrix, distortion: float) -> float:
    """theta with mean min(theta, lam) = distortion, lam rising: piecewise linear, solved in its piece."""
    n = len(lam)
    below = np.concatenate([[0.0], np.cumsum(lam)[:-1]])
    reached = (below + lam * (n - np.arange(n))) / n  # D when theta = lam_k
    k = int(np.searchsorted(reached, distortion))
    return float((n * distortion - below[k]) / (n - k))


def _positive(variances: Variances) -> Matrix:
    return np.maximum(np.asarray(variances, np.float64).reshape(-1), 0.0)


def _point(source: str, edges: Matrix) -> tuple[float, float]:
    """(entropy in bits, squared error) with centroids and thresholds +-edges; the source is even: half is enough."""
    beyond, moment = _TAILS[source](edges)
    p = np.append(beyond[:-1] - beyond[1:], beyond[-1])
    first = np.append(moment[:-1] - moment[1:], moment[-1])
    used = p > 1e-18
    p, first = p[used], first[used]
    zero = 1.0 - 2 * float(p.sum())
    entropy = -2 * float((p * np.log2(p)).sum()) - (zero * math.log2(zero) if zero > 0 else 0.0)
    return entropy, 1.0 - 2 * float((first**2 / p).sum())


def _gaussian(x: Matrix) -> tuple[Matrix, Matrix]:
    """P(X > x) and E[X; X > x] for x >= 0."""
    beyond = np.array([math.erfc(v / math.sqrt(2)) / 2 for v in x])
    return beyond, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _laplacian(x: Matrix) -> tuple[Matrix, Matrix]:
    beyond = np.exp(-math.sqrt(2) * x) / 2
    return beyond, beyond * (x + 1 / math.sqrt(2))


_TAILS: dict[str, Callable[[Matrix], tuple[Matrix, Matrix]]] = {"gaussian": _gaussian, "laplacian": _laplacian}


def _lower_hull(points: Matrix) -> Matrix:
    """Lower convex hull, falling part, of points sorted by the first coordinate (Andrew's monotone chain)."""
    hull: list[Matrix] = []
    for point in points:
        while len(hull) > 1:
            (ax, ay), (bx, by) = hull[-2], hull[-1]
            if (bx - ax) * (point[1] - ay) > (by - ay) * (point[0] - ax):
                break
            hull.pop()
        hull.append(point)
    return np.array(hull)
