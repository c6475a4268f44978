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
    """upper: float64 [n, n], A^-1 = upper^T upper, or None for a diagonal metric; cost: float64 [n], 1 / U_jj^2."""

    upper: Matrix | None
    cost: Matrix

    def without_feedback(self) -> Triangular:
        """The same costs, each weight for itself."""
        return Triangular(None, self.cost)


def triangular(metric: npt.NDArray[np.floating], damping: float = DAMPING) -> Triangular:
    """The factor of a positive semi-definite metric [n, n], or of a diagonal one [n].

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
    matrix = (matrix + matrix.T) / 2
    mean = _mean(np.diag(metric))
    while damping < 1e3 and mean > 0:
        damped = matrix + torch.eye(len(matrix), dtype=torch.float64) * (damping * mean)
        # The reversed matrix' lower factor is the upper factor R of A = R R^T; then U = R^-1.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed) and bool(torch.isfinite(lower).all()):
            identity = torch.eye(len(matrix), dtype=torch.float64)
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True).numpy()
            return Triangular(np.ascontiguousarray(upper), 1.0 / np.diag(upper) ** 2)
        damping = max(10 * damping, 1e-10)
    scale = mean if mean > 0 and np.isfinite(mean) else 1.0
    return Triangular(None, np.full(len(matrix), scale))


def _mean(diagonal: npt.NDArray[np.floating]) -> float:
    return float(np.mean(diagonal)) if diagonal.size else 0.0
