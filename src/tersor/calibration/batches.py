"""Calibration batches of every shape that is accepted, as calls of the model; the inputs that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.calls import tensors_in
from ..errors import StatisticsError


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of the model, and how many images they hold."""

    call: tuple[tuple[Any, ...], dict[str, Any]]
    images: int

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
    first = next(iter(tensors_in([list(model.parameters()), list(model.buffers())])), None)
    device = first.device if first is not None else torch.device("cpu")

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


@dataclass
class Samples:
    """The first `keep` inputs, as long as they have one shape."""

    keep: int
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    count: int = 0
    keyword: bool = False

    def add(self, batch: Batch) -> None:
        """Keep what is still wanted of this batch."""
        if self.count >= self.keep:
            return
        args, kwargs = batch.part(slice(0, self.keep - self.count)).call
        self.keyword = not args
        part = {key: value.detach().cpu().clone() for key, value in (kwargs or {"input": args[0]}).items()
                if isinstance(value, Tensor)}
        if self.parts and _shapes(part) != _shapes(self.parts[0]):
            self.keep = self.count  # images of several sizes cannot be one tensor
            return
        self.parts.append(part)
        self.count += len(next(iter(part.values())))

    def stacked(self) -> Tensor | dict[str, Tensor] | None:
        """One tensor [count, ...] on the CPU, or a dict of them for batches of keyword arguments."""
        if not self.parts:
            return None
        whole = {key: torch.cat([part[key] for part in self.parts]) for key in self.parts[0]}
        return whole if self.keyword else whole["input"]


def _shapes(part: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {key: (tensor.dtype, *tensor.shape[1:]) for key, tensor in part.items()}
