"""What a transform is worth at high rate: the identities of TQ's Theorems 1 to 3, and coding gains in dB.

n coefficients with variances v_k and sensitivities g_k share R bits each so that the mean of D_k = g_k v_k eps^2
2^(-2 R_k) is least; then all D_k are alike, and each is

    D = [prod_k g_k v_k]^(1/n) eps^2 2^(-2R).

Without a transform v and g are the diagonals of C_w and C_g; with U those of U^T C_w U and U^-1 C_g U^-T. The
ratio of the two is the coding gain; 6.02 dB of it are one bit per weight. eps^2 is a constant of the quantizer
and cancels in gains. (TQ: Young, Wang, Taubman, Girod, "Transform quantization for CNN compression", 2021.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .transforms import Matrix, Transform

Covariance = npt.NDArray[np.floating]

DB_PER_BIT = 20 * math.log10(2)
"""6.02 dB: a factor of 4 in D."""
EPSILON2 = math.pi * math.e / 6
"""eps^2 of a uniform quantizer with an entropy code, Gaussian source, high rate: 1.53 dB, 0.255 bit above the
limit of 1. (A fixed-length code needs sqrt(3) pi / 2, 4.35 dB.)"""
FLOOR = 1e-9
"""A variance or sensitivity below this share of the mean one counts as so much: a dead channel (or a covariance
of rank below n) has no logarithm, and its true gain is unlimited."""


@dataclass(frozen=True)
class Gain:
    """Coding gain in dB, in its two factors. Both are of U scaled to |det U| = 1 (scales of single coefficients
    cancel between them), so that each stands for itself: `weight` = prod (C_w)_kk / prod (U^T C_w U)_kk, and
    `gradient` = prod (C_g)_kk / prod (U^-1 C_g U^-T)_kk, geometric means."""

    weight: float
    gradient: float

    @property
    def total(self) -> float:
        """dB."""
        return self.weight + self.gradient

    @property
    def bits(self) -> float:
        """Bits per weight that the transform saves at equal distortion, its storage not counted."""
        return self.total / DB_PER_BIT


def coding_gain(weights: Covariance, gradients: Covariance, transform: Transform, floor: float = FLOOR) -> Gain:
    """Gain of any transform for C_w = `weights` and C_g = `gradients`, [n, n] each; 0 dB for the identity."""
    transform = transform.normalised()  # so that the floor means the same before and after
    _, volume = np.linalg.slogdet(transform.analysis)
    scale = 2 * float(volume) / max(1, transform.size)
    before_w, before_g = mean_log(np.diag(weights), floor), mean_log(np.diag(gradients), floor)
    after_w = mean_log(transform.variances(weights), floor) - scale
    after_g = mean_log(transform.sensitivities(gradients), floor) + scale
    return Gain(_decibels(before_w - after_w), _decibels(before_g - after_g))


def best_gain(weights: Covariance, gradients: Covariance, floor: float = FLOOR) -> Gain:
    """Gain that no transform exceeds, [prod (C_g)_kk (C_w)_kk / det(C_g C_w)]^(1/n): what an ELT without
    regularisation reaches. Its factors by Hadamard's inequality, each at least 0 dB."""
    parts = []
    for matrix in (weights, gradients):
        eigenvalues = np.linalg.eigvalsh(np.asarray(matrix, np.float64))
        parts.append(_decibels(mean_log(np.diag(matrix), floor) - mean_log(eigenvalues, floor)))
    return Gain(*parts)


def distortion_plain(weights: Covariance, gradients: Covariance, rate: float, epsilon2: float = EPSILON2) -> float:
    """TQ, Theorem 1: D = [prod_k (C_g)_kk (C_w)_kk]^(1/n) eps^2 2^(-2R), the mean per coefficient at `rate`
    R bits per weight, depths allocated at equal slope, no transform. Exact where every coefficient gets bits."""
    return _product_law(np.diag(weights), np.diag(gradients), rate, epsilon2)


def distortion_transformed(weights: Covariance, gradients: Covariance, transform: Transform, rate: float,
                           epsilon2: float = EPSILON2) -> float:
    """TQ, Theorem 2: D = [prod_k (U^-1 C_g U^-T)_kk (U^T C_w U)_kk]^(1/n) eps^2 2^(-2R)."""
    return _product_law(transform.variances(weights), transform.sensitivities(gradients), rate, epsilon2)


def distortion_elt(weights: Covariance, gradients: Covariance, rate: float, epsilon2: float = EPSILON2) -> float:
    """TQ, Theorem 3: D = det(C_g C_w)^(1/n) eps^2 2^(-2R), the least of all U, reached by the ELT."""
    logs = [np.linalg.slogdet(np.asarray(matrix, np.float64)) for matrix in (weights, gradients)]
    if any(sign <= 0 for sign, _ in logs):
        return 0.0
    volume = sum(float(log) for _, log in logs)
    return math.exp(volume / len(weights) - 2 * math.log(2) * rate) * epsilon2


def joint_eigenvalues(weights: Covariance, gradients: Covariance) -> Matrix:
    """Eigenvalues of C_w C_g, falling, float64 [n], none negative: the variances of the coefficients of an ELT
    (without regularisation), each of unit sensitivity. Water-filling over them is the limit of the layer."""
    values, vectors = np.linalg.eigh(np.asarray(gradients, np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0.0))  # C_g = root root^T, and root^T C_w root has the eigenvalues
    return np.asarray(np.maximum(np.linalg.eigvalsh(root.T @ np.asarray(weights, np.float64) @ root)[::-1], 0.0))


def mean_log(values: npt.NDArray[np.floating], floor: float = FLOOR) -> float:
    """Mean natural logarithm of values of which none counts less than `floor` times their mean; 0 if all are 0."""
    positive = np.maximum(np.asarray(values, np.float64), 0.0)
    mean = float(positive.mean()) if positive.size else 0.0
    return float(np.log(np.maximum(positive, max(floor * mean, 1e-300))).mean()) if mean > 0 else 0.0


def _product_law(variances: Matrix, sensitivities: Matrix, rate: float, epsilon2: float) -> float:
    terms = np.asarray(variances, np.float64) * np.asarray(sensitivities, np.float64)
    if not (terms > 0).all():
        return 0.0
    return math.exp(float(np.log(terms).mean()) - 2 * math.log(2) * rate) * epsilon2


def _decibels(log_ratio: float) -> float:
    return 10 * log_ratio / math.log(10)
