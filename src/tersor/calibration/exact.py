"""Sums that come out the same, bit for bit, in whatever order and on however many processes their parts are added.

Every part is first rounded to a multiple of a unit, a power of two, so coarse that float64 adds such multiples
without any rounding: then addition is associative. (The idea of Demmel and Nguyen, Fast Reproducible Floating-Point
Summation, ARITH 2013, with one fixed bin.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MANTISSA = 53
HEADROOM = 18
"""A sum may grow to 2^HEADROOM times what the probe's images gave before float64 rounds again (which loses no more
than the promise); the unit is 2^(HEADROOM - MANTISSA), 3e-11, of the probe's largest sum."""
_SLAB = 1 << 22
"""Elements that are rounded at a time."""


@dataclass(eq=False)
class Sum:
    """`value`: float64, contiguous, what has been added so far. Parts are rounded to multiples of `unit`; 0 leaves
    them as they are."""

    value: Tensor
    unit: float = 0.0

    @staticmethod
    def zeros(shape: Sequence[int], device: torch.device | None = None) -> Sum:
        return Sum(torch.zeros(tuple(shape), dtype=torch.float64, device=device))

    def add(self, part: Tensor, scale: float = 1.0) -> None:
        """Add a tensor of the sum's size and any floating dtype, times `scale`."""
        total, flat = self.value.view(-1), part.reshape(-1)
        # Adding and taking away 1.5 * 2^52 units leaves whole units, ties to even.
        magic = 1.5 * 2.0 ** (MANTISSA - 1) * self.unit
        for first in range(0, len(total), _SLAB):
            wide = flat[first : first + _SLAB].to(torch.float64, copy=True)
            if scale != 1.0:
                wide *= scale
            total[first : first + _SLAB] += wide.add_(magic).sub_(magic)

    def begin(self) -> None:
        """Take the unit from the largest element of what a probe has added, and start at zero."""
        largest = float(self.value.abs().amax()) if self.value.numel() else 0.0
        # A subnormal unit, or a magic number beyond the range, would do more harm than good.
        usable = 2.0**-900 < largest < 2.0**900
        self.unit = 2.0 ** (math.frexp(largest)[1] + HEADROOM - MANTISSA) if usable else 0.0
        self.value.zero_()
