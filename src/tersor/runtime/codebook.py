"""Layers that keep a codebook and small indexes in memory instead of weights.

    model = tersor.runtime.from_file("lenet5.tersor", LeNet5())
    memory_bytes(model)          # of all parameters and buffers, as they are held

The weights are looked up for one call and given back, so a layer's output is, bit for bit, that of the dense
layer with the restored weights: the same operation on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError
from ..synthesis.codebook import CodebookCode
from .layers import Geometry, replace_layers


class _CodebookLayer(nn.Module):
    """Buffers `values` float32 [k] and `index` of the weight's shape; parameter `bias` or None.

    `index` is uint8 up to 256 centres, uint16 up to 65,536, int32 beyond.
    """

    values: Tensor
    index: Tensor

    def __init__(
        self, dense: nn.Conv2d | nn.Linear, values: Tensor, index: npt.NDArray[Any] | Tensor
    ) -> None:
        super().__init__()
        index = torch.as_tensor(index)
        if index.numel() != dense.weight.numel():
            raise ModelError(
                f"{index.numel()} indexes for a {type(dense).__name__} with {dense.weight.numel()} weights"
            )
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < len(values)):
            raise ModelError(
                f"indexes {int(index.min())} to {int(index.max())} into a codebook of {len(values)} values"
            )
        device = dense.weight.device
        self.register_buffer("values", values.detach().to(device, dense.weight.dtype))
        self.register_buffer("index", index.to(_smallest(len(values))).reshape(dense.weight.shape).to(device))
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone())
        self.training = dense.training

    @property
    def weight(self) -> Tensor:
        """The dense weight, looked up anew each time."""
        return self.values[self.index.int()]  # torch would take uint8 for a mask

    def memory_bytes(self) -> int:
        """Bytes that the layer holds: indexes, codebook (in each layer that shares it), bias."""
        return sum(tensor.nbytes for tensor in (self.values, self.index, self.bias) if tensor is not None)


class CodebookLinear(_CodebookLayer):
    """nn.Linear from a codebook: `dense` gives the bias, `values` [k] and `index` [out, in] the weight.

    Raises `ModelError` where the indexes do not fit.
    """

    def __init__(self, dense: nn.Linear, values: Tensor, index: npt.NDArray[Any] | Tensor) -> None:
        super().__init__(dense, values, index)
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, centres={len(self.values)}"


class CodebookConv2d(_CodebookLayer):
    """nn.Conv2d from a codebook, with any stride, padding, padding mode, dilation and groups.

    `dense` gives the geometry and the bias, `values` [k] and `index` [out, in / groups, kh, kw] the weight.
    Raises `ModelError` where the indexes do not fit.
    """

    def __init__(self, dense: nn.Conv2d, values: Tensor, index: npt.NDArray[Any] | Tensor) -> None:
        super().__init__(dense, values, index)
        self.geometry = Geometry.of(dense)

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H', W']
        return self.geometry.convolve(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        out, per_group = self.index.shape[:2]
        channels = per_group * self.geometry.groups
        return f"{channels}, {out}, {self.geometry}, centres={len(self.values)}"


def from_codes(model: nn.Module, codes: Sequence[tuple[Sequence[str], CodebookCode]]) -> nn.Module:
    """Replace, in place, the layers whose weights are named by layers from codebooks; returns the model.

    `codes`: (state-dict names of the weights, their codebook); layers of one
    codebook share one tensor of values. Weights of layers other than Conv2d and Linear, and weights that
    several modules use, stay dense. Raises `ModelError` for a name that the model lacks.
    """
    factories = {}
    for names, code in codes:
        values = torch.from_numpy(np.array(code.values, dtype=np.float32))
        for name, index in zip(names, code.indexes, strict=True):
            factories[name] = partial(_layer, values=values, index=index)
    return replace_layers(model, factories)


def memory_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of a model, each tensor counted once."""
    held = {
        tensor.untyped_storage().data_ptr(): tensor.nbytes
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.numel()
    }
    return sum(held.values())


def _layer(dense: nn.Module, values: Tensor, index: npt.NDArray[Any]) -> nn.Module | None:
    if type(dense) is nn.Linear:
        return CodebookLinear(dense, values, index)
    return CodebookConv2d(dense, values, index) if type(dense) is nn.Conv2d else None


def _smallest(centres: int) -> torch.dtype:
    if centres <= 1 << 8:
        return torch.uint8
    return torch.uint16 if centres <= 1 << 16 else torch.int32
