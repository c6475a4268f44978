"""Layers that compute in the transform domain: y = S(T x), with only the rows of T that are not zero.

    layer = TransformConv2d(dense, code)         # dense: an nn.Conv2d with the restored weights
    layer.macs((14, 14))                         # multiply-accumulates before and after

A convolution is one with 1 x 1 kernels by the input basis, one with the coefficients, and one with 1 x 1
kernels by the output basis, where there is one ("Transform quantization for CNN compression", Young et al.,
TPAMI 2021, section 5). Maps over taps cost nothing: they are folded into the coefficients' kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError
from ..synthesis.transform import TransformCode
from ..synthesis.transform_maps import Matrix
from .layers import Geometry, replace_layers


class Macs(NamedTuple):
    """Multiply-accumulates for one input."""

    dense: int
    transformed: int


class Stages(NamedTuple):
    """A layer as up to three maps, float64; `first` and `last` are None where they are folded into `kernel`.

    * `first`: [k, n], or where `joint` [k, n * taps]. `kernel`: [p, k, taps], where `joint` [p, k, 1].
    * `last`: [m, p].
    """

    first: Matrix | None
    kernel: Matrix
    last: Matrix | None
    joint: bool

    def cost(self, taps: int, area: int) -> int:
        """Multiply-accumulates for each output position; area: input positions for each output position."""
        out = self.kernel.size
        if self.first is not None:
            out += self.first.size * (1 if self.joint else area)
        return out + (0 if self.last is None else self.last.size)


def paper_ratio(n: int, m: int, a: int, b: int, k: int) -> float:
    """Operations with k of n basis vectors over those of the dense layer, as the paper counts them.

    (0.5 n k + a b m k) / (a b m n) for n inputs, m outputs and kernels of a x b: the basis counts half,
    because it can be brought into triangular form. `macs` counts what these layers really do: n k.

    >>> round(paper_ratio(256, 256, 3, 3, 64), 4)
    0.2639
    """
    return (0.5 * n * k + a * b * m * k) / (a * b * m * n)


def stages(code: TransformCode, shape: tuple[int, ...], area: int = 1, fold: bool = True) -> Stages:
    """The maps of a weight [m, n, ...] without those basis vectors whose coefficients are all zero.

    fold: multiply a map into the coefficients where that takes fewer operations; `area` as in `Stages.cost`.
    Raises `ModelError` where code and shape do not fit each other.
    """
    try:
        sizes = code.matrix_shapes(shape)
        if (sizes[-1].rows, sizes[-1].columns) != code.coefficients.q.shape:
            raise ValueError(f"coefficients of shape {code.coefficients.q.shape}")
        maps = code.maps(shape)
        kernel = code.coefficients.matrix().astype(np.float64).reshape(code.coefficient_extents(shape))
    except ValueError as error:
        raise ModelError(f"a transform does not fit a weight of shape {shape}: {error}") from error
    taps = maps.kernel()
    if taps is not None:
        kernel = kernel @ taps
    first, last = maps.channels, None if maps.rows is None else maps.rows.T
    if code.swapped:
        if code.joint:
            raise ModelError("a joint basis over outputs and taps has no transform-domain form")
        kernel = kernel.swapaxes(0, 1)
        first, last = maps.rows, None if maps.channels is None else maps.channels.T
    if first is not None:
        live = kernel.any(axis=(0, 2))
        first, kernel = first[live], kernel[:, live]
    if last is not None:
        live = kernel.any(axis=(1, 2))
        last, kernel = last[:, live], kernel[live]
    count = math.prod(shape[2:])
    if not kernel.size:  # a layer of zeros: convolutions of no channels do not exist
        return Stages(None, np.zeros((shape[0], math.prod(shape[1:2]), count)), None, False)
    whole = Stages(first, kernel, last, code.joint)
    return _cheapest(whole, count, area) if fold else whole


def _cheapest(whole: Stages, taps: int, area: int) -> Stages:
    """Of all ways to fold maps into the kernel; the one with fewer maps where they cost the same."""
    forms = [whole] if whole.last is None else [_without_last(whole), whole]
    if whole.first is not None:
        forms = [*(_without_first(form, taps) for form in forms), *forms]
    return min(forms, key=lambda form: form.cost(taps, area))


def _without_last(form: Stages) -> Stages:
    assert form.last is not None
    return form._replace(kernel=np.einsum("mp,pkt->mkt", form.last, form.kernel, optimize=True), last=None)


def _without_first(form: Stages, taps: int) -> Stages:
    assert form.first is not None
    if form.joint:
        kernel = form.kernel[:, :, 0] @ form.first
        return Stages(None, kernel.reshape(len(kernel), -1, taps), form.last, False)
    return form._replace(first=None, kernel=np.einsum("pkt,kn->pnt", form.kernel, form.first, optimize=True))


class _TransformLayer(nn.Module):
    """Parameters `first`, `weight`, `last` and `bias`; see `Stages`. None where absent."""

    first: nn.Parameter | None
    weight: nn.Parameter
    last: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, dense: nn.Conv2d | nn.Linear, made: Stages, kernel: tuple[int, ...]) -> None:
        super().__init__()
        joint = made.joint and made.first is not None
        ones = (1,) * len(kernel)

        def parameter(matrix: Matrix | None, *shape: int) -> nn.Parameter | None:
            if matrix is None:
                return None
            values = torch.from_numpy(np.ascontiguousarray(matrix)).reshape(shape)
            return nn.Parameter(values.to(dense.weight.device, dense.weight.dtype))

        p, k, _ = made.kernel.shape
        self.first = parameter(made.first, k, -1, *(kernel if joint else ones))
        weight = parameter(made.kernel, p, k, *(ones if joint else kernel))
        assert weight is not None
        self.weight = weight
        self.last = parameter(made.last, dense.weight.shape[0], p, *ones)
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone())
        self.joint = joint
        self.outputs = dense.weight.shape[0]
        self.dense_size = dense.weight.numel()
        self.training = dense.training

    @property
    def is_dense(self) -> bool:
        """Whether all maps are folded into the weight: nothing is gained over the dense layer."""
        return self.first is None and self.last is None and self.weight.numel() >= self.dense_size

    def memory_bytes(self) -> int:
        """Bytes that the layer holds: bases, coefficients, bias."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def _ranks(self) -> str:
        inner = self.weight.shape[1] if self.first is not None else "-"
        outer = self.weight.shape[0] if self.last is not None else "-"
        return f"ranks={inner}, {outer}"


