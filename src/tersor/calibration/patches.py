"""The input patches of an N-dimensional convolution, as a strided view and as matrices.

Our own unfold, because torch's knows only two dimensions. Padding modes other than zeros never arrive here:
torch pads by a call of its own before it convolves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters.calls import argument


@dataclass(frozen=True)
class Geometry:
    """Kernel size, stride, dilation, and zero padding before and after, one number per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @staticmethod
    def of_call(args: Sequence[Any], kwargs: Mapping[str, Any], kernel: Sequence[int],
                transposed: bool) -> Geometry:
        """From the arguments of F.conv*d or F.conv_transpose*d; `padding` may be "same" or "valid".

        For a transposed convolution this is the geometry of its gradient: windows of the *output*.
        """
        axes = len(kernel)
        stride = _each(argument(args, kwargs, 3, "stride", 1), axes)
        dilation = _each(argument(args, kwargs, 7 if transposed else 5, "dilation", 1), axes)
        padding = argument(args, kwargs, 4, "padding", 0)
        if padding == "same":
            # torch: left = total // 2, the rest on the right.
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            before = tuple(t // 2 for t in total)
            after = tuple(t - b for t, b in zip(total, before, strict=True))
        else:
            before = after = _each(0 if padding == "valid" else padding, axes)
        return Geometry(tuple(kernel), stride, dilation, before, after)


def groups_of_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The argument `groups`, which has the same place in both kinds of convolution."""
    return int(argument(args, kwargs, 6, "groups", 1))


def windows(x: Tensor, geometry: Geometry, sizes: Sequence[int]) -> Tensor:
    """View of x [N, C, *L] as [N, C, *positions, *kernel]; `sizes` is how many positions there are.

    Only padding copies; taps share memory.

    >>> g = Geometry((2,), (1,), (1,), (0,), (0,))
    >>> windows(torch.tensor([[[1, 2, 3]]]), g, (2,)).tolist()
    [[[[1, 2], [2, 3]]]]
    """
    # A transposed convolution with output padding reaches past the last window: nothing to add, only to cut.
    padding = [p for pair in zip(geometry.before[::-1], geometry.after[::-1], strict=True) for p in pair]
    if any(padding):
        x = F.pad(x, padding)
    strides = x.stride()
    steps = [s * step for s, step in zip(strides[2:], geometry.stride, strict=True)]
    taps = [s * d for s, d in zip(strides[2:], geometry.dilation, strict=True)]
    return x.as_strided((*x.shape[:2], *sizes, *geometry.kernel), (*strides[:2], *steps, *taps),
                        x.storage_offset())


def to_matrix(view: Tensor, images: int, groups: int, axes: int) -> Tensor:
    """[images * k, C, *positions (axes of them), *kernel] -> [groups, C / groups * taps, images, k * P].

    Row order: channel major, taps inner, as a weight [out, C / groups, *kernel] has it.
    """
    kernel = view.ndim - 2 - axes
    count, channels, *rest = view.shape
    view = view.reshape(images, count // images, groups, channels // groups, *rest)  # only splits: no copy
    order = [2, 3, *range(4 + axes, 4 + axes + kernel), 0, 1, *range(4, 4 + axes)]
    view = view.permute(order)
    rows = math.prod(view.shape[1:2 + kernel])
    return view.reshape(groups, rows, images, math.prod(view.shape[3 + kernel:]))


def at_positions(view: Tensor, index: Tensor, sizes: Sequence[int]) -> Tensor:
    """Chosen positions of a [N, C, *positions, *kernel] view: index [N, S] -> [N, C, S, *kernel] (a copy)."""
    axes = len(sizes)
    first = torch.arange(view.shape[0], device=index.device)[:, None]
    where = torch.unravel_index(index, tuple(sizes))
    moved = view.permute(0, *range(2, 2 + axes), 1, *range(2 + axes, view.ndim))
    return moved[(first, *where)].movedim(2, 1)


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    values = tuple(int(v) for v in value)
    return values * axes if len(values) == 1 else values
