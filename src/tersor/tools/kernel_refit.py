"""Codebook values for fixed indexes: the minimum of the layers' whole distortion sum of tr(G E A E^T)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .kernel_blocks import Blocks
from .kernel_choice import Chosen
from .metric import Matrix
from .target import LayerTarget

ITERATIONS = 6
WORK = 4e10
"""Multiply-adds above which layers keep their centres."""


class Fitted:
    """A layer with its indexes, as a linear map from the codebook's words to its weights."""

    def __init__(self, target: LayerTarget, blocks: Blocks, chosen: Chosen) -> None:
        self.target, self.blocks, self.chosen = target, blocks, chosen
        sides = (target.A, target.G)
        # Single precision does for directions, of numbers near 1: the step along them is measured.
        self._most = [max(float(np.abs(side).max(initial=0.0)), 1e-300) for side in sides]
        self._sides = [(side / most).astype(np.float32) for side, most in zip(sides, self._most, strict=True)]

    @property
    def work(self) -> float:
        """Multiply-adds of one `product`."""
        groups, m, n = self.target.W.shape
        return float(groups * m * n * (n + m))

    def weights(self, words: Matrix) -> Matrix:
        """float64 [groups, m, n]."""
        return self.blocks.restore(self.chosen.kernels(words))

    def product(self, x: Matrix) -> Matrix:
        """G x A, for x in the units of W."""
        unit = max(float(np.abs(x).max(initial=0.0)), 1e-300)
        right = [part * a if a.ndim == 1 else part @ a
                 for part, a in zip((x / unit).astype(np.float32), self._sides[0], strict=True)]
        both = np.stack([g[:, None] * part if g.ndim == 1 else g @ part
                         for part, g in zip(right, self._sides[1], strict=True)])
        return np.asarray(both * (unit * self._most[0] * self._most[1]), dtype=np.float64)

    def collect(self, x: Matrix, k: int) -> Matrix:
        """The transpose of `weights`: [groups, m, n] -> [k, t]."""
        m, t = x.shape[1], self.blocks.taps
        out = np.zeros((k, t))
        for group, index, gain, part in zip(self.blocks.groups, self.chosen.index, self.chosen.gain, x, strict=True):
            padded = np.zeros((m, len(group.y) * t))
            padded[:, : self.blocks.columns] = part * group.scale[:, None]
            _sum_up(out, index, padded.reshape(m, -1, t).transpose(1, 0, 2) * gain[..., None])
        return out

    def diagonal(self, k: int) -> Matrix:
        """About the diagonal of the normal equations, [k, t]."""
        t = self.blocks.taps
        out = np.zeros((k, t))
        for group, index, gain, a, g in zip(self.blocks.groups, self.chosen.index, self.chosen.gain, self.target.A,
                                            self.target.G, strict=True):
            columns = np.zeros(len(group.y) * t)
            columns[: self.blocks.columns] = a if a.ndim == 1 else np.diag(a)
            rows = (g if g.ndim == 1 else np.diag(g)) * group.scale**2
            energy = gain.astype(np.float64)[..., None] ** 2
            _sum_up(out, index, columns.reshape(-1, 1, t) * rows[None, :, None] * energy)
        return out


def refit(layers: Sequence[Fitted], words: Matrix) -> Matrix:
    """Words float64 [k, t] after some steps of conjugate gradients (preconditioned by the diagonal); the very same
    array where that would take too long.

    The k-means centres take each kernel for itself; here the errors of a row's kernels make up for each other.
    """
    if sum(layer.work for layer in layers) * ITERATIONS > WORK:
        return words
    k = len(words)

    def total(parts: Sequence[Matrix]) -> Matrix:
        return np.asarray(sum(layer.collect(layer.product(part), k) for layer, part in zip(layers, parts, strict=True)))

    residual = total([layer.target.W - layer.weights(words) for layer in layers])
    scale = np.asarray(sum(layer.diagonal(k) for layer in layers))
    scale = np.maximum(scale, 1e-12 * max(float(scale.max()), 1e-300))
    found, direction = words, residual / scale
    rho = float((residual * direction).sum())
    for _ in range(ITERATIONS):
        image = total([layer.weights(direction) for layer in layers]) if rho > 0 else direction
        curvature = float((direction * image).sum())
        if not (rho > 0 and curvature > 0):
            break
        found = found + rho / curvature * direction
        residual = residual - rho / curvature * image
        scaled = residual / scale
        following = float((residual * scaled).sum())
        direction = scaled + following / rho * direction
        rho = following
    return found


def _sum_up(out: Matrix, index: np.ndarray[tuple[int, ...], np.dtype[np.int32]], kernels: Matrix) -> None:
    """out[index] += kernels, [c, m, t] by indexes [c, m]."""
    for tap in range(out.shape[1]):
        out[:, tap] += np.bincount(index.ravel(), weights=kernels[..., tap].ravel(), minlength=len(out))