class TransformLinear(_TransformLayer):
    """nn.Linear in the transform domain: `dense` gives sizes and bias, `code` the weight [out, in].

    fold: see `stages`. Raises `ModelError` where they do not fit each other.
    """

    def __init__(self, dense: nn.Linear, code: TransformCode, fold: bool = True) -> None:
        super().__init__(dense, stages(code, tuple(dense.weight.shape), 1, fold), ())
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        if self.first is not None:
            x = F.linear(x, self.first)
        if self.last is None:
            return F.linear(x, self.weight, self.bias)
        return F.linear(F.linear(x, self.weight), self.last, self.bias)

    def macs(self, positions: int = 1) -> Macs:
        """Multiply-accumulates for `positions` input vectors, before and after."""
        sizes = (x.numel() for x in (self.first, self.weight, self.last) if x is not None)
        return Macs(positions * self.dense_size, positions * sum(sizes))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._ranks()}"


class TransformConv2d(_TransformLayer):
    """nn.Conv2d in the transform domain, with any stride, padding, padding mode and dilation.

    `dense` gives the geometry and the bias, `code` the weight [out, in / groups, kh, kw]. With groups, bases
    over channels are multiplied out: only maps over taps keep the groups apart. fold: see `stages`. Raises
    `ModelError` where code and weight do not fit each other.
    """

    def __init__(self, dense: nn.Conv2d, code: TransformCode, fold: bool = True) -> None:
        geometry = Geometry.of(dense)
        shape = tuple(dense.weight.shape)
        made = stages(code, shape, geometry.stride[0] * geometry.stride[1], fold)
        if geometry.groups > 1:
            made = _dense(made, geometry.kernel[0] * geometry.kernel[1])
        super().__init__(dense, made, geometry.kernel)
        self.geometry = geometry

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H', W']
        convolve = self.geometry.convolve
        bias = self.bias if self.last is None else None
        if self.joint and self.first is not None:
            x = F.conv2d(convolve(x, self.first), self.weight, bias)
        else:
            # Rows of zeros in the padding, or repeated pixels, stay such under a 1 x 1 convolution.
            x = x if self.first is None else F.conv2d(x, self.first)
            x = convolve(x, self.weight, bias)
        return x if self.last is None else F.conv2d(x, self.last, self.bias)

    def macs(self, input_size: tuple[int, int]) -> Macs:
        """Multiply-accumulates for one input of this height and width, before and after."""
        before = input_size[0] * input_size[1]
        high, wide = self.geometry.output_size(*input_size)
        after = high * wide
        first = 0 if self.first is None else self.first.numel() * (after if self.joint else before)
        last = 0 if self.last is None else self.last.numel() * after
        return Macs(self.dense_size * after, first + self.weight.numel() * after + last)

    def extra_repr(self) -> str:
        return f"{self.outputs}, {self._ranks()}, {self.geometry}"


def _dense(made: Stages, taps: int) -> Stages:
    made = made if made.last is None else _without_last(made)
    return made if made.first is None else _without_first(made, taps)


def from_transforms(model: nn.Module, codes: Mapping[str, TransformCode]) -> nn.Module:
    """Replace, in place, the layers whose weights are named where the transform domain takes fewer operations.

    codes: state-dict name of a weight -> its transform. Returns the model. Other layers than Conv2d and Linear,
    and weights that several modules use, stay dense. Raises `ModelError` for a name that the model lacks and for
    codes that do not fit.
    """
    return replace_layers(model, {name: partial(_layer, code=code) for name, code in codes.items()})


def _layer(dense: nn.Module, code: TransformCode) -> nn.Module | None:
    if code.swapped and code.joint:
        return None
    if type(dense) is nn.Linear:
        layer: _TransformLayer = TransformLinear(dense, code)
    elif type(dense) is nn.Conv2d:
        layer = TransformConv2d(dense, code)
    else:
        return None
    return None if layer.is_dense else layer
