"""Batches of inputs from any source: in one fixed order, as often as asked, bad inputs counted and told."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .imports import is_import_path, load_object
from .preprocess import PRESETS, Preprocess
from .sources import ARRAY_SUFFIXES, Arrays, BadInput, ImageFolder, Source

MOST_SKIPPED = 0.05
"""Share of inputs that may be bad."""
BATCH = 32


@dataclass
class Dataset:
    """Iterating gives (inputs [n, ...], labels int64 [n]), or inputs alone where there are no labels.

    * `count`: how many inputs were chosen; those that turn out to be bad are left out and stand in `skipped`
      (name -> reason), once they have been read. More of them than `most_skipped` * `count`: `DataError`.
    * `notes`: what the user should know of how the data was read.
    """

    source: Source
    chosen: list[int]
    batch: int = BATCH
    most_skipped: float = MOST_SKIPPED
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.chosen)

    @property
    def has_labels(self) -> bool:
        return self.source.labels is not None

    def __iter__(self) -> Iterator[Any]:
        inputs: list[Tensor] = []
        indexes: list[int] = []
        shape: tuple[int, ...] | None = None
        for index in self.chosen:
            if self.source.names[index] in self.skipped:
                continue
            try:
                array = self.source.read(index)
                if shape is not None and array.shape != shape:
                    raise BadInput(f"{_size(array.shape)} where the first is {_size(shape)}; --preprocess or "
                                   f"--input-size make all alike")
            except BadInput as error:
                self._skip(index, str(error))
                continue
            shape = array.shape
            inputs.append(torch.from_numpy(array))
            indexes.append(index)
            if len(inputs) == self.batch:
                yield self._stacked(inputs, indexes)
                inputs, indexes = [], []
        if inputs:
            yield self._stacked(inputs, indexes)

    def labels(self) -> Tensor:
        """int64 [n] of all inputs that a whole pass has given."""
        assert self.source.labels is not None
        kept = [index for index in self.chosen if self.source.names[index] not in self.skipped]
        return torch.from_numpy(self.source.labels[kept])

    def _stacked(self, inputs: list[Tensor], indexes: list[int]) -> Any:
        stacked = torch.stack(inputs)
        labels = self.source.labels
        return stacked if labels is None else (stacked, torch.from_numpy(labels[indexes]))

    def _skip(self, index: int, reason: str) -> None:
        self.skipped[self.source.names[index]] = reason
        if len(self.skipped) > self.most_skipped * self.count:
            told = "; ".join(f"{name}: {why}" for name, why in list(self.skipped.items())[-3:])
            raise DataError(f"{len(self.skipped)} of {self.count} inputs are bad, more than "
                            f"{self.most_skipped:.0%}: {told}")


@dataclass
class FromFunction:
    """A `Dataset` whose batches come from a function of the user's, called for each pass."""

    path: str
    function: Any
    most: int | None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    count: int = 0
    has_labels: bool = False

    def __post_init__(self) -> None:
        first = next(iter(self), None)
        if first is None:
            raise DataError(f"{self.path} gives no batches")
        self.has_labels = isinstance(first, tuple) and len(first) > 1

    def __iter__(self) -> Iterator[Any]:
        batches: Iterable[Any] = self.function() if callable(self.function) else self.function
        done = 0
        for batch in [batches] if isinstance(batches, Tensor) else batches:
            parts = list(batch.values()) if isinstance(batch, Mapping) else \
                list(batch) if isinstance(batch, tuple | list) else [batch]
            if not parts or not isinstance(parts[0], Tensor) or parts[0].ndim == 0:
                raise DataError(f"{self.path} gives a {type(batch).__name__} for a batch; wanted are a tensor "
                                f"[n, ...], (inputs, labels), or a dict of keyword arguments")
            size = len(parts[0])
            keep = size if self.most is None else min(size, self.most - done)
            if keep > 0:
                yield _cut(batch, size, keep)
            done += keep
            self.count = max(self.count, done)
            if self.most is not None and done >= self.most:
                return

    def labels(self) -> Tensor:
        """int64 [n] of all inputs."""
        return torch.cat([torch.as_tensor(batch[1]) for batch in self])


def open_data(source: str | os.PathLike[str], chosen: Preprocess | None = None, *,
              labels: str | os.PathLike[str] | None = None, images: int | None = 256,
              most_skipped: float = MOST_SKIPPED, batch: int = BATCH) -> Dataset | FromFunction:
    """Inputs for calibration or evaluation.

    * `source`: a folder of images, with sub-folders for classes or without; an .npz, .npy or .safetensors file (float
      [N, channels, height, width] as the network wants it, or uint8 [N, height, width, channels]); or an import path
      `package.module:function` of a function without arguments that gives batches: tensors, or (inputs, labels).
    * `chosen`: None is "imagenet" for images and "none" for arrays of pixels. `labels`: see `tersor.data.labels`.
    * `images`: so many are used, evenly spread over their order, which is that of the names; None for all.
    * `most_skipped`: share of them that may be bad. `batch`: inputs at a time.

    Raises `DataError`, `ConfigError`, OSError.
    """
    text = os.fspath(source)
    if is_import_path(text) and not os.path.exists(text):
        if chosen is not None or labels is not None:
            raise DataError(f"{text} is a function: what it gives is taken as it is, with its own labels")
        return FromFunction(text, load_object(text), images)
    path = Path(text)
    found: ImageFolder | Arrays
    notes = []
    if path.is_dir():
        found = ImageFolder.open(path, chosen or PRESETS["imagenet"], labels)
        notes += [f"images: {found.preprocess.describe()} (--preprocess imagenet)"] if chosen is None else []
    elif path.suffix in ARRAY_SUFFIXES or not path.exists():
        if not path.exists():
            raise FileNotFoundError(2, "No such file or folder", text)
        found = Arrays.open(path, chosen or PRESETS["none"], labels)
        if found.are_pixels and chosen is None:
            notes.append("arrays: pixels / 255, not normalised; give --preprocess or --mean and --std where the "
                         "network wants it")
        if not found.are_pixels and chosen is not None:
            raise DataError(f"{text} holds {found.array.dtype} {list(found.array.shape)}, which is taken as it is; "
                            f"preprocessing is for images and uint8 [N, height, width, channels]")
    else:
        raise DataError(f"{text} is no folder, nor one of {', '.join(ARRAY_SUFFIXES)}, nor package.module:function")
    return Dataset(found, spread(len(found.names), images), batch, most_skipped, notes=notes)


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` numbers, evenly spread, in order: classes that follow each other all have their share.

    >>> spread(10, 4), spread(3, None)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def _cut(batch: Any, size: int, keep: int) -> Any:
    """The first inputs of a batch."""
    if keep == size:
        return tuple(batch) if isinstance(batch, list) else batch

    def cut(part: Any) -> Any:
        return part[:keep] if isinstance(part, Tensor) and part.ndim and len(part) == size else part

    if isinstance(batch, Mapping):
        return {key: cut(part) for key, part in batch.items()}
    return tuple(map(cut, batch)) if isinstance(batch, tuple | list) else cut(batch)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
