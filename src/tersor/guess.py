"""Where the search for lambda begins: plain rounding of some of the weights tells what entropy to expect."""

from __future__ import annotations

import math

import numpy as np

from .plan import Plan
from .tools import scalar
from .tools.metric import Matrix
from .tools.target import LayerTarget

SAMPLE = 100_000
"""About so many weights of each group of a layer are looked at."""


class Guess:
    """What lambda to begin with, for any rate. Holds a sample of each layer, not the layers."""

    def __init__(self, plan: Plan) -> None:
        self.layers: list[tuple[LayerTarget, list[Matrix]]] = []
        for name in plan.layers:
            target = plan.target(name)
            outline = target.outline()
            plan.remember(target)
            self.layers.append((outline, [w[:, :: max(1, w.size // SAMPLE)].copy() for w in target.W]))

    def entropy(self, log_price: float) -> float:
        """Bits/weight of plain rounding with the steps for log2 lambda = `log_price`, on average."""
        total = weights = 0.0
        for target, matrices in self.layers:
            steps = scalar.choose_steps(target, 2.0**log_price).step
            scaled = np.concatenate([(w / s[:, None]).ravel() for w, s in zip(matrices, steps, strict=True)])
            spread = float(np.sqrt(np.mean(scaled**2)))
            if spread > 8.0:  # too many different values to count: as of a Gaussian
                each = math.log2(spread * math.sqrt(2.0 * math.pi * math.e))
            else:
                _, counts = np.unique(np.rint(scaled), return_counts=True)
                share = counts / counts.sum()
                each = float(-(share * np.log2(share)).sum())
            total += each * target.count
            weights += target.count
        return total / weights

    def log_price(self, bits: float) -> float:
        """log2 lambda at which plain rounding has an entropy of `bits` bits/weight; 0 without layers."""
        if not self.layers:
            return 0.0
        low, high = -80.0, 80.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self.entropy(middle) > bits else (low, middle)
        return (low + high) / 2
