"""Batches to train on, from inputs of the user's: drawn by a seed, as views, with what the network is to answer."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..evaluate import compare, logits
from ..packed import Packed
from ..restored import restore
from . import losses
from .loop import adam, finetune
from .recovery import blended, shifted

MOST_BYTES = 4 << 30
"""Of inputs that are held in memory."""
VIEWS = ("shift", "mirror", "blend")
"""What may be done to an input: moved by up to an eighth of its extent and mirrored (images), blended with another."""


@dataclass(frozen=True)
class Samples:
    """Inputs [N, ...], and labels int64 [N] where there are some."""

    inputs: Tensor
    labels: Tensor | None = None

    @classmethod
    def of(cls, batches: Iterable[Any], what: str) -> Samples:
        """All of some batches: tensors, or (inputs, labels). Raises `ConfigError` where they take over `MOST_BYTES`,
        or are other things than tensors; `what` says in the message where they come from."""
        inputs: list[Tensor] = []
        labels: list[Tensor] = []
        size = 0
        for batch in batches:
            pair = batch if isinstance(batch, tuple | list) else (batch,)
            if not pair or not isinstance(pair[0], Tensor):
                raise ConfigError(f"{what} gives batches of {type(pair[0] if pair else batch).__name__}: tensors are "
                                  f"needed, or (inputs, labels). tersor.finetune in Python takes what the model takes")
            size += pair[0].numel() * pair[0].element_size()
            if size > MOST_BYTES:
                raise ConfigError(f"{what}: the inputs take more than {MOST_BYTES / 2 ** 30:g} GiB of memory; give "
                                  f"--images N to use fewer, or call tersor.finetune with a DataLoader of yours")
            if inputs and (pair[0].shape[1:], pair[0].dtype) != (inputs[0].shape[1:], inputs[0].dtype):
                raise ConfigError(f"{what} gives inputs of shape {list(pair[0].shape[1:])} ({pair[0].dtype}) after "
                                  f"those of {list(inputs[0].shape[1:])} ({inputs[0].dtype}); all must be alike")
            if pair[0].is_floating_point() and not bool(torch.isfinite(pair[0]).all()):
                raise ConfigError(f"{what} gives inputs with NaN or infinity; mend or leave out that data")
            inputs.append(pair[0])
            labels += [torch.as_tensor(part) for part in pair[1:2]]
            if labels and len(labels) == len(inputs) and labels[-1].shape != (len(pair[0]),):
                raise ConfigError(f"{what} gives labels of shape {list(labels[-1].shape)} for {len(pair[0])} inputs: "
                                  f"one class, a whole number, is needed for each")
        if not inputs:
            raise ConfigError(f"{what} has no inputs")
        known = len(labels) == len(inputs)
        return cls(torch.cat(inputs), torch.cat(labels).long() if known else None)

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, which: Tensor) -> Samples:
        """Those of some indexes."""
        return Samples(self.inputs[which], None if self.labels is None else self.labels[which])

    def split(self, share: float) -> tuple[Samples, Samples]:
        """Most of them, and `share` of them, evenly spread. Raises `ConfigError` where one of the two is empty."""
        count = round(share * len(self))
        if not 0 < count < len(self):
            raise ConfigError(f"{len(self)} inputs, of which {share:.1%} are held out to judge files by: some must be "
                              f"left on either side")
        kept = torch.zeros(len(self), dtype=torch.bool)
        kept[torch.arange(count) * len(self) // count] = True
        return self.part((~kept).nonzero().ravel()), self.part(kept.nonzero().ravel())


class Lessons:
    """What a network is to learn from samples: its own answers, and their labels where these count.

    * `model`: the network that was compressed. `label_weight`: 0 to 1; of the labels in the loss, the rest is distance
      from the answers (`losses.taught`); 0: batches are inputs alone, as `finetune` takes them without a loss.
    * `views`: of VIEWS, for training. `batch`: inputs at a time.

    Raises `ConfigError` for options that do not go together.
    """

    def __init__(self, model: nn.Module, training: Samples, *, label_weight: float = 0.0, views: Sequence[str] = (),
                 batch: int = 64, seed: int = 0, autocast: torch.dtype | None = None) -> None:
        if unknown := [view for view in views if view not in VIEWS]:
            raise ConfigError(f"views={unknown[0]!r} is not one of {', '.join(VIEWS)}")
        if label_weight > 0.0 and training.labels is None:
            raise ConfigError("labels are to count in the loss, and there are none: give --labels FILE, or inputs in "
                              "class sub-folders")
        if label_weight > 0.0 and "blend" in views:
            raise ConfigError("views=blend: blended inputs have no label; leave it away, or labels")
        if not training.inputs.is_floating_point() and views:
            raise ConfigError(f"inputs are {training.inputs.dtype}, of which there are no views")
        if training.inputs.ndim != 4 and {"shift", "mirror"} & set(views):
            raise ConfigError(f"inputs have shape {list(training.inputs.shape)}: only images [N, channels, height, "
                              f"width] can be shifted and mirrored")
        self.model, self.training, self.views, self.batch = model, training, views, min(batch, len(training))
        self.label_weight, self.seed, self.autocast = label_weight, seed, autocast

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.training) // self.batch

    @property
    def loss(self) -> losses.Loss | None:
        """For `finetune`."""
        return losses.taught(self.label_weight) if self.label_weight > 0.0 else None

    def epoch(self, number: int) -> Iterator[Any]:
        """All samples once, in an order and as views that the seed and the number tell."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        order = torch.randperm(len(self.training), generator=generator)
        for chosen in torch.split(order[: self.steps * self.batch], self.batch):
            samples = self.training.part(chosen)
            yield self._asked(Samples(self._view(samples.inputs, generator), samples.labels))

    def judging(self, samples: Samples) -> list[Any]:
        """Samples as they are, in batches."""
        return [self._asked(samples.part(which)) for which in torch.split(torch.arange(len(samples)), self.batch)]

    def _asked(self, samples: Samples) -> Any:
        inputs = samples.inputs
        if self.label_weight == 0.0:
            return inputs
        with torch.no_grad(), losses.autocast(self.autocast, inputs):
            answers = losses.logits_of(losses.call(self.model, inputs))
        labels = samples.labels
        assert labels is not None
        if int(labels.min()) < 0 or int(labels.max()) >= answers.shape[-1]:
            raise ConfigError(f"labels go from {int(labels.min())} to {int(labels.max())}; the model has "
                              f"{answers.shape[-1]} classes, from 0 on")
        return inputs, (answers, labels)

    def _view(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        if "shift" in self.views:
            inputs = shifted(inputs, generator, "mirror" in self.views)
        elif "mirror" in self.views:
            flipped = torch.rand(len(inputs), generator=generator) < 0.5
            inputs = torch.where(flipped[:, None, None, None], inputs.flip(3), inputs)
        return blended(inputs, generator) if "blend" in self.views else inputs


def tuned_on(packed: Packed, model: nn.Module, training: Samples, judges: Samples, *, steps: int,
             epochs: int | None = None, size: int | None = None, label_weight: float = 0.0,
             views: Sequence[str] | None = None, batch: int = 64, rate: float | None = None,
             patience: int | None = None, seed: int = 0, bfloat16: bool = False,
             state: str | os.PathLike[str] | None = None, progress: Callable[[str], None] | None = None) -> Packed:
    """`finetune` on samples that are held in memory; the file of the lowest loss on `judges`.

    * `views`: None: images are shifted and mirrored, other inputs stay as they are.
    * `epochs`: passes over `training`, instead of `steps` batches. `rate`: Adam's learning rate of integers, in steps.
    * `state`: a folder for the checkpoint. All else as in `finetune` and `Lessons`, which say what they raise.
    """
    if views is None:
        views = ("shift", "mirror") if training.inputs.ndim == 4 and training.inputs.is_floating_point() else ()
    autocast = torch.bfloat16 if bfloat16 else None
    lessons = Lessons(model, training, label_weight=label_weight, views=views, batch=batch, seed=seed,
                      autocast=autocast)

    if state is not None:
        os.makedirs(state, exist_ok=True)
    return finetune(packed, model, lessons.epoch, loss=lessons.loss, size=size,
                    optimizer=adam() if rate is None else adam(latents=rate),
                    steps=steps if epochs is None else epochs * lessons.steps, held_out=lessons.judging(judges),
                    patience=patience, autocast=autocast, seed=seed, progress=progress,
                    checkpoint=None if state is None else os.path.join(state, "finetune.checkpoint"))


def compared(model: nn.Module, files: Sequence[Packed], judges: Samples, batch: int = 64) -> list[dict[str, float]]:
    """How far each file, restored, is from the model on samples (`tersor.evaluate.compare`)."""
    batches = torch.split(judges.inputs, batch)
    reference = logits(model, batches)
    found = []
    for packed in files:
        outputs = logits(restore(packed.data, into=copy.deepcopy(model)), batches)
        figures = compare(reference, outputs, judges.labels).as_dict()
        found.append({name: value for name, value in figures.items() if value is not None})
    return found
