"""Transforms of a layer's weights: KLT and ELT from covariances, fixed DCTs, and products of them. NumPy only.

A transform is a matrix U [n, n]: t = T w with T = U^T, and back w = S t with S = U^-T = T^-1 (bi-orthogonal;
orthogonal if U is). T is the analysis, S the synthesis; the columns of S are the basis vectors that a decoder
needs, and `Transform.basis` holds them as rows. Two covariances decide which U is good (TQ = Young, Wang,
Taubman, Girod, "Transform quantization for CNN compression", 2021):

* C_w [n, n] of the weights along the transformed axis, C_g [n, n] of the output's derivatives along it
  (`tersor.tools.covariances`);
* an error e_t of the coefficients costs e_t^T (S^T C_g S) e_t, and the coefficients have covariance T C_w T^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, StatisticsError

Matrix = npt.NDArray[np.float64]

REGULARISATION = 1e-3
"""Times ||C_g||_F is added to C_g's diagonal, as TQ's authors do: an ELT's S then has a condition of at most 32."""
FLOOR = 1e-12
"""Smallest eigenvalue of C_g, as a share of the largest, whatever the regularisation."""
DCT_KINDS = ("dct1", "dct2")


@dataclass(frozen=True)
class Transform:
    """`analysis` T and `synthesis` S = T^-1, float64 [n, n]; `name` for people: "elt", "elt x dct2"."""

    name: str
    analysis: Matrix
    synthesis: Matrix

    @property
    def size(self) -> int:
        """n."""
        return len(self.analysis)

    @property
    def basis(self) -> Matrix:
        """S^T: row k is the basis vector that coefficient k multiplies, w = sum_k t_k basis[k]."""
        return self.synthesis.T

    def variances(self, weights: npt.NDArray[np.floating]) -> Matrix:
        """diag(T C_w T^T) of C_w = `weights` [n, n]: float64 [n], the variances of the coefficients."""
        return _quadratic(self.analysis, weights)

    def sensitivities(self, gradients: npt.NDArray[np.floating]) -> Matrix:
        """diag(S^T C_g S) of C_g = `gradients` [n, n]: float64 [n], what a unit error of each coefficient costs."""
        return _quadratic(self.synthesis.T, gradients)

    def normalised(self) -> Transform:
        """The same transform with basis vectors of length 1 (TQ's S is stored like that)."""
        length = np.sqrt((self.synthesis**2).sum(axis=0))
        return Transform(self.name, self.analysis * length[:, None], self.synthesis / length)

    def ordered(self, weights: npt.NDArray[np.floating], gradients: npt.NDArray[np.floating]) -> Transform:
        """The same with coefficients in falling order of variance x sensitivity, what leaving one out costs."""
        order = np.argsort(-self.variances(weights) * self.sensitivities(gradients), kind="stable")
        return Transform(self.name, self.analysis[order], self.synthesis[:, order])


def identity(n: int) -> Transform:
    """No transform."""
    return Transform("identity", np.eye(n), np.eye(n))


def klt(weights: npt.NDArray[np.floating]) -> Transform:
    """Karhunen-Loeve transform: the orthogonal U with U^T C_w U = Lambda, in falling order (TQ: C_g := I).

    weights: C_w, symmetric positive semi-definite [n, n]. Singular ones need nothing special.
    Raises StatisticsError if it is not square or not finite.
    """
    c = _symmetric(weights, "C_w")
    _, vectors = np.linalg.eigh(c)
    u = _signed(vectors[:, ::-1])
    return Transform("klt", np.ascontiguousarray(u.T), np.ascontiguousarray(u))


def elt(weights: npt.NDArray[np.floating], gradients: npt.NDArray[np.floating],
        regularisation: float = REGULARISATION) -> Transform:
    """End-to-end learned transform: U^T C_w U = Lambda and U^T C_g^-1 U = I, Lambda falling (TQ's theorem on the
    best transform: its distortion is det(C_g C_w)^(1/n) eps^2 2^-2R, the least of any U).

    weights, gradients: C_w, C_g, symmetric positive semi-definite [n, n]. With H the symmetric root of
    M = C_g + regularisation ||C_g||_F I and H C_w H = Q Lambda Q^T, U = H Q: the PCA of H w. So coefficients
    are uncorrelated and an error of each costs the same: S^T M S = I.

    M's eigenvalues are at least FLOOR times the largest, so a singular C_g (dead inputs) is no problem; a C_g
    of zeros says nothing, and the KLT is returned under this name. Raises StatisticsError as `klt` does.
    """
    c, g = _symmetric(weights, "C_w"), _symmetric(gradients, "C_g")
    if c.shape != g.shape:
        raise StatisticsError(f"C_w {c.shape} and C_g {g.shape} are of different axes of the layer")
    values, vectors = np.linalg.eigh(g + regularisation * float(np.linalg.norm(g)) * np.eye(len(g)))
    if not values.size or values[-1] <= 0:
        plain = klt(c)
        return Transform("elt", plain.analysis, plain.synthesis)
    root = np.sqrt(np.maximum(values, FLOOR * values[-1]))
    h, inverse = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    _, q = np.linalg.eigh(_halves(h @ c @ h))
    q = q[:, ::-1]
    s = inverse @ q
    sign = np.sign(_largest(s))
    return Transform("elt", (q * sign).T @ h, s * sign)


