"""Shared values in training: a codebook whose indexes stay fixed.

Deep Compression (Han et al. 2016, section 3.3) and LNQ (Choi et al. 2017, section 3.1): the gradient of a
centre is the sum of the gradients of its members, dL/dc_j = sum over i in C_j of dL/dw_i.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..synthesis.codebook import CodebookCode
from .rounding import look_up


class SharedValues(nn.Module):
    """Weights that are looked up in one trained codebook.

    `values` [k] is the parameter, float64 in units of its root mean square; a centre that is exactly zero
    (`code.zero >= 0`) stays zero, and with it every pruned weight. Values travel as float16 where those of `code` do.
    Raises `ModelError` naming a weight that has another number of elements.
    """

    moving: Tensor

    def __init__(self, names: Sequence[str], code: CodebookCode, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.names, self.code = tuple(names), code
        values = torch.from_numpy(np.array(code.values, dtype=np.float64)).to(weights[0].device)
        with np.errstate(over="ignore"):
            self.is_half = np.array_equal(code.values.astype(np.float16).astype(np.float32), code.values)
        self.unit = float(values.square().mean().sqrt()) or 1.0
        moving = torch.ones_like(values)
        if code.zero >= 0:
            moving[code.zero] = 0.0
        self.register_buffer("moving", moving, persistent=False)
        self._dtypes = [weight.dtype for weight in weights]
        for i, (name, index, weight) in enumerate(zip(names, code.indexes, weights, strict=True)):
            if weight.numel() != np.size(index):
                raise ModelError(f"{name}: {np.size(index)} indexes for {weight.numel()} weights")
            shaped = torch.from_numpy(np.array(index, dtype=np.int64)).view(weight.shape)
            self.register_buffer(f"index_{i}", shaped.to(weight.device), persistent=False)
        self.values = nn.Parameter(values / self.unit)

    def _stored(self) -> Tensor:
        """The values as a file holds them; the gradient passes the rounding."""
        exact = self.values * self.unit * self.moving
        stored = exact.detach().half() if self.is_half else exact.detach().float()
        return exact + (stored.double() - exact.detach())

    def tensors(self, only: Container[str] | None = None) -> dict[str, Tensor]:
        """The weights as they are looked up, by name; differentiable."""
        values = self._stored()
        return {name: look_up(values, self.get_buffer(f"index_{i}")).to(dtype)
                for i, (name, dtype) in enumerate(zip(self.names, self._dtypes, strict=True))
                if only is None or name in only}

    @torch.no_grad()
    def codes(self) -> list[CodebookCode]:
        """The codebook as it is now; ascending again where centres have passed each other."""
        values = self._stored().cpu().numpy().astype(np.float32)
        order = np.argsort(values, kind="stable")
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        zero = int(rank[self.code.zero]) if self.code.zero >= 0 else -1
        return [replace(self.code, values=values[order], indexes=[rank[index] for index in self.code.indexes],
                        zero=zero)]
