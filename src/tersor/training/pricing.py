"""The price of a bit in the loss, steered so that the file has the size that it shall have."""

from __future__ import annotations

import math
from dataclasses import dataclass

RAMP = 0.4
"""Share of the steps within which a smaller size is reached."""
AHEAD = 0.08
"""Share of the steps that sizes are foretold for, by how they change now. A price acts slowly, by moving integers
step by step: steered by the size of the moment it would swing far beyond what is needed, and back."""
GAIN = 30.0
"""A price moves by a factor of e within `AHEAD` where the foretold size is off by 1 / GAIN, and never faster."""
SMOOTH = 0.1
"""Share of `AHEAD` over which changes of the size are averaged."""
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
    last: float = 0.0  # bits at the last estimate
    seen: float = 0.0  # progress at the last estimate
    trend: float = 0.0  # bits per progress

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
        passed = progress - self.seen
        if self.fixed is not None or passed <= 0.0 or self.last <= 0.0:
            self.last, self.seen = bits, progress
            return
        share = min(passed / (SMOOTH * AHEAD), 1.0)
        self.trend += share * ((bits - self.last) / passed - self.trend)
        self.last, self.seen = bits, progress
        # A few bytes too many are rounded away when the file is written.
        wanted = max(self.limit, self.start + (self.limit - self.start) * min((progress + AHEAD) / RAMP, 1.0))
        foretold = max(bits + AHEAD * self.trend, 0.0) * self.bytes_per_bit
        moved = min(max(GAIN * (foretold / wanted - 1.0), -1.0), 1.0) * passed / AHEAD
        self.price = min(max(self.price * math.exp(moved), LOWEST * self.first), HIGHEST * self.first)

    def state(self) -> list[float]:
        """For a checkpoint."""
        return [self.price, self.first, self.bytes_per_bit, self.last, self.seen, self.trend]

    def load(self, state: list[float]) -> None:
        """The inverse of `state`."""
        self.price, self.first, self.bytes_per_bit, self.last, self.seen, self.trend = state
