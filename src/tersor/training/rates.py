"""What an integer costs: -log2 p(|q| | context), counted from the integers as they are.

The adaptive entropy coder predicts how large an integer will be from its row, its column, its channel and the taps
before it, and learns the distribution of each prediction. Here the prediction is made from means, the distributions
are counted over all layers; the estimate is within some per cent of the file, and its slope is what training needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

REACH = 24
"""Beyond this |q| code lengths go on as a straight line."""
CLASSES = 28
"""Of expected magnitudes: half octaves, from 2^-8 to 2^5.5."""
_LOWEST = 8.0


def expected(q: Tensor, taps: int) -> Tensor:
    """|q| of integers [rows, channels * taps], -> what to expect of each |q|, from the means of its row, its channel,
    its tap, and of the other taps of its kernel; same shape."""
    size = q.abs().reshape(len(q), -1, taps)
    mean = size.mean() + 1e-6

    def smooth(dims: tuple[int, ...]) -> Tensor:
        count = size.numel() / max(1, size.mean(dims).numel())
        return (size.mean(dims, keepdim=True) * count + 2.0 * mean) / (count + 2.0)

    found = smooth((1, 2)) * smooth((0, 2)) / mean
    if taps > 1:
        found = found * smooth((0, 1)) / mean
        others = size.sum(2, keepdim=True) - size
        # The more taps agree, the more they know: a kernel is one more witness beside row and channel.
        found = (2.0 * found + others) / (2.0 + (taps - 1))
    return found.reshape(q.shape)


def classes_of(magnitude: Tensor) -> Tensor:
    """int64 classes 0 .. CLASSES - 1 of expected magnitudes."""
    steps = 2.0 * (torch.log2(magnitude.clamp(min=2.0**-_LOWEST)) + _LOWEST)
    return steps.round().clamp(max=CLASSES - 1).long()


class CodeLengths:
    """bits [CLASSES, REACH + 2]: of |q| and its sign; fitted to integers."""

    def __init__(self) -> None:
        self.bits = torch.zeros(CLASSES, REACH + 2)

    def fit(self, members: Sequence[tuple[Tensor, Tensor]]) -> float:
        """Count pairs (integers, their classes); returns the bits of all of them."""
        counts = torch.zeros(CLASSES * (REACH + 2))
        for q, known in members:
            size = q.abs().clamp(max=REACH + 1).long()
            counts += torch.bincount((known * (REACH + 2) + size).flatten().cpu(), minlength=len(counts))
        table = counts.reshape(CLASSES, REACH + 2)
        # Where little was counted: a two-sided geometric distribution with the mean of its class.
        mean = 2.0 ** (torch.arange(CLASSES) / 2.0 - _LOWEST)
        theta = (mean / (torch.sqrt(1.0 + mean**2) + 1.0))[:, None]
        size = torch.arange(REACH + 2.0)
        prior = (1.0 - theta) / (1.0 + theta) * theta**size * torch.where(size > 0, 2.0, 1.0)
        smoothed = table + 8.0 * prior + 1e-6
        self.bits = -torch.log2(smoothed / smoothed.sum(1, keepdim=True))
        self.bits[:, 1:] += 1.0  # the sign
        return float(sum(float(self.of(q, known).sum()) for q, known in members))

    def of(self, q: Tensor, known: Tensor) -> Tensor:
        """Bits of integers, in their shape."""
        bits = self.bits.to(q.device)
        size = q.abs()
        inside = size.clamp(max=REACH).long()
        slope = bits[known, REACH + 1] - bits[known, REACH]
        return bits[known, inside] + (size - inside) * torch.clamp(slope, 0.0, 2.0)

    def surrogate(self, x: Tensor, q: Tensor, known: Tensor) -> Tensor:
        """Bits of all integers q that stand for the latents x, a scalar; its gradient with respect to x is the slope
        of the code length between neighbouring integers, and fades within half a step of 0."""
        with torch.no_grad():
            bits = self.bits.to(x.device)
            below = x.abs().floor().clamp(max=REACH).long()
            slope = (bits[known, below + 1] - bits[known, below]).clamp(-2.0, 6.0)
            slope = slope * torch.sign(x) * (2.0 * x.abs()).clamp(max=1.0)
            value = self.of(q, known).sum()
        leaning = (x * slope).sum()
        return value + leaning - leaning.detach()
