"""The ruler: how many bits a layer needs at the distortion that was really reached, and how many it got.

The model. A weight of matrix row r, input channel i, tap t is Gaussian, of mean 0 and covariance

    E w_rit w_sju = [r = s] v_r (C_inputs)_ij (C_taps)_tu:

a scale per row, times a covariance over input channels, times one over taps. (One over both together would
have as many numbers as the layer has weights, and call the weights themselves known.) v_r is the row's mean square;
the two covariances come from rows scaled to 1, their correlations shrunk towards 0 as far as the number of
samples demands (`metric.oas`).
Errors cost D = tr(G E A E^T). Where both are Kronecker products, the variances that matter are products of two
kinds of eigenvalues, of G^(1/2) diag(v) G^(1/2) (outputs) and of A^(1/2) (C_inputs x C_taps) A^(1/2) (inputs), and
reverse water-filling over them (`tersor.tools.rate_distortion`) is the least rate of any code for such weights.

It is a limit for the model, not for the layer: weights with structure that the model has not (heavy tails, zeros,
signs that repeat) can be coded in fewer bits, and the gap is then negative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from .candidate import distortion
from .covariances import dense, tensor_view, weight_covariance
from .metric import Matrix, oas
from .rate_distortion import scalar_rate, waterfill_rate
from .target import LayerTarget

LARGEST = 2304
"""Rows or columns of which all eigenvalues are computed (some seconds). Beyond, a metric of columns is taken for
the product of its partial traces, one of rows for its diagonal; `Limit.exact` is then False."""


@dataclass(frozen=True)
class Limit:
    """Bits per weight of a layer (or of several) at the squared error `distortion` of its output.

    * `bits`: what was spent, side information included. `shannon`: reverse water-filling. `scalar`: the best
      uniform quantizers with an entropy code after the ideal transform: +0.255 at high rate, less at low rate.
    * `weights`: how many. `exact`: whether the eigenvalues are those of the full metric.
    """

    name: str
    weights: int
    distortion: float
    bits: float
    shannon: float
    scalar: float
    exact: bool

    @property
    def gap(self) -> float:
        """Bits per weight above the limit."""
        return self.bits - self.shannon

    @property
    def scalar_gap(self) -> float:
        """Bits per weight above ideal scalar quantization."""
        return self.bits - self.scalar

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "gap": self.gap, "scalar_gap": self.scalar_gap}


def limit(target: LayerTarget, restored: Matrix, bits: float) -> Limit:
    """The ruler beside one coded layer.

    restored: float64 [groups, m, n], the weights that came back, in the units of target.W. bits: of the whole
    layer. D is measured with the target's metric, `tersor.tools.candidate.distortion`; where it is 0, the limits
    are infinite, unless there is nothing that costs anything.
    """
    return limit_at(target, distortion(target, restored), bits)


def limit_at(target: LayerTarget, total: float, bits: float) -> Limit:
    """The same for D = `total`, summed over the layer."""
    variances, exact = component_variances(target)
    count = max(1, target.count)
    return Limit(target.name, target.count, total, bits / count, waterfill_rate(variances, total / count),
                 scalar_rate(variances, total / count), exact)


def overall(limits: Iterable[Limit], name: str = "all layers") -> Limit:
    """Several layers as one: bits per weight over all of them, each at its own distortion."""
    parts = list(limits)
    weights = sum(part.weights for part in parts)

    def mean(values: Iterable[float]) -> float:
        return sum(v * part.weights for v, part in zip(values, parts, strict=True)) / max(1, weights)

    return Limit(name, weights, sum(part.distortion for part in parts), mean(p.bits for p in parts),
                 mean(p.shannon for p in parts), mean(p.scalar for p in parts), all(p.exact for p in parts))


def component_variances(target: LayerTarget) -> tuple[Matrix, bool]:
    """The variances to water-fill, float64 [weights], in the units of D; whether they are exact."""
    v = (target.W**2).mean(axis=2)
    rows = np.divide(1.0, v, out=np.zeros_like(v), where=v > 0)
    channels = _channel_root(target, rows)
    taps = _root(_shrunk(weight_covariance(target, "taps", rows), v.size * target.W.shape[2]))
    transposed = target.layer.kind == "conv_transposed"
    found, exact = [], True
    for group, (a, g) in enumerate(zip(target.A, target.G, strict=True)):
        metric_in, metric_out = np.asarray(a, np.float64), np.asarray(g, np.float64)
        scale = np.sqrt(v[group])
        inputs, sure_in = _columns(metric_in, channels, np.ones((1, 1)) if transposed else taps)
        outputs, sure_out = _rows(metric_out, scale, taps if transposed else np.ones((1, 1)))
        found.append(np.outer(outputs, inputs).ravel())
        exact = exact and sure_in and sure_out
    return np.concatenate(found) if found else np.zeros(0), exact


def _columns(metric: Matrix, channels: Matrix, taps: Matrix) -> tuple[Matrix, bool]:
    """Eigenvalues of root^T A root, root = channels x taps; channels diagonal [c] or a full root [c, c]."""
    if channels.ndim == 1 and metric.ndim == 1 and len(taps) == 1:
        return metric * channels**2 * taps[0, 0] ** 2, True
    root = np.diag(channels) if channels.ndim == 1 else channels
    size = len(root) * len(taps)
    if size <= LARGEST:
        both = np.asarray(np.kron(root, taps))
        return _eigenvalues(both.T @ dense(metric) @ both), True
    if metric.ndim == 1:
        outer, inner = (np.diag(metric.reshape(len(root), -1).sum(axis=axis)) for axis in (1, 0))
    else:
        blocks = metric.reshape(len(root), len(taps), len(root), len(taps))
        outer, inner = np.einsum("itjt->ij", blocks), np.einsum("itiu->tu", blocks)
    trace = float(np.trace(inner)) or 1.0
    return np.outer(_eigenvalues(root.T @ outer @ root), _eigenvalues(taps.T @ inner @ taps)).ravel() / trace, False


def _rows(metric: Matrix, scale: Matrix, taps: Matrix) -> tuple[Matrix, bool]:
    """Eigenvalues of root^T G root, root = diag(scale) (I x taps)."""
    if metric.ndim == 1 and len(taps) == 1:
        return metric * scale**2, True
    if len(scale) > LARGEST:
        return (metric if metric.ndim == 1 else np.diag(metric)) * scale**2, False
    root = scale[:, None] * np.kron(np.eye(len(scale) // len(taps)), taps)
    return _eigenvalues(root.T @ dense(metric) @ root), True


def _channel_root(target: LayerTarget, rows: Matrix) -> Matrix:
    """Root of the covariance over input channels; its diagonal [c] for very many; ones where groups have none."""
    channels = tensor_view(target).shape[2]
    if target.groups > 1:
        return np.ones(channels)
    if channels > LARGEST:
        view = tensor_view(target, target.W * np.sqrt(rows)[:, :, None])
        return np.asarray(np.sqrt((view**2).mean(axis=(0, 1, 3))))
    return _root(_shrunk(weight_covariance(target, "inputs", rows), target.W.shape[1] * prod(target.shape[2:])))


def _shrunk(covariance: Matrix, samples: int) -> Matrix:
    """Correlations shrunk by OAS, variances as they are, scaled to a mean variance of 1."""
    size = len(covariance)
    deviation = np.sqrt(np.diag(covariance))
    if not deviation.any():
        return np.eye(size)
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    s = inverse[:, None] * covariance * inverse
    rho = oas(s, samples)
    s = (1 - rho) * s + rho * np.diag(np.diag(s))
    return np.asarray(deviation[:, None] * s * deviation / (np.trace(covariance) / size))


def _root(covariance: Matrix) -> Matrix:
    """R with R R^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _eigenvalues(symmetric: Matrix) -> Matrix:
    return np.asarray(np.maximum(np.linalg.eigvalsh((symmetric + symmetric.T) / 2), 0.0))
