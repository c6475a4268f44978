"""What layers that compute from a compressed form have in common: geometry, and taking a dense layer's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError


@dataclass(frozen=True)
class Geometry:
    """Of a Conv2d: everything but its weights."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str

    @classmethod
    def of(cls, dense: nn.Conv2d) -> Geometry:
        """That of a Conv2d."""
        def pair(values: tuple[int, ...]) -> tuple[int, int]:
            return values[0], values[1]

        padding = dense.padding if isinstance(dense.padding, str) else pair(dense.padding)
        return cls(pair(dense.kernel_size), pair(dense.stride), padding, pair(dense.dilation), dense.groups,
                   dense.padding_mode)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of [N, C, H, W] with weights [out, C / groups, kh, kw], as the Conv2d would do it."""
        if self.padding_mode == "zeros":
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        x = F.pad(x, self.margins(), mode=self.padding_mode)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    def margins(self) -> list[int]:
        """left, right, top, bottom, as F.pad takes them."""
        margins: list[int] = []
        for axis in (1, 0):
            if self.padding == "same":
                total = self.dilation[axis] * (self.kernel[axis] - 1)
                margins += [total // 2, total - total // 2]
            else:
                pad = 0 if isinstance(self.padding, str) else self.padding[axis]
                margins += [pad, pad]
        return margins

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out."""
        left, right, top, bottom = self.margins()
        sides = ((height + top + bottom, 0), (width + left + right, 1))
        high, wide = ((side - self.dilation[axis] * (self.kernel[axis] - 1) - 1) // self.stride[axis] + 1
                      for side, axis in sides)
        return high, wide

    def __str__(self) -> str:
        return (f"kernel_size={self.kernel}, stride={self.stride}, padding={self.padding}, "
                f"dilation={self.dilation}, groups={self.groups}")


def replace_layers(model: nn.Module,
                   factories: Mapping[str, Callable[[nn.Module], nn.Module | None]]) -> nn.Module:
    """Replace layers of `model`, in place, and return it.

    factories: state-dict name of a weight -> what makes the new layer from the dense one, or None to keep it.
    Weights that several modules use, and those of a model that is a single layer, stay. Raises `ModelError`
    for a name that the model lacks.
    """
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1
    for name, make in factories.items():
        path, _, leaf = name.rpartition(".")
        try:
            dense = model.get_submodule(path)
            weight = getattr(dense, leaf)
        except AttributeError as error:
            raise ModelError(f"{name}: the model has no such weight") from error
        if leaf != "weight" or users.get(id(weight), 0) != 1 or not path:
            continue
        layer = make(dense)
        if layer is not None:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
    return model
