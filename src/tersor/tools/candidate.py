"""What a coding tool offers for one layer at one lambda, so that the encoder can choose by J = D + lambda R."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .metric import Matrix
from .target import LayerTarget


@dataclass(frozen=True)
class Candidate:
    """One way to describe a layer.

    * `tool`: "scalar", "transform", "kernels". `code`: its integers: ScalarCode, TransformCode, KernelCode.
    * `restored`: float64 [groups, m, n], the weights that come back, in the units of the target's W (what a
      BatchNorm takes up is put back).
    * `distortion`: D = sum over groups of tr(G E A E^T). `bits`: R of this layer with its side information, as
      the file's coder would need them; `side_bits` of them for bases or codebooks.
    * `label`: for people: "elt x dct2, rank 31 of 64".
    """

    tool: str
    code: Any
    restored: Matrix
    distortion: float
    bits: float
    label: str
    side_bits: float = 0.0

    def cost(self, price: float) -> float:
        """J = D + lambda R, lambda = `price`."""
        return self.distortion + price * self.bits


def distortion(target: LayerTarget, restored: Matrix) -> float:
    """D = sum over groups of tr(G E A E^T), E = W - restored, float64 [groups, m, n]; A, G full or diagonal."""
    total = 0.0
    for w, r, a, g in zip(target.W, restored, target.A, target.G, strict=True):
        error = w - r
        right = error * a if a.ndim == 1 else error @ a
        left = g[:, None] * error if g.ndim == 1 else g @ error
        total += float(np.einsum("mn,mn->", left, right))
    return total
