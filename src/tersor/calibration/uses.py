"""What a forward pass does with each weight: recorded here, turned into matrices once gradients are there.

A `DenseUse` gives, for a range of images, two matrices of columns, one column per position p:

    inputs  U [groups, n, images, P]      outputs  Z' [groups, m / groups, images, P]

with the gradient of the weight matrix of image i = sum_p Z'[:, :, i, p] U[:, :, i, p]^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..adapters.calls import LAYER_CALLS, argument
from ..adapters.inventory import Inventory, WeightLayer
from ..errors import StatisticsError
from .patches import Geometry, at_positions, groups_of_call, to_matrix, windows


@dataclass(eq=False)
class Use:
    """One call: `x` what went in, `edge` where the gradient of what came out can be asked for.

    `images`: how many images the rows of the call belong to. It is the batch size where the first axis
    is a multiple of it; else 1: all rows are taken as one image. (The random signs of different images
    are independent, so that the square of a sum over images estimates the sum of the squares.)
    """

    name: str
    x: Tensor
    edge: GradientEdge
    images: int
    version: int
    bias: str | None

    def check(self) -> None:
        """Raise `StatisticsError` if the input was overwritten after the call."""
        if self.x._version != self.version:
            raise StatisticsError(f"{self.name}: its input is overwritten in place after use, so it cannot "
                                  f"be measured; make that operation not in-place")


@dataclass(eq=False)
class DenseUse(Use):
    """A linear layer. `transposed`: the weight is an embedding that is used as an output layer, so that the
    rows of its matrix view are the layer's inputs."""

    groups: int
    transposed: bool

    @property
    def as_embedding(self) -> bool:
        """Whether U holds gradients of words, of which only the diagonal of U U^T is wanted."""
        return self.transposed

    def dimensions(self, grad: Tensor) -> tuple[int, int, int]:
        """(n, m / groups, positions per image)."""
        n, m = self.x.shape[-1], grad.shape[-1]
        if self.transposed:
            n, m = m, n
        return n, m, self.x.numel() // max(1, self.x.shape[-1] * self.images)

    def row_count(self, grad: Tensor) -> int:
        """Into how many slabs the positions of one image can be cut."""
        return 1

    def sides(self, grad: Tensor, images: slice, rows: slice) -> tuple[Tensor, Tensor]:
        """(U, Z') of a range of images; strided views, not copies."""
        return self._order(*(self._rows(t)[images].permute(2, 0, 1)[None] for t in (self.x, grad)))

    def sampled(self, grad: Tensor, images: slice, index: Tensor) -> tuple[Tensor, Tensor]:
        """(U, Z') at chosen positions: index [images, S]."""
        first = torch.arange(index.shape[0], device=index.device)[:, None]
        return self._order(*(self._rows(t)[images][first, index].permute(2, 0, 1)[None]
                             for t in (self.x, grad)))

    def bias_gradient(self, grad: Tensor) -> Tensor:
        """Gradient of the bias per image [images, outputs]."""
        return self._rows(grad).sum(1)

    def _rows(self, tensor: Tensor) -> Tensor:
        return _wide(tensor).reshape(self.images, -1, tensor.shape[-1])

    def _order(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return (z, u) if self.transposed else (u, z)


@dataclass(eq=False)
class ConvUse(DenseUse):
    """A convolution, or (`transposed`) a transposed one, where the windows are taken from the output."""

    geometry: Geometry

    @property
    def as_embedding(self) -> bool:
        return False

    @property
    def axes(self) -> int:
        """1, 2 or 3."""
        return len(self.geometry.kernel)

    def dimensions(self, grad: Tensor) -> tuple[int, int, int]:
        taps = math.prod(self.geometry.kernel)
        n, m = self.x.shape[-1 - self.axes] // self.groups, grad.shape[-1 - self.axes] // self.groups
        sizes = self._narrow(grad).shape[2:]
        positions = self._narrow(grad).shape[0] // self.images * math.prod(sizes)
        return (n, m * taps, positions) if self.transposed else (n * taps, m, positions)

    def row_count(self, grad: Tensor) -> int:
        return self._narrow(grad).shape[2]

    def sides(self, grad: Tensor, images: slice, rows: slice) -> tuple[Tensor, Tensor]:
        view, narrow = self._views(grad, images)
        count = images.stop - images.start
        return self._order(to_matrix(view[:, :, rows], count, self.groups, self.axes),
                           to_matrix(narrow[:, :, rows], count, self.groups, self.axes))

    def sampled(self, grad: Tensor, images: slice, index: Tensor) -> tuple[Tensor, Tensor]:
        view, narrow = self._views(grad, images)
        sizes, count = narrow.shape[2:], index.shape[0]
        index = index % math.prod(sizes) if view.shape[0] != count else index
        index = index.repeat_interleave(view.shape[0] // count, 0)
        return self._order(to_matrix(at_positions(view, index, sizes), count, self.groups, 1),
                           to_matrix(at_positions(narrow, index, sizes), count, self.groups, 1))

    def bias_gradient(self, grad: Tensor) -> Tensor:
        grad = _wide(self._batched(grad)).flatten(2).sum(2)
        return grad.reshape(self.images, grad.shape[0] // self.images, grad.shape[1]).sum(1)

    def _batched(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.ndim == self.axes + 2 else tensor[None]

    def _narrow(self, grad: Tensor) -> Tensor:
        return self._batched(self.x if self.transposed else grad)

    def _views(self, grad: Tensor, images: slice) -> tuple[Tensor, Tensor]:
        """Windows [N, C, *positions, *kernel] of one side, and the other side [N, C, *positions]."""
        wide, narrow = self._batched(grad if self.transposed else self.x), self._narrow(grad)
        each = narrow.shape[0] // self.images
        part = slice(images.start * each, images.stop * each)
        narrow = _wide(narrow[part])
        return windows(_wide(wide[part]), self.geometry, narrow.shape[2:]), narrow


@dataclass(eq=False)
class LookupUse(Use):
    """An embedding: `x` int64 [T] are the rows that are read; row t adds `factor[t]` times itself to row
    `target[t]` of the output [targets, D]."""

    factor: Tensor
    target: Tensor
    targets: int

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """(image [T], gradient [T, D] that each read row receives)."""
        rows = _wide(grad).reshape(self.targets, -1)[self.target] * self.factor[:, None]
        return self.target // (self.targets // self.images), rows


@dataclass(eq=False)
class BatchNormUse(Use):
    """A BatchNorm in eval mode on x [N, C, ...]; `centre` [C] its running mean."""

    centre: Tensor

    def sums(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z = x - centre [N, C, P], and per image [images, C]: sum of gradient * z, sum of gradient."""
        shape = self.x.shape[0], self.x.shape[1], -1
        z, g = _wide(self.x).reshape(shape) - _wide(self.centre)[:, None], _wide(grad).reshape(shape)
        each = self.images, self.x.shape[0] // self.images, self.x.shape[1]
        return z, (g * z).sum(2).reshape(each).sum(1), g.sum(2).reshape(each).sum(1)


class Recorder(TorchFunctionMode):
    """Records the uses of known weights and BatchNorms while a model runs.

    `odd` are weights that are used in a way that has no matrix statistics (see `_role`).
    """

    def __init__(self, inventory: Inventory, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.layers = {layer.name: layer for layer in inventory.layers}
        self.batchnorms = {bn.running_mean: bn.prefix for bn in inventory.batchnorms}
        self.odd: set[str] = set()
        self.uses: list[Use] = []
        self.images = 1

    @contextmanager
    def batch(self, images: int) -> Iterator[list[Use]]:
        """Record a forward of `images` images into the list that is given."""
        self.images, self.uses = images, []
        with self:
            yield self.uses

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in LAYER_CALLS:
            layer = self.layers.get(self.names.get(id(argument(args, kwargs, 1, "weight")), ""))
            result = func(*args, **kwargs)
            if layer is not None:
                self._layer(layer, func, args, kwargs, result)
            return result
        result = func(*args, **kwargs)
        if func is F.batch_norm:
            mean = argument(args, kwargs, 1, "running_mean")
            prefix = self.batchnorms.get(self.names.get(id(mean), ""))
            if prefix is not None and not argument(args, kwargs, 5, "training", False):
                x = argument(args, kwargs, 0, "input")
                common = self._common(prefix, x, result, x.shape[0])
                self.uses.append(BatchNormUse(prefix, **common, centre=mean))
        return result

    def _common(self, name: str, x: Tensor, result: Tensor, lead: int, bias: object = None) -> dict[str, Any]:
        if not result.requires_grad:
            raise StatisticsError(
                f"{name}: no gradient can reach this layer: it runs under torch.no_grad or inference_mode, "
                f"or the model detaches it; calibrate a model whose forward can be differentiated")
        return {"x": x.detach(), "edge": get_gradient_edge(result), "version": x._version,
                "images": self.images if lead % self.images == 0 else 1, "bias": self.names.get(id(bias))}

    def _layer(self, layer: WeightLayer, func: Callable[..., Any], args: Sequence[Any],
               kwargs: Mapping[str, Any], result: Any) -> None:
        kind, name = LAYER_CALLS[func], layer.name
        x, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        bias = argument(args, kwargs, 2, "bias") if kind != "embedding" else None
        if kind == "linear" and layer.kind in ("linear", "matrix", "embedding"):
            common = self._common(name, x, result, x.shape[0] if x.ndim > 1 else 1, bias)
            self.uses.append(DenseUse(name, **common, groups=1, transposed=layer.kind == "embedding"))
        elif (layer.kind == kind and kind in ("conv", "conv_transposed")
              and layer.groups == groups_of_call(args, kwargs)):
            axes, transposed = weight.ndim - 2, kind == "conv_transposed"
            common = self._common(name, x, result, x.shape[0] if x.ndim == axes + 2 else 1, bias)
            geometry = Geometry.of_call(args, kwargs, weight.shape[2:], transposed)
            self.uses.append(ConvUse(name, **common, groups=layer.groups, transposed=transposed,
                                     geometry=geometry))
        elif layer.kind == kind == "embedding" and func is F.embedding:
            common = self._common(name, x, result, x.shape[0] if x.ndim > 0 else 1)
            count = x.numel()
            self.uses.append(LookupUse(name, **_flat(common), targets=count, factor=_ones(count, result),
                                       target=torch.arange(count, device=x.device)))
        elif layer.kind == kind == "embedding" and argument(args, kwargs, 6, "mode", "mean") != "max":
            self._bags(name, args, kwargs, result)
        else:
            self.odd.add(name)

    def _bags(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> None:
        """F.embedding_bag: sums or means of rows, bags given as rows of a matrix or by offsets."""
        x = argument(args, kwargs, 0, "input")
        weights = argument(args, kwargs, 8, "per_sample_weights")
        padding = argument(args, kwargs, 10, "padding_idx")
        bags = result.shape[0]
        if x.ndim == 2:
            target = torch.arange(bags, device=x.device).repeat_interleave(x.shape[1])
        else:
            offsets = argument(args, kwargs, 2, "offsets")[:bags].long()
            target = torch.bucketize(torch.arange(x.numel(), device=x.device), offsets, right=True) - 1
        common = self._common(name, x, result, bags)
        common = _flat(common)
        factor = _ones(x.numel(), result) if weights is None else _wide(weights.detach()).reshape(-1)
        if padding is not None:
            factor = factor * (common["x"] != padding)
        if argument(args, kwargs, 6, "mode", "mean") == "mean":
            lengths = torch.zeros(bags, dtype=factor.dtype, device=x.device).index_add(0, target, factor)
            factor = factor / lengths[target].clamp(min=1)
        self.uses.append(LookupUse(name, **common, targets=bags, factor=factor, target=target))


def _flat(common: dict[str, Any]) -> dict[str, Any]:
    flat = common["x"].reshape(-1).long()
    return common | {"x": flat, "version": flat._version}


def _ones(count: int, like: Tensor) -> Tensor:
    return torch.ones(count, device=like.device, dtype=_wide(like.detach()[:0]).dtype)


def _wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
