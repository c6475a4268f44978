"""The linear map S over a layer's columns, W = C S: over channels, over taps, or both, without their Kronecker product.

For n = channels x taps inputs a dense S takes n^3 operations to transform a metric; by its parts n^2 (channels + taps).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .metric import Matrix, Triangular, triangular

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

    @property
    def is_by_tap(self) -> bool:
        """Whether S acts on taps alone, and can be inverted."""
        inner = self.inner
        return (self.channels is None and inner is not None and len(inner) == inner.shape[1]
                and bool(np.linalg.cond(inner) < CONDITION))

    def inverted(self, weights: Matrix) -> Matrix:
        """W S^-1, where S `is_by_tap`."""
        assert self.inner is not None
        return _apply(weights, None, np.asarray(np.linalg.inv(self.inner), np.float64), self.taps)

    def factor(self, factor: Triangular) -> Triangular:
        """The factor of S M S^T, where S `is_by_tap`, from that of M (damped as it is), in n^2 taps operations.

        With M^-1 = U^T U, (S M S^T)^-1 = V^T V for V = U S^-1, whose block rows [taps, n] begin at the diagonal: an
        orthogonal Q_i for each, from the QR factorisation of its diagonal block, makes it triangular.
        """
        if factor.upper is None:
            return triangular(self.congruent(factor.cost), 0.0)
        v = self.inverted(factor.upper)
        t = self.taps
        q, r = np.linalg.qr(_diagonal_blocks(v, t))
        v = np.matmul(q.transpose(0, 2, 1), v.reshape(-1, t, len(v)))
        channel = np.arange(len(v))
        v.reshape(len(v), t, -1, t)[channel, :, channel] = np.triu(r)
        upper = np.ascontiguousarray(v.reshape(len(v) * t, -1))
        return Triangular(upper, 1.0 / np.diag(upper) ** 2)

    def costs(self, factor: Triangular) -> Matrix:
        """The costs of that factor alone, in n taps^2 operations."""
        if factor.upper is None:
            return triangular(self.congruent(factor.cost), 0.0).cost
        assert self.inner is not None
        r = np.linalg.qr(_diagonal_blocks(factor.upper, self.taps) @ np.linalg.inv(self.inner), mode="r")
        return np.asarray(1.0 / np.diagonal(r, axis1=1, axis2=2).ravel() ** 2)

    def congruent(self, metric: Matrix) -> Matrix:
        """S M S^T: [n, n] -> [k * taps, k * taps], symmetric. Of a diagonal M [n], where S acts on taps alone, the
        channels' blocks [channels, k, k]: the rest is zero."""
        if metric.ndim == 1:
            assert self.inner is not None and self.channels is None
            inner = self.inner
            return np.ascontiguousarray((inner * metric.reshape(-1, 1, inner.shape[1])) @ inner.T)
        turned = _transposed(self)
        half = _apply(metric, *turned)
        return np.ascontiguousarray(_apply(np.ascontiguousarray(half.T), *turned))

    def solve(self, metric: Matrix, weights: Matrix) -> Matrix:
        """argmin over C of |W - C S| in the metric, as `congruent` takes it, [rows, n] -> [rows, k * taps]; exact where
        S is invertible."""
        parts = [part for part in (self.channels, self.inner) if part is not None]
        if all(len(part) == part.shape[1] and np.linalg.cond(part) < CONDITION for part in parts):
            channels, inner = (None if part is None else np.asarray(np.linalg.inv(part), dtype=np.float64)
                               for part in (self.channels, self.inner))
            return _apply(weights, channels, inner, self.taps)
        if metric.ndim == 1:
            right = _apply(weights * metric, *_transposed(self))
            gram = self.congruent(metric)
            by_block = right.reshape(len(weights), len(gram), -1).transpose(1, 2, 0)
            parts_of = [_least_squares(one, other) for one, other in zip(gram, by_block, strict=True)]
            return np.ascontiguousarray(np.concatenate(parts_of, axis=1))
        right = _apply(np.ascontiguousarray((metric @ weights.T).T), *_transposed(self))
        return _least_squares(self.congruent(metric), right.T)


def _diagonal_blocks(upper: Matrix, taps: int) -> Matrix:
    """[n, n] -> [n / taps, taps, taps]."""
    channel = np.arange(len(upper) // taps)
    return np.ascontiguousarray(upper.reshape(len(channel), taps, -1, taps)[channel, :, channel])


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
