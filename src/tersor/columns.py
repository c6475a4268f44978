"""A layer's inputs in the original and the partly compressed network, as columns for the moments of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .adapters.calls import LAYER_CALLS, argument
from .calibration.patches import Geometry, at_positions, groups_of_call, to_matrix, windows
from .threads import in_order
from .tools.target import LayerTarget

PATCHES = 128 << 20
"""Bytes of unfolded patches at a time."""

POSITIONS, FEWEST_POSITIONS, WALKED = 64, 16, 320
"""Positions per image that the moments of a convolution's input are averaged over, and how few they become where there
are more images than WALKED. (ResNet-20: with 320 images 256 give the same as 64, and 32 lose 0.2 dB; with 1,280 images
64 / 32 / 16 give 16.51 / 16.51 / 16.48 dB on held-out images at 1.3 bits/weight, and 320 images with 64 give 16.20.)"""


class Columns:
    """Input columns u [groups, n, count] of a layer's call, at all or at randomly chosen positions."""

    def __init__(self, target: LayerTarget, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any],
                 generator: torch.Generator, images: int) -> None:
        self.kind = LAYER_CALLS[func]
        self.positions = max(FEWEST_POSITIONS, POSITIONS * min(images, WALKED) // max(images, 1))
        self.generator = generator
        self.groups = 1
        if self.kind != "linear":
            kernel = argument(args, kwargs, 1, "weight").shape[2:]
            self.geometry = Geometry.of_call(args, kwargs, kernel, self.kind == "conv_transposed")
            self.groups = groups_of_call(args, kwargs)

    def bytes_per_image(self, x: Tensor, z: Tensor) -> int:
        """Of the unfolded patches of both networks."""
        if self.kind == "linear":
            return 2 * x[0].numel() * x.element_size()
        taps = int(np.prod(self.geometry.kernel))
        return 2 * taps * x.shape[1] * min(self.positions, int(np.prod(z.shape[2:]))) * x.element_size()

    def of(self, u: Tensor, v: Tensor, z: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(u, u^, s - s^) as columns [groups, n or m, count] of images of both networks."""
        if self.kind == "linear":
            flat = [part.reshape(-1, part.shape[-1]).T[None] for part in (u, v)]
            return flat[0], flat[1], None
        sizes = (u if self.kind == "conv_transposed" else z).shape[2:]
        index = None
        if int(np.prod(sizes)) > self.positions:
            index = torch.randint(int(np.prod(sizes)), (len(u), self.positions), generator=self.generator)
        first, second = in_order(lambda part: self._pick(part, index, sizes, windowed=self.kind == "conv"), (u, v))
        if s is None or self.kind == "conv_transposed":
            return first, second, None
        return first, second, self._pick(s, index, sizes, windowed=False)

    def _pick(self, part: Tensor, index: Tensor | None, sizes: Sequence[int], windowed: bool) -> Tensor:
        view = windows(part, self.geometry, sizes) if windowed else part
        axes = len(sizes)
        if index is not None:
            view, axes = at_positions(view, index, sizes), 1
        return to_matrix(view, len(part), self.groups, axes).flatten(2)
