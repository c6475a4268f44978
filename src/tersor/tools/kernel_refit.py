"""Codebook values for fixed indexes: the minimum of the layer's whole distortion tr(G E A E^T)."""

from __future__ import annotations

import numpy as np

from .kernel_blocks import Blocks
from .kernel_choice import Chosen
from .metric import Matrix
from .target import LayerTarget

ITERATIONS = 6
WORK = 4e10
"""Multiply-adds above which a layer keeps its centres."""


def refit(target: LayerTarget, blocks: Blocks, words: Matrix, chosen: Chosen) -> Matrix:
    """Words float64 [k, t] after some steps of conjugate gradients (preconditioned by the diagonal).

    The k-means centres take each kernel for itself; here the errors of a row's kernels make up for each other.
    """
    groups, m, n = target.W.shape
    if groups * m * n * (n + m) * ITERATIONS > WORK:
        return words
    # Single precision does for directions, of numbers near 1: the step along them is measured.
    sides = [np.maximum(float(np.abs(side).max(initial=0.0)), 1e-300) for side in (target.A, target.G)]
    inputs, outputs = ((side / most).astype(np.float32) for side, most in zip((target.A, target.G), sides, strict=True))

    def product(x: Matrix) -> Matrix:
        """G x A, for x in the units of W."""
        unit = max(float(np.abs(x).max(initial=0.0)), 1e-300)
        right = [part * a if a.ndim == 1 else part @ a
                 for part, a in zip((x / unit).astype(np.float32), inputs, strict=True)]
        both = np.stack([g[:, None] * part if g.ndim == 1 else g @ part
                         for part, g in zip(right, outputs, strict=True)])
        return np.asarray(both * (unit * sides[0] * sides[1]), dtype=np.float64)

    def collect(x: Matrix) -> Matrix:
        """The transpose of words -> restored matrix: [groups, m, n] -> [k, t]."""
        out = np.zeros_like(words)
        for group, index, gain, part in zip(blocks.groups, chosen.index, chosen.gain, x, strict=True):
            c = len(group.y)
            padded = np.zeros((m, c * blocks.taps))
            padded[:, :n] = part * group.scale[:, None]
            kernels = padded.reshape(m, c, blocks.taps).transpose(1, 0, 2) * gain[..., None]
            for tap in range(blocks.taps):
                out[:, tap] += np.bincount(index.ravel(), weights=kernels[..., tap].ravel(), minlength=len(words))
        return out

    def applied(x: Matrix) -> Matrix:
        return collect(product(blocks.restore(chosen.kernels(x))))

    residual = collect(product(target.W - blocks.restore(chosen.kernels(words))))
    scale = _diagonal(target, blocks, chosen, words)
    found, direction = words.copy(), residual / scale
    rho = float((residual * direction).sum())
    for _ in range(ITERATIONS):
        if not rho > 0:
            break
        image = applied(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        found = found + rho / curvature * direction
        residual = residual - rho / curvature * image
        scaled = residual / scale
        following = float((residual * scaled).sum())
        direction = scaled + following / rho * direction
        rho = following
    return found


def _diagonal(target: LayerTarget, blocks: Blocks, chosen: Chosen, words: Matrix) -> Matrix:
    """About the diagonal of the normal equations, [k, t] > 0."""
    out = np.zeros_like(words)
    for group, index, gain, a, g in zip(blocks.groups, chosen.index, chosen.gain, target.A, target.G, strict=True):
        columns = np.zeros(len(group.y) * blocks.taps)
        columns[: blocks.columns] = a if a.ndim == 1 else np.diag(a)
        rows = (g if g.ndim == 1 else np.diag(g)) * group.scale**2
        cost = columns.reshape(-1, 1, blocks.taps) * rows[None, :, None] * (gain.astype(np.float64) ** 2)[..., None]
        for tap in range(blocks.taps):
            out[:, tap] += np.bincount(index.ravel(), weights=cost[..., tap].ravel(), minlength=len(words))
    return np.maximum(out, 1e-12 * max(float(out.max()), 1e-300))