def dct1(n: int) -> Matrix:
    """Orthonormal DCT-I [n, n], a row per basis vector: sqrt(2 / (n-1)) a_j a_k cos(pi j k / (n-1)), a = 1 but
    sqrt(1/2) for the first and the last; [[1]] for n = 1. Its own inverse."""
    if n == 1:
        return np.ones((1, 1))
    k = np.arange(n)
    a = np.ones(n)
    a[[0, -1]] = np.sqrt(0.5)
    return np.asarray(np.sqrt(2 / (n - 1)) * np.outer(a, a) * np.cos(np.pi * np.outer(k, k) / (n - 1)))


def dct2(n: int) -> Matrix:
    """Orthonormal DCT-II [n, n], a row per basis vector: sqrt(2 / n) a_k cos(pi (2 j + 1) k / (2 n)), a = 1 but
    sqrt(1/2) for k = 0."""
    k = np.arange(n)
    matrix = np.sqrt(2 / n) * np.cos(np.pi * np.outer(k, 2 * k + 1) / (2 * n))
    matrix[0] *= np.sqrt(0.5)
    return np.asarray(matrix)


def dct(kind: str, sizes: Sequence[int]) -> Transform:
    """Separable DCT over taps of `sizes`, for example (kh, kw); n = kh kw, the last axis inner, frequencies in the
    same order as taps. kind: "dct1" or "dct2". One tap (or none) gives the identity [[1]].

    Raises ConfigError for another kind.
    """
    if kind not in DCT_KINDS:
        raise ConfigError(f"there is no transform {kind!r}; a fixed one is one of {', '.join(DCT_KINDS)}")
    one = {"dct1": dct1, "dct2": dct2}[kind]
    matrix = np.ones((1, 1))
    for size in sizes:
        matrix = np.kron(matrix, one(size))
    assert len(matrix) == prod(sizes)
    return Transform(kind, matrix, np.ascontiguousarray(matrix.T))


def product(outer: Transform, inner: Transform) -> Transform:
    """The separable transform of two axes, index (outer, inner) with the inner one running fastest: a channel
    transform as `outer` and one of the taps as `inner` act on a layer's columns."""
    parts = [part.name for part in (outer, inner) if part.name != "identity"]
    return Transform(" x ".join(parts) or "identity", np.asarray(np.kron(outer.analysis, inner.analysis)),
                     np.asarray(np.kron(outer.synthesis, inner.synthesis)))


def _quadratic(rows: Matrix, metric: npt.NDArray[np.floating]) -> Matrix:
    """diag(rows metric rows^T), without negative rounding errors."""
    return np.asarray(np.maximum(((rows @ np.asarray(metric, np.float64)) * rows).sum(axis=1), 0.0))


def _symmetric(matrix: npt.NDArray[np.floating], name: str) -> Matrix:
    square = np.asarray(matrix, dtype=np.float64)
    if square.ndim != 2 or square.shape[0] != square.shape[1]:
        raise StatisticsError(f"{name} must be a square matrix, not of shape {square.shape}")
    if not np.isfinite(square).all():
        raise StatisticsError(f"{name} holds NaN or infinity: calibrate again, or look at the weights")
    return _halves(square)


def _halves(square: Matrix) -> Matrix:
    return np.asarray((square + square.T) / 2)


def _largest(columns: Matrix) -> Matrix:
    """Of each column, the element of largest magnitude."""
    return np.asarray(np.take_along_axis(columns, np.abs(columns).argmax(axis=0)[None], axis=0)[0])


def _signed(columns: Matrix) -> Matrix:
    """Eigenvectors have no sign of their own: the largest element becomes positive, the same on every machine."""
    return np.asarray(columns * np.sign(_largest(columns))) if columns.size else columns
