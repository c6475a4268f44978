"""BatchNorms and small tensors in training, rounded to the grids that the file has them on."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..synthesis import grid
from ..synthesis.batchnorm import MAX_OCTAVE, BatchNormCode
from ..synthesis.vector import VectorCode
from .rounding import rounded

MAX_INDEX = 1 << 30
"""Integers of shifts and small tensors stay within this."""


class AffineMaps(nn.Module):
    """BatchNorms of a file as y = a z + b per channel. Parameters: log2 |a|, and b in units of its root mean square;
    both float64, and
    rounded to the file's grid when they are used. Signs, and scales that are zero, stay.

    names: (weight, bias) of each. weights: like which the tensors shall be.
    """

    def __init__(self, names: Sequence[tuple[str, str]], codes: Sequence[BatchNormCode],
                 weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.names, self.first = list(names), list(codes)
        self._dtypes = [weight.dtype for weight in weights]
        self.scales, self.shifts = nn.ParameterList(), nn.ParameterList()
        self._units = [_unit(code.shift(), code.shift_step_index) for code in codes]
        for i, (code, unit, weight) in enumerate(zip(codes, self._units, weights, strict=True)):
            index = code.scale_index / float(1 << code.resolution)
            self.scales.append(nn.Parameter(torch.from_numpy(index).to(weight.device)))
            self.shifts.append(nn.Parameter(torch.from_numpy(code.shift() / unit).to(weight.device)))
            sign = torch.from_numpy(code.scale_sign.astype(np.float64)).to(weight.device)
            self.register_buffer(f"sign_{i}", sign, persistent=False)

    def _indexes(self, i: int) -> tuple[Tensor, Tensor]:
        """Of scales and shifts, float64; differentiable."""
        fine = 1 << self.first[i].resolution
        step = self._units[i] / float(grid.value(self.first[i].shift_step_index))
        limit = MAX_OCTAVE * fine
        return (rounded(self.scales[i] * fine).clamp(-limit, limit),
                rounded(self.shifts[i] * step).clamp(-MAX_INDEX, MAX_INDEX))

    def tensors(self, only: Container[str] | None = None) -> dict[str, Tensor]:
        """Weights and biases as a decoder restores them, by name; differentiable."""
        out = {}
        for i, (weight, bias) in enumerate(self.names):
            if only is not None and weight not in only and bias not in only:
                continue
            scale, shift = self._indexes(i)
            a = self.get_buffer(f"sign_{i}") * torch.exp2(scale / (1 << self.first[i].resolution))
            out[weight] = a.to(self._dtypes[i])
            out[bias] = (shift * float(grid.value(self.first[i].shift_step_index))).to(self._dtypes[i])
        return out

    @torch.no_grad()
    def codes(self) -> list[BatchNormCode]:
        """The codes as they are now."""
        out = []
        for i, code in enumerate(self.first):
            scale, shift = (part.cpu().numpy().astype(np.int64) for part in self._indexes(i))
            out.append(replace(code, scale_index=scale, shift_index=shift))
        return out


class SmallTensors(nn.Module):
    """Biases and other small tensors of a file, float64 in units of their root mean square; rounded when they are
    used."""

    def __init__(self, names: Sequence[str], codes: Sequence[VectorCode], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.names, self.first = list(names), list(codes)
        self._dtypes = [weight.dtype for weight in weights]
        self._units = [_unit(code.values(), code.step_index) for code in codes]
        self.values = nn.ParameterList(
            # One of zeros has been absorbed by a BatchNorm, and its step says nothing: it stays.
            nn.Parameter(torch.from_numpy(np.asarray(code.values() / unit)).to(weight.device),
                         requires_grad=bool(code.index.any()))
            for code, unit, weight in zip(codes, self._units, weights, strict=True))

    def _index(self, i: int) -> Tensor:
        step = self._units[i] / float(grid.value(self.first[i].step_index))
        return rounded(self.values[i] * step).clamp(-MAX_INDEX, MAX_INDEX)

    def tensors(self, only: Container[str] | None = None) -> dict[str, Tensor]:
        """As a decoder restores them, by name; differentiable."""
        return {name: (self._index(i) * float(grid.value(self.first[i].step_index))).to(self._dtypes[i])
                for i, name in enumerate(self.names) if only is None or name in only}

    @torch.no_grad()
    def codes(self) -> list[VectorCode]:
        """The codes as they are now."""
        return [replace(code, index=self._index(i).cpu().numpy().astype(np.int64))
                for i, code in enumerate(self.first)]


def _unit(values: np.ndarray, step_index: int) -> float:
    """Root mean square; of zeros, 256 steps."""
    size = float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
    return size or 256.0 * float(grid.value(step_index))
