"""The price of a bit in the loss, steered so that the file has the size that it shall have."""

from __future__ import annotations

import math
from dataclasses import dataclass

RAMP = 0.4
"""Share of the steps within which a smaller size is reached."""
GAIN, FASTEST = 20.0, 0.3
"""Change of log price per relative excess of bytes, and the most at a time."""
LOWEST, HIGHEST = 1e-3, 1e4
"""Of the price, over the first one."""


@dataclass
class Pricing:
    """`start`, `limit`: bytes at the beginning and allowed at the end. `fixed`: a price that stays, or None."""

    start: int
    limit: int
    fixed: float | None = None
    price: float = 0.0
    first: float = 0.0
    bytes_per_bit: float = 0.125

    def begin(self, loss: float, weights: int) -> None:
        """Set the first price: the slope of D ~ 4^-R where D is the loss and R the bits of so many weights."""
        self.first = self.price = 2.0 * math.log(2.0) * max(loss, 1e-6) / max(weights, 1)
        if self.fixed is not None:
            self.price = self.fixed

    def measured(self, size: int, bits: float) -> None:
        """A file of `size` bytes was written where `bits` were estimated."""
        self.bytes_per_bit = size / max(bits, 1.0)

    def steer(self, bits: float, progress: float) -> None:
        """Adapt the price to an estimate of the bits, after the share `progress` of all steps."""
        if self.fixed is not None:
            return
        # A few bytes too many are rounded away when the file is written.
        wanted = max(self.limit, self.start + (self.limit - self.start) * min(progress / RAMP, 1.0))
        excess = bits * self.bytes_per_bit / wanted - 1.0
        moved = self.price * math.exp(min(max(GAIN * excess, -FASTEST), FASTEST))
        self.price = min(max(moved, LOWEST * self.first), HIGHEST * self.first)

    def state(self) -> list[float]:
        """For a checkpoint."""
        return [self.price, self.first, self.bytes_per_bit]

    def load(self, state: list[float]) -> None:
        """The inverse of `state`."""
        self.price, self.first, self.bytes_per_bit = state
