"""Convolutions from a codebook of kernels: codebook and small indexes in memory, fewer multiplications.

    layer = KernelCodebookConv2d(dense, code)        # dense: an nn.Conv2d with the restored weights
    layer.macs((14, 14))                             # multiply-accumulates of the dense layer and of this one
    ratios(layer, dense, x)                          # memory, operations and time over those of the dense layer

Every input channel is convolved once with each of the distinct kernels that the outputs take of it (or with all,
where these are nearly all); an output
is then a sum of such maps, gathered by its indexes, times gains ("Kernel quantization for efficient network
compression", Yu, Shi, Huang, Yu, 2022, makes kernels the unit; that equal kernels need one convolution only
follows from it). Where that takes no fewer multiply-accumulates the dense weight is put together for the call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError
from ..synthesis.kernel_code import KernelCode, channels_of
from .layers import Geometry, replace_layers

Mode: TypeAlias = Literal["auto", "codebook", "dense"]

ROOM = 1 << 24
"""Elements of the maps of input channels that exist at one time."""


WASTE = 2
"""All kernels are applied to all channels where that is at most so many times what is needed."""


class Macs(NamedTuple):
    """Multiply-accumulates for one input."""

    dense: int
    codebook: int


class Ratios(NamedTuple):
    """Of this layer over the dense one; below 1 is better."""

    memory: float
    macs: float
    time: float


class KernelCodebookConv2d(nn.Module):
    """nn.Conv2d from a codebook of kernels, with any stride, padding, padding mode, dilation and groups.

    `dense` gives the geometry and the bias, `code` the weight [out, in / groups, kh, kw]. mode: "auto" takes whatever
    has fewer multiply-accumulates, for each input size. Raises `ModelError` where they do not fit each other.

    Buffers: `values` [k, t], `index` [rows, channels] and `gain` (or None), each of the narrowest integer type that
    holds it; `step` float64 [rows]; parameter `bias` or None. It computes from the codebook only where a kernel of
    the codebook is one of the convolution, not with vectors over several inputs.
    """

    values: Tensor
    index: Tensor
    gain: Tensor | None
    step: Tensor

    def __init__(self, dense: nn.Conv2d, code: KernelCode, mode: Mode = "auto") -> None:
        super().__init__()
        self.shape = tuple(dense.weight.shape)
        if code.index.shape != channels_of(self.shape, code.swapped, code.taps):
            raise ModelError(f"kernel indexes of shape {code.index.shape} do not fit a weight of shape {self.shape}")
        if code.index.size and not (int(code.index.min()) >= 0 and int(code.index.max()) < len(code.values)):
            raise ModelError(f"a kernel index is outside of 0..{len(code.values) - 1}")
        self.geometry = Geometry.of(dense)
        self.swapped, self.mode, self.dtype = code.swapped, mode, dense.weight.dtype
        self.has_kernels = not code.swapped and code.taps == self.geometry.kernel[0] * self.geometry.kernel[1]
        device = dense.weight.device
        self.register_buffer("values", _narrow(code.values).to(device))
        self.register_buffer("index", _narrow(code.index).to(device))
        self.register_buffer("gain", None if code.gain is None else _narrow(code.gain).to(device))
        self.register_buffer("step", torch.from_numpy(np.array(code.row_steps())).to(device))
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone())
        self.training = dense.training
        self.distinct = _distinct(code, self.geometry.groups) if self.has_kernels else 0
        # One matrix product by all kernels is so much quicker than many small ones that some may be in vain.
        every = len(code.values) * code.index.shape[1] * self.geometry.groups
        self.every = every <= WASTE * self.distinct
        self.maps = every if self.every else self.distinct
        self.kernels = int(code.index.size if code.gain is None else np.count_nonzero(code.gain))

    @property
    def weight(self) -> Tensor:
        """The dense weight, put together anew each time: bit for bit what a decoder restores."""
        kernels = self.values.double()[self.index.long()]
        if self.gain is not None:
            kernels = kernels * self.gain.double()[..., None] + 0.0
        rows = (kernels * self.step[:, None, None]).flatten(1)[:, : math.prod(self.shape) // len(self.index)]
        if self.swapped:
            first, second, *rest = self.shape
            rows = rows.reshape(second, first, *rest).transpose(0, 1)
        rows = rows.reshape(self.shape)
        # Narrow types are rounded from float32, as every decoder does it.
        return rows if self.dtype == torch.float64 else rows.float().to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H', W']
        if self.from_codebook((x.shape[2], x.shape[3]), x.shape[0]):
            return self._gathered(x)
        return self.geometry.convolve(x, self.weight, self.bias)

    def from_codebook(self, input_size: tuple[int, int], batch: int = 1) -> bool:
        """Whether inputs of this height and width are computed from the codebook."""
        if self.mode != "auto" or not self.has_kernels:
            return self.mode == "codebook" and self.has_kernels
        counted = self.macs(input_size)
        rebuild = math.prod(self.shape)
        return batch * counted.codebook < batch * counted.dense + rebuild

    def macs(self, input_size: tuple[int, int]) -> Macs:
        """For one input of this height and width: the dense convolution, and the kernels that are applied with one
        multiply-accumulate for each kernel that is gathered. (Putting the dense weight together would cost one for
        each weight, once in a batch.)"""
        high, wide = self.geometry.output_size(*input_size)
        taps = self.geometry.kernel[0] * self.geometry.kernel[1]
        dense = high * wide * math.prod(self.shape)
        if not self.has_kernels:
            return Macs(dense, dense)
        return Macs(dense, high * wide * (self.maps * taps + self.kernels))

    def memory_bytes(self) -> int:
        """Bytes that the layer holds: codebook, indexes, gains, steps, bias."""
        held = (self.values, self.index, self.gain, self.step, self.bias)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def _gathered(self, x: Tensor) -> Tensor:
        groups, (outputs, per_group) = self.geometry.groups, self.index.shape
        k = len(self.values)
        high, wide = self.geometry.output_size(x.shape[2], x.shape[3])
        # All (output, input channel) pairs that have a kernel, output by output; what they take: channel * k + index.
        group = torch.arange(outputs, device=x.device) // (outputs // groups)
        channel = group[:, None] * per_group + torch.arange(per_group, device=x.device)
        taken = channel * k + self.index.long()
        factor = self.step[:, None].expand(outputs, per_group)
        alive = torch.ones_like(taken, dtype=torch.bool)
        if self.gain is not None:
            factor, alive = factor * self.gain, self.gain != 0
        kernels = self.values.to(x.dtype)
        margins, mode = self.geometry.margins(), self.geometry.padding_mode
        x = F.pad(x, margins, mode="constant" if mode == "zeros" else mode)
        out = x.new_zeros(outputs, x.shape[0] * high * wide)
        positions = max(1, x.shape[0] * high * wide)
        step = max(1, ROOM // (positions * max(1, min(k, outputs))))
        for first in range(0, groups * per_group, step):
            part = alive & (channel >= first) & (channel < first + step)
            if not bool(part.any()):
                continue
            if self.every:  # [taps, channels * N * H' * W'], one product
                some = x[:, first : first + step]
                patches = self._patches(some.flatten(0, 1)[:, None]).reshape(len(x), some.shape[1], len(kernels[0]), -1)
                table = (kernels @ patches.permute(2, 1, 0, 3).reshape(len(kernels[0]), -1)).reshape(-1, positions)
                place = taken[part] % k * some.shape[1] + taken[part] // k - first
            else:
                maps, place = torch.unique(taken[part], return_inverse=True)
                patches = self._patches(x[:, maps // k].flatten(0, 1)[:, None])
                patches = patches.reshape(len(x), len(maps), -1, high * wide)
                table = torch.einsum("ndtp,dt->dnp", patches, kernels[maps % k]).reshape(len(maps), positions)
            ends = part.sum(dim=1).cumsum(0)
            starts = torch.cat([ends.new_zeros(1), ends[:-1]])
            out += F.embedding_bag(place, table, starts, mode="sum", per_sample_weights=factor[part].to(x.dtype))
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.reshape(outputs, x.shape[0], high, wide).transpose(0, 1).contiguous()

    def _patches(self, x: Tensor) -> Tensor:
        """Unfold padded images [N, 1, H, W]: [N, taps, H' * W']."""
        return F.unfold(x, self.geometry.kernel, self.geometry.dilation, 0, self.geometry.stride)

    def extra_repr(self) -> str:
        out, per_group = self.shape[:2]
        return f"{per_group * self.geometry.groups}, {out}, {self.geometry}, kernels={len(self.values)}"


def from_kernels(model: nn.Module, codes: Mapping[str, KernelCode], mode: Mode = "auto") -> nn.Module:
    """Replace, in place, the Conv2d layers whose weights are named (state-dict names); returns the model.

    Other layers, and weights that several modules use, stay dense. Raises `ModelError` for a name that the model lacks
    and for codes that do not fit.
    """
    return replace_layers(model, {name: partial(_layer, code=code, mode=mode) for name, code in codes.items()})


def ratios(layer: KernelCodebookConv2d, dense: nn.Conv2d, x: Tensor, repeats: int = 5) -> Ratios:
    """Memory of weights and bias, multiply-accumulates as counted, and time of the layer over those of the dense one.

    time: the quickest of so many calls with `x` [N, in, H, W], of either.
    """
    counted = layer.macs((x.shape[2], x.shape[3]))
    used = counted.codebook if layer.from_codebook((x.shape[2], x.shape[3]), len(x)) else counted.dense
    held = sum(parameter.nbytes for parameter in dense.parameters())
    return Ratios(layer.memory_bytes() / held, used / max(1, counted.dense),
                  _seconds(layer, x, repeats) / _seconds(dense, x, repeats))


def _seconds(module: nn.Module, x: Tensor, repeats: int) -> float:
    best = float("inf")
    with torch.no_grad():
        module(x)
        for _ in range(repeats):
            begun = time.perf_counter()
            module(x)
            best = min(best, time.perf_counter() - begun)
    return max(best, 1e-9)


def _layer(dense: nn.Module, code: KernelCode, mode: Mode) -> nn.Module | None:
    return KernelCodebookConv2d(dense, code, mode) if type(dense) is nn.Conv2d else None


def _distinct(code: KernelCode, groups: int) -> int:
    """Pairs of an input channel and a kernel that some output takes of it."""
    rows, channels = code.index.shape
    group = np.arange(rows) // max(1, rows // groups)
    channel = group[:, None] * channels + np.arange(channels)
    taken = channel * len(code.values) + code.index
    return int(np.unique(taken if code.gain is None else taken[code.gain != 0]).size)


def _narrow(integers: npt.NDArray[Any]) -> Tensor:
    """The narrowest integer type that holds all."""
    low, high = (int(integers.min()), int(integers.max())) if integers.size else (0, 0)
    for dtype in (np.uint8, np.int8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return torch.from_numpy(integers.astype(dtype))
    return torch.from_numpy(integers.astype(np.int32))
