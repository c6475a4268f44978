"""Calibration batches of every shape that is accepted, as calls of the model; the inputs that are kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.calls import tensors_in
from ..errors import StatisticsError
from ..parallel import Team


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of the model, and how many images they hold."""

    call: tuple[tuple[Any, ...], dict[str, Any]]
    images: int

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        args, kwargs = self.call
        moved = tuple(value.to(device) if isinstance(value, Tensor) else value for value in args)
        return Batch((moved, {key: value.to(device) if isinstance(value, Tensor) else value
                              for key, value in kwargs.items()}), self.images)

    def part(self, images: slice) -> Batch:
        """Some of the images: every tensor whose first axis is the images is cut."""
        def cut(value: Any) -> Any:
            whole = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self.images
            return value[images] if whole else value
        args, kwargs = self.call
        return Batch((tuple(map(cut, args)), {key: cut(value) for key, value in kwargs.items()}),
                      len(range(*images.indices(self.images))))


def read_batches(batches: Iterable[Any] | Tensor, model: nn.Module) -> Iterator[Batch]:
    """Batches as calls of the model, on its device; empty batches are passed over."""
    device = device_of(model)

    def ready(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value.clone() if value.is_inference() else value.detach()).to(device)

    # A bare tensor is taken as all the images at once; iterating it would give images without a batch axis.
    for batch in torch.split(batches, 64) if isinstance(batches, Tensor) else batches:
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(batch, Mapping):
            kwargs = {str(key): ready(value) for key, value in batch.items()}
        else:
            args = (ready(batch[0] if isinstance(batch, tuple | list) else batch),)
        tensor = next(tensors_in((args, kwargs)), None)
        if tensor is None or tensor.ndim == 0:
            raise StatisticsError(f"a calibration batch holds no tensor with an image axis, but "
                                  f"{type(batch).__name__}; give tensors, tuples that begin with one, or "
                                  f"dicts of keyword arguments")
        if len(tensor):
            yield Batch((args, kwargs), len(tensor))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter or buffer is."""
    first = next(iter(tensors_in([list(model.parameters()), list(model.buffers())])), None)
    return first.device if first is not None else torch.device("cpu")


@dataclass
class Samples:
    """The first `keep` inputs, of however many processes, as long as they have one shape."""

    keep: int
    parts: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)  # number of the first image, inputs
    keyword: bool = False

    def add(self, batch: Batch, first: int) -> None:
        """Keep what is wanted of a batch that begins with image number `first`."""
        if first >= self.keep:
            return
        args, kwargs = batch.part(slice(0, self.keep - first)).call
        self.keyword = not args
        part = {key: value.detach().cpu().clone() for key, value in (kwargs or {"input": args[0]}).items()
                if isinstance(value, Tensor)}
        self.parts.append((first, part))

    def join(self, team: Team) -> None:
        """The samples of all processes, on all of them."""
        found = team.gather((self.parts, self.keyword))
        self.parts = sorted((part for parts, _ in found for part in parts), key=lambda part: part[0])
        self.keyword = any(keyword for _, keyword in found)

    def stacked(self) -> Tensor | dict[str, Tensor] | None:
        """One tensor [count, ...] on the CPU, or a dict of them for batches of keyword arguments."""
        if not self.parts:
            return None
        wanted = _shapes(self.parts[0][1])
        # Images of several sizes cannot be one tensor: those before the first other size.
        alike = itertools.takewhile(lambda part: _shapes(part) == wanted, (part for _, part in self.parts))
        chosen = list(alike)
        whole = {key: torch.cat([part[key] for part in chosen]) for key in wanted}
        return whole if self.keyword else whole["input"]


def _shapes(part: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {key: (tensor.dtype, *tensor.shape[1:]) for key, tensor in part.items()}
