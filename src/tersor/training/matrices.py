"""A matrix of integers as a parameter: weights, coefficients or a basis, in units of their steps.

Each integer has a latent x. Without a trellis the integer is the nearest one, and the gradient passes straight through
the rounding. With a trellis the integers are the path that comes nearest to the latents, searched now and then; in
between, the levels move with the latents, so that gradients see where they would like to go.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..synthesis.scalar import MAX_REACH, SHIFT_UNIT, ScalarCode
from ..synthesis.transform import BlockCode
from . import trellis
from .rates import CodeLengths, classes_of, expected
from .rounding import rounded, rounded_within

LEAN = 0.3
"""How far a latent may begin from the middle of its step, in steps."""


DEARER = 2.0
"""With a trellis, price of a bit in squared sub-steps for a step of `Matrix.dead`."""


class Matrix(nn.Module):
    """The integers of a basis or of coefficients; `latents` [rows, columns] is the parameter, in steps (sub-steps, with
    a trellis). Steps, depths and shifts stay.

    `code`: where training begins. `taps`: of a kernel, neighbouring columns. `like`: dtype and device.
    """

    step: Tensor  # [rows, 1], of blocks [rows, columns]; 0 where a block has no bits
    low: Tensor
    high: Tensor
    path: Tensor  # integers of the trellis, [rows, columns]
    offset: Tensor  # levels of the path less the latents that it was searched for
    known: Tensor  # class of each integer's code length

    def __init__(self, code: ScalarCode | BlockCode, taps: int, like: Tensor) -> None:
        super().__init__()
        self.code, self.taps = code, taps
        self.trellis = code.trellis if isinstance(code, ScalarCode) else 0
        self.is_coded = isinstance(code, ScalarCode)
        self.dead = 0.0  # so much nearer to zero are latents taken for, in steps, when they are rounded
        empty = np.zeros((0, 0))
        low = high = offset = empty
        if isinstance(code, ScalarCode):
            step = code.row_steps()[:, None]
        else:
            step = replace(code, q=np.ones(code.q.shape, np.int32)).matrix()
            low, high = np.zeros_like(step), np.zeros_like(step)
            lows, highs = code.cuts.view(low), code.cuts.view(high)
            for box, depth in zip(code.boxes(), code.depths.tolist(), strict=True):
                lows[box], highs[box] = -(1 << depth >> 1), max((1 << depth >> 1) - 1, 0)
        latents = code.q.astype(np.float64)
        if self.trellis:
            latents, offset = trellis.levels(code.q, self.trellis).astype(np.float64), np.zeros(code.q.shape)
        for name, value in (("step", step), ("low", low), ("high", high), ("offset", offset)):
            self.register_buffer(name, torch.from_numpy(np.array(value)).to(like), persistent=name == "offset")
        path = np.array(code.q, dtype=np.int32) if self.trellis else empty.astype(np.int32)
        self.register_buffer("path", torch.from_numpy(path).to(like.device))
        known = torch.zeros(code.q.shape, dtype=torch.int64, device=like.device)
        self.register_buffer("known", known, persistent=False)
        self.latents = nn.Parameter(torch.from_numpy(latents).to(like))

    def integers(self) -> Tensor:
        """[rows, columns], of floating type; differentiable, straight through the rounding (not of a trellis)."""
        if self.trellis:
            return self.path.to(self.latents.dtype)
        if self.is_coded and self.dead > 0.0:
            return rounded(self.latents - self.dead * self.latents.detach().clamp(-1.0, 1.0))
        if self.is_coded:
            return rounded(self.latents)
        return rounded_within(self.latents, self.low, self.high)

    def forward(self) -> Tensor:
        """The elements as a decoder has them, levels times steps."""
        if self.trellis:
            return (self.latents + self.offset) * self.step
        q = self.integers()
        if isinstance(self.code, ScalarCode) and any(self.code.shift):
            size = q.detach().abs()
            shift = torch.where(size > 1, self.code.shift[1], self.code.shift[0]) / SHIFT_UNIT
            q = q - torch.where(size > MAX_REACH, 0.0, q.detach().sign() * shift)
        return q * self.step

    @torch.no_grad()
    def lean(self, wanted: Tensor, reach: float = LEAN) -> None:
        """Move latents, within their steps, towards elements [rows, columns] that were there before quantisation.

        reach: in steps, at most half; integers stay.
        """
        inverse = torch.where(self.step > 0, 1.0 / self.step, 0.0)
        away = (wanted.to(self.latents) * inverse - self.latents).clamp(-reach, reach)
        self.latents.add_(away)
        if self.trellis:
            self.offset.sub_(away)

    @torch.no_grad()
    def settle(self) -> None:
        """With a trellis, search the path that is nearest to the latents as they are now."""
        if not self.trellis:
            return
        latents = self.latents.double().cpu().numpy()
        path = trellis.search(latents, self.trellis, DEARER * self.dead)
        self.path.copy_(torch.from_numpy(path))
        self.offset.copy_(torch.from_numpy(trellis.levels(path, self.trellis)).to(self.latents) - self.latents)

    @torch.no_grad()
    def classify(self) -> tuple[Tensor, Tensor]:
        """The integers and the classes of their code lengths, which are kept for `rate`."""
        q = self.integers()
        self.known = classes_of(expected(q, self.taps)) if q.numel() else self.known
        return q, self.known

    def rate(self, lengths: CodeLengths) -> Tensor:
        """Bits, a scalar; differentiable with respect to the latents."""
        q = self.integers().detach()
        if self.trellis:  # two sub-steps to an integer
            return lengths.surrogate(self.latents / 2.0, q, self.known)
        return lengths.surrogate(self.latents, q, self.known)

    def coded(self) -> ScalarCode | BlockCode:
        """The code as it is now."""
        return replace(self.code, q=self.integers().detach().cpu().numpy().astype(np.int32))
