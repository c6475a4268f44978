"""The linear map S over a layer's columns, W = C S: over channels, over taps, or both, without their Kronecker product.

For n = channels x taps inputs a dense S takes n^3 operations to transform a metric; by its parts n^2 (channels + taps).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .metric import Matrix

CONDITION = 1e7
"""A square basis of a condition beyond this is not inverted but solved for."""


@dataclass(frozen=True)
class ColumnMap:
    """S = channels x inner (Kronecker): `channels` float64 [k, inputs] or None, `inner` float64 [k', taps] or None.

    taps: columns that belong to one input channel; with `channels` over channel and tap jointly, 1.
    """

    channels: Matrix | None
    inner: Matrix | None
    taps: int

    def apply(self, coefficients: Matrix) -> Matrix:
        """C S: [rows, k * taps] -> [rows, n]."""
        return _apply(coefficients, self.channels, self.inner, self.taps)

    def congruent(self, metric: Matrix) -> Matrix:
        """S M S^T: [n, n] -> [k * taps, k * taps], symmetric."""
        turned = _transposed(self)
        half = _apply(metric, *turned)
        return np.ascontiguousarray(_apply(np.ascontiguousarray(half.T), *turned))

    def solve(self, metric: Matrix, weights: Matrix) -> Matrix:
        """argmin over C of |W - C S| in the metric, [rows, n] -> [rows, k * taps]; exact where S is invertible."""
        parts = [part for part in (self.channels, self.inner) if part is not None]
        if all(len(part) == part.shape[1] and np.linalg.cond(part) < CONDITION for part in parts):
            channels, inner = (None if part is None else np.asarray(np.linalg.inv(part), dtype=np.float64)
                               for part in (self.channels, self.inner))
            return _apply(weights, channels, inner, self.taps)
        right = _apply(np.ascontiguousarray((metric @ weights.T).T), *_transposed(self))
        return _least_squares(self.congruent(metric), right.T)


def congruent(metric: Matrix, basis: Matrix) -> Matrix:
    """B M B^T."""
    return np.asarray(basis @ metric @ basis.T)


def solve(metric: Matrix, basis: Matrix, weights: Matrix) -> Matrix:
    """argmin over C of |W - C B| in the metric: W M B^T (B M B^T)^-1, [rows, k]."""
    return _least_squares(congruent(metric, basis), basis @ metric @ weights.T)


def _least_squares(gram: Matrix, right: Matrix) -> Matrix:
    gram = gram + np.eye(len(gram)) * (1e-10 * np.trace(gram) / max(len(gram), 1) + 1e-300)
    return np.asarray(np.linalg.solve(gram, right).T)


def _transposed(of: ColumnMap) -> tuple[Matrix | None, Matrix | None, int]:
    return (None if of.channels is None else of.channels.T, None if of.inner is None else of.inner.T, of.taps)


def _apply(values: Matrix, channels: Matrix | None, inner: Matrix | None, taps: int) -> Matrix:
    """[rows, k * k'] times `channels` [k, c] x `inner` [k', t] (Kronecker), identities where None."""
    rows = len(values)
    tensor = values.reshape(rows, -1, taps if inner is None else len(inner))
    if inner is not None:
        tensor = tensor @ inner
    if channels is not None and taps == 1:
        tensor = tensor[:, :, 0] @ channels
    elif channels is not None:
        tensor = np.matmul(channels.T, tensor)
    return np.asarray(tensor.reshape(rows, -1), dtype=np.float64)
