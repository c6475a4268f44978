"""The quadratic metric of a layer in triangular form: what each weight's error costs once later weights
have done their best to make up for it.

With A^-1 = U^T U (U upper triangular), min over the columns after j of e A e^T, given the error of column j
and none before it, is e_j^2 / U_jj^2: the conditional variance of input j given the inputs that come later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Matrix = npt.NDArray[np.float64]

DAMPING = 0.05
"""Share of the mean diagonal that is added to it (anything from 0.1% to 20% does much the same)."""


@dataclass(frozen=True)
class Triangular:
    """upper: float64 [n, n], A^-1 = upper^T upper; of a metric of runs that do not see each other, its diagonal blocks
    [n / t, t, t]; None for a diagonal metric. cost: float64 [n], 1 / U_jj^2."""

    upper: Matrix | None
    cost: Matrix

    @property
    def run(self) -> int:
        """Columns that see each other come in runs of so many."""
        return 1 if self.upper is None else self.upper.shape[-1]

    def cuts(self, block: int) -> int:
        """About `block` columns, of whole runs: what is quantised at a time."""
        return max(1, block // self.run) * self.run if self.upper is not None and self.upper.ndim == 3 else block

    def within(self, first: int, last: int) -> Matrix | None:
        """U[first:last, first:last], C-contiguous; None where there is no feedback."""
        if self.upper is None or self.upper.ndim == 2:
            return None if self.upper is None else np.ascontiguousarray(self.upper[first:last, first:last])
        t = self.run
        runs = self.upper[first // t : -(-last // t)]
        dense = np.zeros((len(runs), t, len(runs), t))
        dense[np.arange(len(runs)), :, np.arange(len(runs))] = runs
        start = first - first // t * t
        whole = dense.reshape(len(runs) * t, len(runs) * t)
        return np.ascontiguousarray(whole[start : start + last - first, start : start + last - first])

    def beyond(self, first: int, last: int) -> Matrix | None:
        """U[first:last, last:], what errors of a block (cut by `cuts`) do to later ones; None where nothing."""
        dense = self.upper is not None and self.upper.ndim == 2
        return self.upper[first:last, last:] if dense and last < len(self.cost) else None  # type: ignore[index]

    def without_feedback(self) -> Triangular:
        """The same costs, each weight for itself."""
        return Triangular(None, self.cost)


def triangular(metric: npt.NDArray[np.floating], damping: float = DAMPING) -> Triangular:
    """The factor of a positive semi-definite metric [n, n], of a diagonal one [n], or of one of diagonal blocks
    [n / t, t, t].

    Damping grows tenfold until the Cholesky factorisation succeeds; a metric that is zero or not even
    then definite becomes the identity times its mean diagonal, so that no calibration set can crash the encoder.
    """
    if metric.ndim == 1:
        diagonal = np.maximum(np.asarray(metric, dtype=np.float64), 0.0)
        if not 0 < _mean(diagonal) < np.inf:
            return Triangular(None, np.ones(len(diagonal)))
        # Damped or not, no cost is zero: it is divided by.
        return Triangular(None, diagonal + max(damping, 1e-12) * _mean(diagonal))
    matrix = torch.from_numpy(np.array(metric, dtype=np.float64))
    matrix = (matrix + matrix.mT) / 2
    mean = _mean(_diagonals(metric))
    identity = torch.eye(matrix.shape[-1], dtype=torch.float64)
    while damping < 1e3 and mean > 0:
        damped = matrix + identity * (damping * mean)
        # The reversed matrix' lower factor is the upper factor R of A = R R^T; then U = R^-1.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(-2, -1))
        if not bool(failed.any()) and bool(torch.isfinite(lower).all()):
            upper = torch.linalg.solve_triangular(lower.flip(-2, -1), identity, upper=True).numpy()
            return Triangular(np.ascontiguousarray(upper), np.asarray(1.0 / _diagonals(upper).ravel() ** 2, np.float64))
        damping = max(10 * damping, 1e-10)
    scale = mean if mean > 0 and np.isfinite(mean) else 1.0
    return Triangular(None, np.full(_diagonals(metric).size, scale))


def _diagonals(metric: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """[n], or [blocks, t]."""
    return np.asarray(np.diagonal(metric, axis1=-2, axis2=-1))


def _mean(diagonal: npt.NDArray[np.floating]) -> float:
    return float(np.mean(diagonal)) if diagonal.size else 0.0


def oas(covariance: Matrix, samples: float) -> float:
    """How far a covariance [n, n] of so many samples is to be shrunk towards its mean diagonal times I, 0..1.

    Oracle approximating shrinkage: Chen, Wiesel, Eldar, Hero, "Shrinkage algorithms for MMSE covariance estimation"
    (IEEE Trans. Signal Processing, 2010), eq. 23.
    """
    size = len(covariance)
    square, trace = float((covariance**2).sum()), float(np.trace(covariance))
    over = (samples + 1 - 2 / size) * (square - trace**2 / size)
    return min(1.0, ((1 - 2 / size) * square + trace**2) / over) if over > 0 else 1.0
