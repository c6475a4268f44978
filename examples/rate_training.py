"""Training a network in the integers of its file: weight = step * round(x), the loss plus a price per bit.

    rounded = RoundedNetwork(model, latents, steps)   # x and the steps are trained, straight through rounding
    loss = distance(rounded(images), targets) + price * rounded.rate()
    rounded.refresh()                                 # every few steps: code lengths follow the integers
    data = file_of(rounded)                           # at any time: a .tersor file of exactly this network

The code length of an integer is that of a two-sided geometric distribution whose mean magnitude is predicted
from the means of its row and of its input channel, roughly what the adaptive entropy coder finds by itself.
Pruning and quantisation are one here: an integer that is not worth its bits becomes zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersor.adapters.module import inventory_of_module
from tersor.config import Config
from tersor.encoding import Encoding
from tersor.plan import Plan, affine_of
from tersor.statistics import Statistics
from tersor.synthesis.scalar import ScalarCode
from tersor.synthesis.vector import VectorCode
from tersor.tools.scalar import ROW_RESOLUTION
from tersor.writer import write

GRID = 32
"""Steps are powers 2^(k / 32), the grid of the file."""


class _Round(torch.autograd.Function):
    """Nearest integer; the gradient passes as if nothing were rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class RoundedNetwork(nn.Module):
    """`model` with some of its parameters replaced by step * round(x).

    * `latents`: parameter name -> x of its shape, in steps. `steps`: name -> its step, positive.
    * `rows`: name -> int64 [rows]: exponents of single rows in quarters of an octave, where rows have steps
      of their own: step * 2^(row / 4).
    * `train_steps`: whether steps move (on the file's grid).
    """

    def __init__(
        self,
        model: nn.Module,
        latents: Mapping[str, Tensor],
        steps: Mapping[str, float],
        rows: Mapping[str, Any] | None = None,
        train_steps: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.names = list(latents)
        self.x = nn.ParameterList([nn.Parameter(latents[name].detach().clone()) for name in self.names])
        exponents = torch.tensor([math.log2(steps[name]) for name in self.names])
        self.exponents = nn.Parameter(exponents, requires_grad=train_steps)
        self.rows = {name: np.asarray(row, dtype=np.int64) for name, row in (rows or {}).items()}
        for name, row in self.rows.items():
            factor = torch.exp2(torch.from_numpy(row) / 2.0**ROW_RESOLUTION).to(latents[name].dtype)
            self.register_buffer(self._buffer(name), factor.view(-1, *[1] * (latents[name].ndim - 1)))
        self.slopes: list[Tensor] = []
        self.others = [p for name, p in model.named_parameters() if name not in latents]
        self.refresh()

    def step_index(self) -> list[int]:
        """Of each parameter's step on the logarithmic grid."""
        return [int(k) for k in (self.exponents.detach() * GRID).round()]

    @staticmethod
    def _buffer(name: str) -> str:
        return "rows_" + name.replace(".", "_")

    def integers(self) -> dict[str, Tensor]:
        return {name: x.detach().round() for name, x in zip(self.names, self.x, strict=True)}

    def weights(self) -> dict[str, Tensor]:
        steps = torch.exp2(_Round.apply(self.exponents * GRID) / GRID)  # type: ignore[no-untyped-call]
        found = {}
        for i, (name, x) in enumerate(zip(self.names, self.x, strict=True)):
            found[name] = _Round.apply(x) * steps[i]  # type: ignore[no-untyped-call]
            if name in self.rows:
                found[name] = found[name] * self.get_buffer(self._buffer(name))
        return found

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(self.model, self.weights(), (images,))
        return output

    @torch.no_grad()
    def refresh(self) -> float:
        """Fit the code lengths to the integers as they are; returns the bits of all of them."""
        total, self.slopes = 0.0, []
        for x in self.x:
            q = (
                x.view(x.shape[0], x.shape[1], -1).round().abs()
                if x.ndim > 1
                else x.view(1, 1, -1).round().abs()
            )
            ratio = _geometric(_expected(q))
            slope = -torch.log2(ratio)
            bits = -torch.log2((1 - ratio) / (1 + ratio)) + q * slope
            total += float(bits.sum())
            self.slopes.append(slope.expand_as(q).reshape(x.shape).contiguous())
        return total

    def rate(self) -> Tensor:
        """Bits, as far as they depend on x: small at x = 0, a code length per step beyond."""
        parts = [
            (x.abs() * slope * (2 * x.detach().abs()).clamp(max=1)).sum()
            for x, slope in zip(self.x, self.slopes, strict=True)
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def write_back(self) -> nn.Module:
        """Put the rounded weights into the model; returns it."""
        for name, weight in self.weights().items():
            self.model.get_parameter(name).copy_(weight)
        return self.model


def _expected(q: Tensor) -> Tensor:
    """|q| [rows, inputs, taps] -> expected |q| of each, from the means of its row and its input."""
    mean = q.mean() + 1e-6
    row, column = q.mean((1, 2), keepdim=True), q.mean((0, 2), keepdim=True)
    row = row + 0.5 * mean / math.sqrt(q.shape[1] * q.shape[2])
    column = column + 0.5 * mean / math.sqrt(q.shape[0] * q.shape[2])
    return (row * column / mean).clamp(min=1e-4)


def _geometric(mean: Tensor) -> Tensor:
    """theta of p(q) ~ theta^|q| whose mean |q| is given: mean = 2 theta / (1 - theta^2)."""
    return mean / (torch.sqrt(1 + mean**2) + 1)


def file_of(rounded: RoundedNetwork, statistics: Statistics | None = None, price: float = 1.0) -> bytes:
    """The .tersor file that holds exactly the integers and steps of `rounded`.

    The rest (BatchNorm, biases that are not rounded) is quantised by `statistics` at lambda = `price`, or
    finely without them. All weights of layers must be rounded.
    """
    inventory = inventory_of_module(rounded.write_back())
    encoding = Encoding(Plan(inventory, statistics, Config()), price)
    plan = encoding.plan
    for name, q, k in zip(rounded.names, rounded.integers().values(), rounded.step_index(), strict=True):
        if name in plan.layers:
            integers = q.to(torch.int32).reshape(len(q), -1).contiguous().numpy()
            encoding.scalars[name] = ScalarCode(integers, k, rounded.rows.get(name), ROW_RESOLUTION)
        else:
            encoding.vectors[name] = VectorCode(q.to(torch.int64).numpy(), k)
    for prefix, bn in plan.batchnorms.items():
        scale, shift = affine_of(inventory, bn)
        encoding.encode_batchnorm(prefix, scale, np.zeros_like(scale), shift)
    for name in plan.vectors:
        if name not in encoding.vectors:
            encoding.encode_vector(name, inventory.tensors[name])
    return write(encoding).data
