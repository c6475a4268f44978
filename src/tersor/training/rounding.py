"""Rounding that gradients pass straight through (Bengio, Leonard, Courville, arXiv 1308.3432), and looking up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Rounded(torch.autograd.Function):
    """The nearest integer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _RoundedWithin(torch.autograd.Function):
    """The nearest integer of a range; the gradient passes where the result is not clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward((x >= low - 0.5) & (x <= high + 0.5))
        return torch.minimum(torch.maximum(torch.round(x), low), high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


class _Lookup(torch.autograd.Function):
    """values[index]; backwards the sum over the members of each centre, accumulated in float64."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.centres = len(values)
        return values[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (index,) = ctx.saved_tensors
        sums = torch.zeros(ctx.centres, dtype=torch.float64, device=gradient.device)
        sums.index_add_(0, index.flatten(), gradient.flatten().double())
        return sums.to(gradient.dtype), None


def rounded(x: Tensor) -> Tensor:
    """The nearest integers, of the dtype of x; the gradient is that of x."""
    result: Tensor = _Rounded.apply(x)  # type: ignore[no-untyped-call]
    return result


def rounded_within(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The nearest integers within low .. high (broadcast); no gradient where x is beyond them by more than a half."""
    result: Tensor = _RoundedWithin.apply(x, low, high)  # type: ignore[no-untyped-call]
    return result


def look_up(values: Tensor, index: Tensor) -> Tensor:
    """values [k] (any float dtype) at index (int64, any shape), differentiable with respect to the values."""
    result: Tensor = _Lookup.apply(values, index)  # type: ignore[no-untyped-call]
    return result
