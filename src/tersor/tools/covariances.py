"""The two covariances along one axis of a layer's weight, from which transforms are made.

A weight is seen as w[g, o, i, t]: group, output channel, input channel, tap. Along an axis,

    C_w = mean over all other indices of w w^T,
    C_g = sum over all other indices of E (d(v.y)/dw) (d(v.y)/dw)^T

(TQ, section on covariances; v random signs on the outputs y, which stands for the sum over all outputs). C_g
comes from the layer's Kronecker metric, E d(v.y)/dW_rj d(v.y)/dW_sk = G_rs A_jk, as partial traces of A and G.
"""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .metric import Matrix
from .target import LayerTarget

AXES = ("inputs", "outputs", "taps", "joint")
"""Input channels, output channels, taps (all kernel positions), and input channel x tap (taps run fastest)."""
LARGEST = 8192
"""Elements of an axis whose covariance is still made (0.5 GB)."""


def axis_size(target: LayerTarget, axis: str) -> int:
    """Length of an axis, n in [n, n]; raises ConfigError for an unknown one."""
    _, outputs, inputs, taps = _shape(target)
    sizes = dict(zip(AXES, (inputs, outputs, taps, inputs * taps), strict=True))
    if axis not in sizes:
        raise ConfigError(f"there is no axis {axis!r}; it is one of {', '.join(AXES)}")
    return sizes[axis]


def tensor_view(target: LayerTarget, matrices: Matrix | None = None) -> Matrix:
    """Matrices [groups, m, n] (by default the weights W) as [groups, outputs, inputs, taps], a view where possible."""
    groups, outputs, inputs, taps = _shape(target)
    w = target.W if matrices is None else matrices
    if target.layer.kind == "conv_transposed":
        return w.reshape(groups, outputs, taps, inputs).transpose(0, 1, 3, 2)
    return w.reshape(groups, outputs, inputs, taps)


def matrix_view(target: LayerTarget, tensor: Matrix) -> Matrix:
    """The inverse of `tensor_view`: [groups, outputs, inputs, taps] -> [groups, m, n]."""
    if target.layer.kind == "conv_transposed":
        tensor = tensor.transpose(0, 1, 3, 2)
    return np.ascontiguousarray(tensor).reshape(target.W.shape)


def weight_covariance(target: LayerTarget, axis: str, rows: Matrix | None = None) -> Matrix:
    """C_w along `axis`, float64 [n, n]: mean of w w^T (not centred), N = weights / n vectors.

    rows: float64 [groups, m], a factor on each matrix row's part (by default 1, as published); 1 / (variance of
    the row) gives the shape of the covariance where rows have scales of their own.
    Raises ConfigError if the layer has groups and `axis` is not "taps", or if the axis is longer than LARGEST.
    """
    _check(target, axis)
    w = target.W if rows is None else target.W * np.sqrt(rows)[:, :, None]
    view = tensor_view(target, w)
    order = {"inputs": (2, 0, 1, 3), "outputs": (1, 0, 2, 3), "taps": (3, 0, 1, 2), "joint": (2, 3, 0, 1)}[axis]
    x = view.transpose(order).reshape(axis_size(target, axis), -1)
    return np.asarray(x @ x.T / max(1, x.shape[1]))


def gradient_covariance(target: LayerTarget, axis: str) -> Matrix:
    """C_g along `axis`, float64 [n, n], from A and G, full or diagonal: with errors of covariance s^2 I in every
    vector along the axis, the layer's distortion is s^2 tr(C_g). Raises ConfigError as `weight_covariance` does."""
    _check(target, axis)
    total = np.zeros((axis_size(target, axis),) * 2)
    for a, g in zip(target.A, target.G, strict=True):
        total += _of_group(target, axis, np.asarray(a, np.float64), np.asarray(g, np.float64))
    return total


def dense(metric: npt.NDArray[np.floating]) -> Matrix:
    """A full [n, n] or diagonal [n] metric as a full one, float64."""
    return _full(np.asarray(metric, np.float64))


def _of_group(target: LayerTarget, axis: str, a: Matrix, g: Matrix) -> Matrix:
    _, outputs, inputs, taps = _shape(target)
    transposed = target.layer.kind == "conv_transposed"
    with_taps, other = (g, a) if transposed else (a, g)
    channels = outputs if transposed else inputs
    if axis == "taps":
        return _trace(other) * _inner(with_taps, channels, taps)
    if axis == "joint":
        return np.asarray(np.kron(_full(a), _inner(g, outputs, taps))) if transposed else _trace(g) * _full(a)
    if axis == "inputs":
        return _trace(g) * (_full(a) if transposed else _outer(a, inputs, taps))
    return _trace(a) * (_outer(g, outputs, taps) if transposed else _full(g))


def _shape(target: LayerTarget) -> tuple[int, int, int, int]:
    groups, m, n = target.W.shape
    taps = prod(target.shape[2:])
    return (groups, m // taps, n, taps) if target.layer.kind == "conv_transposed" else (groups, m, n // taps, taps)


def _check(target: LayerTarget, axis: str) -> None:
    size = axis_size(target, axis)
    if target.groups > 1 and axis != "taps":
        raise ConfigError(f"{target.name}: a layer of {target.groups} groups has no covariance over {axis}, "
                          f"only over taps")
    if size > LARGEST:
        raise ConfigError(f"{target.name}: {axis} has {size} elements, more than the {LARGEST} whose covariance "
                          f"is affordable")


def _trace(metric: Matrix) -> float:
    return float(metric.sum() if metric.ndim == 1 else np.trace(metric))


def _full(metric: Matrix) -> Matrix:
    return np.diag(metric) if metric.ndim == 1 else metric


def _outer(metric: Matrix, channels: int, taps: int) -> Matrix:
    """Partial trace over taps: [channels, channels]."""
    if metric.ndim == 1:
        return np.diag(metric.reshape(channels, taps).sum(axis=1))
    return np.asarray(np.einsum("itjt->ij", metric.reshape(channels, taps, channels, taps)))


def _inner(metric: Matrix, channels: int, taps: int) -> Matrix:
    """Partial trace over channels: [taps, taps]."""
    if metric.ndim == 1:
        return np.diag(metric.reshape(channels, taps).sum(axis=0))
    return np.asarray(np.einsum("itiu->tu", metric.reshape(channels, taps, channels, taps)))
