"""The ready loop: train a packed model under the rate, and give back the best file."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..adapters.calls import undisturbed
from ..errors import ConfigError, TargetError
from ..packed import Packed
from ..parallel import ALONE, Team
from . import checkpoint as checkpoints
from . import losses, together
from .kernels import KernelBooks
from .losses import Loss
from .matrices import LEAN
from .pricing import Pricing
from .shared import SharedValues
from .trainable import Trainable

Batches: TypeAlias = Iterable[Any] | Callable[[int], Iterable[Any]]
"""What can be iterated once per epoch (a list, a DataLoader), or a function of the epoch's number."""
MakeOptimizer: TypeAlias = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
MakeScheduler: TypeAlias = Callable[[torch.optim.Optimizer], Any]

REFRESH = 10
"""Steps between two fits of the code lengths (and searches of trellises)."""
STEERED = 40
"""In short trainings, so many of these fits."""
SLACK = 16
"""Bytes that a file with codebooks may grow by, unless its size is given: how their values and small tensors are coded
cannot be foretold to a byte, and they have no integers that could be rounded away to make up for it."""
LEAST = 0.02
"""Share of the first loss that the price of a bit begins with at least."""
LOOKS = 10
"""How often the file is written and judged, if `every` does not say."""


def finetune(packed: Packed, model: nn.Module, batches: Batches, *, loss: Loss | None = None,
             optimizer: MakeOptimizer | None = None, scheduler: MakeScheduler | None = None,
             epochs: int | None = None, steps: int | None = None, size: int | None = None,
             rate_weight: float | None = None, held_out: Iterable[Any] | None = None, every: int | None = None,
             patience: int | None = None, checkpoint: str | os.PathLike[str] | None = None,
             autocast: torch.dtype | None = None, reassign: float | None = None, lean: float = LEAN, seed: int = 0,
             team: Team = ALONE, progress: Callable[[str], None] | None = None) -> Packed:
    """Train what a file holds, under the rate: its integers, bases, codebooks, BatchNorms and biases.

    * `packed`: from `tersor.compress`. `model`: the network that was compressed, with its original weights; it is not
      changed.
    * `batches`: see `Batches`. A batch is a tensor, a dict of keyword arguments, or a tuple that begins with those.
    * `loss(outputs, targets)`: a scalar; targets are the second element of a batch. None: the divergence of the outputs
      from those of `model`, for which no labels are needed (distillation; give logits).
    * `optimizer`: makes one from parameter groups with learning rates (`Trainable.groups`): by default
      `torch.optim.Adam`. `scheduler`: makes a schedule from it, stepped after each batch: by default a cosine.
    * `steps` or `epochs`: batches to train on, or passes; 3 epochs by default.
    * `size`: bytes that the file shall have at most; that of `packed` by default (with kernels or shared values, 16
      bytes more: not every byte of theirs can be steered). A smaller one is reached within the first 40% of the steps.
      The price of a bit is steered for it, unless `rate_weight` fixes the price: loss per bit. (A file of so many
      bits at which halving the size doubles the loss is worth about loss / bits.)
    * `held_out`: batches that files are judged on. Of a list of batches, by default, the last tenth, which is then not
      trained on.
    * `every`: steps between two looks at the file (a tenth of all by default), `patience`: looks without improvement
      after which training ends.
    * `checkpoint`: a file to keep the state in at every look. With the same arguments training goes on from it,
      to the same result. When all is done it stays, and answers at once.
    * `autocast`: dtype of the forward pass. `reassign`: rate at which indexes of kernels are chosen anew after each
      epoch (`KernelBooks.reassign`). `lean`: see `Trainable`.
    * `seed`: of torch's generator; the caller's is untouched. With the same batches, two runs on a CPU give the same
      bytes.
    * `team`: the processes that train together (`tersor.parallel.everybody()`). All call with the same arguments but
      batches: each trains on batches of its own, as large as the others' (a `DistributedSampler` deals them out), and
      judges by held-out ones of its own or the same as all. Gradients are averaged after each batch, so that n
      processes learn from n batches at a time; `steps` counts those of one. All get the same file. Rank 0 keeps the
      checkpoint; the number of processes must then stay the same.
    * `progress`: called with a line of text at every look.

    Returns the file of the lowest loss on `held_out` among those of at most `size` bytes; `packed` itself where
    nothing better was found. Raises `ConfigError` (options, no batches, a loss that is not finite), `TargetError`
    (no file was as small as `size`), `ModelError` (another model).
    """
    job = _Job(packed, model, loss, seed, autocast, progress, lean, team)
    training, judges = _held_out(batches, held_out)
    total = _steps(training, steps, epochs)
    slack = SLACK if any(isinstance(part, KernelBooks | SharedValues) for part in job.trainable.parts) else 0
    limit = packed.size + slack if size is None else size
    if limit < 1 or (rate_weight is not None and not rate_weight >= 0.0) or (patience is not None and patience < 1):
        raise ConfigError(f"size={size}, rate_weight={rate_weight}, patience={patience}: sizes and patience must be "
                          f"at least 1, a price not negative")
    every = max(1, total // LOOKS) if every is None else every
    pricing = Pricing(packed.size, limit, rate_weight)
    run = Run(job, team, training, judges, total, max(1, every), patience, pricing, reassign)
    together.agree(team, checkpoints.fingerprint(run), "fine-tuning")
    with torch.random.fork_rng(), torch.enable_grad(), team.guarded():
        torch.manual_seed(seed + team.rank)
        run.prepare(optimizer, scheduler)
        run.go(None if checkpoint is None else Path(checkpoint))
    return run.result()


class _Job:
    """What is trained, and how one batch is judged."""

    def __init__(self, packed: Packed, model: nn.Module, loss: Loss | None, seed: int, autocast: torch.dtype | None,
                 progress: Callable[[str], None] | None, lean: float, team: Team) -> None:
        self.packed, self.own_loss, self.autocast, self.progress = packed, loss, autocast, progress
        self.seed, self.team = seed, team
        self.model, self.mode = model, model.training
        self.trainable = Trainable(packed, model, lean=lean)
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False) if loss is None else None

    def loss(self, batch: Any, network: nn.Module | None = None) -> Tensor:
        """Of the trained network, or another, on a batch; differentiable."""
        inputs, targets = losses.split(batch, self.own_loss is not None)
        with losses.autocast(self.autocast, inputs):
            outputs = losses.call(network or self.trainable, inputs)
            if self.own_loss is not None:
                return self.own_loss(outputs, targets)
            assert self.teacher is not None
            with torch.no_grad():
                answers = losses.call(self.teacher, inputs)
        return losses.distillation(outputs, answers)

    @torch.no_grad()
    def judged(self, batches: Sequence[Any]) -> float:
        """Mean loss of the network as the file restores it (settled), in eval mode."""
        self.trainable.eval()
        found = self._mean(batches)
        self.trainable.train(self.mode)
        return found

    @torch.no_grad()
    def floor(self, batches: Sequence[Any]) -> float:
        """The same of the original network: what no file is asked to fall below. 0 for the distance from it."""
        if self.own_loss is None:
            return 0.0
        with undisturbed(self.model):
            return self._mean(batches, self.model)

    def _mean(self, batches: Sequence[Any], network: nn.Module | None = None) -> float:
        total, count = 0.0, 0
        for batch in batches:
            number = losses.count_of(losses.split(batch, False)[0])
            total, count = total + number * float(self.loss(batch, network)), count + number
        return together.mean_over(self.team, total, count)


@dataclass
class Run:
    """One training: where it is, and the best file so far."""

    job: _Job
    team: Team
    batches: Batches
    judges: Sequence[Any]
    total: int
    every: int
    patience: int | None
    pricing: Pricing
    reassign: float | None
    step: int = 0
    epoch: int = 0
    place: int = 0  # batches of the epoch that are done
    epoch_began: Tensor = field(default_factory=torch.get_rng_state)
    best: Packed | None = None
    best_loss: float = math.inf
    first_loss: float = math.inf
    smallest: int = 0
    idle: int = 0  # looks since the best
    recent: float = 0.0  # sum of losses since the last look
    seen: int = 0

    def prepare(self, optimizer: MakeOptimizer | None, scheduler: MakeScheduler | None) -> None:
        """Optimizer, schedule, and the file that training begins with."""
        trainable, packed = self.job.trainable, self.job.packed
        groups = trainable.groups()
        if not groups:
            raise ConfigError("the file holds nothing that can be trained: all its tensors are lossless")
        self.optimizer = optimizer(groups) if optimizer is not None else torch.optim.Adam(groups)
        self.schedule = scheduler(self.optimizer) if scheduler is not None else cosine(self.optimizer, self.total)
        self.weights = sum(matrix.latents.numel() for matrix in trainable.matrices())
        self.pricing.measured(packed.size, trainable.fit())
        self.first_loss = self.job.judged(self.judges)
        # What labels cost the original network as well buys no bits. A file that is to shrink needs a price at once.
        floor = self.job.floor(self.judges) if packed.size <= self.pricing.limit else 0.0
        self.pricing.begin(max(self.first_loss - floor, LEAST * self.first_loss), self.weights)
        self.smallest = packed.size
        if packed.size <= self.pricing.limit:
            self.best, self.best_loss = packed, self.first_loss

    def go(self, checkpoint: Path | None) -> None:
        """Train to the end, from the checkpoint on where there is one."""
        if checkpoint is not None:
            checkpoints.resume(self, checkpoint)
        self.job.trainable.train(self.job.mode)
        while self.step < self.total and not self._tired():
            done = self.place
            self.epoch_began = torch.get_rng_state() if done == 0 else self.epoch_began
            for batch in self._rest_of_epoch(done):
                self._train(batch)
                if self.step % self.every == 0 or self.step == self.total:
                    self._look()
                    if checkpoint is not None:
                        checkpoints.save(self, checkpoint)
                if self.step == self.total or self._tired():
                    return
            if self.place == 0:
                raise ConfigError(f"epoch {self.epoch} has no batches: give a list, a DataLoader or a function of the "
                                  f"epoch, not an iterator that is used up")
            self.epoch, self.place = self.epoch + 1, 0
            if self.reassign is not None:
                for part in self.job.trainable.parts:
                    if isinstance(part, KernelBooks):
                        part.reassign(self.reassign)

    def _rest_of_epoch(self, done: int) -> Iterator[Any]:
        """The batches after the first `done`, with the generator as it was when these were drawn."""
        if done == 0:
            yield from _epoch(self.batches, self.epoch)
            return
        now = torch.get_rng_state()
        torch.set_rng_state(self.epoch_began)
        source = iter(_epoch(self.batches, self.epoch))
        for _ in range(done):
            next(source, None)
        torch.set_rng_state(now)
        yield from source

    def _train(self, batch: Any) -> None:
        trainable = self.job.trainable
        if self.step % max(1, min(REFRESH, self.total // STEERED)) == 0:
            self.pricing.steer(trainable.refresh(), self.step / self.total)
        value = self.job.loss(batch)
        if not bool(torch.isfinite(value)):
            raise ConfigError(f"step {self.step}: the loss is {value.item()}; use a lower learning rate")
        self.optimizer.zero_grad()
        whole = value + self.pricing.price * trainable.rate() if self.pricing.price > 0.0 else value
        whole.backward()  # type: ignore[no-untyped-call]
        together.average_gradients(self.team, trainable.parameters())
        self.optimizer.step()
        self.schedule.step()
        self.recent, self.seen = self.recent + float(value.detach()), self.seen + 1
        self.step, self.place = self.step + 1, self.place + 1

    def _look(self) -> None:
        """Write the file, judge it, keep it if it is the best."""
        if not all(bool(torch.isfinite(p).all()) for p in self.job.trainable.parameters()):
            raise ConfigError(f"step {self.step}: the loss is nan, or parameters are; use a lower learning rate")
        together.equalise(self.team, self.job.trainable.parts.state_dict().values())
        packed = self.job.trainable.repack(self.pricing.limit)
        loss = self.job.judged(self.judges)
        self.pricing.measured(packed.size, self.job.trainable.fit())
        self.job.trainable.relax()
        self.smallest = min(self.smallest, packed.size)
        better = packed.size <= self.pricing.limit and loss < self.best_loss
        self.idle = 0 if better else self.idle + 1
        if better:
            self.best, self.best_loss = packed, loss
        if self.job.progress is not None:
            self.job.progress(f"step {self.step:,} of {self.total:,}: loss {self.recent / max(self.seen, 1):.4f}, held "
                              f"out {loss:.4f}, {packed.size:,} bytes, {self.pricing.price:.1e} a bit"
                              f"{', the best so far' if better else ''}")
        self.recent, self.seen = 0.0, 0

    def _tired(self) -> bool:
        return self.patience is not None and self.best is not None and self.idle >= self.patience

    def result(self) -> Packed:
        """The best file, with a note on what it took."""
        packed = self.job.packed
        if self.best is None:
            raise TargetError(f"no file of at most {self.pricing.limit:,} bytes was found: the smallest had "
                              f"{self.smallest:,}; train for more steps, or give a larger size")
        if self.best is packed:
            note = "fine-tuning found nothing better on the held-out batches"
        else:
            note = (f"fine-tuned: loss on held-out batches {self.first_loss:.4f} to {self.best_loss:.4f}, "
                    f"{packed.size:,} to {self.best.size:,} bytes")
        return replace(self.best, price=packed.price, notes=[*packed.notes, note], decisions=packed.decisions)


def adam(**rates: float) -> MakeOptimizer:
    """Adam with other learning rates for groups of `Trainable.groups`, by name: latents, values, small."""
    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam([{**group, "lr": rates.get(group["name"], group["lr"])} for group in groups])

    return make


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm up for 3% of the steps, then fall to zero."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / max(1.0, 0.03 * steps), 0.5 * (1.0 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))))


def _epoch(batches: Batches, epoch: int) -> Iterable[Any]:
    return batches(epoch) if callable(batches) else batches


def _held_out(batches: Batches, held_out: Iterable[Any] | None) -> tuple[Batches, Sequence[Any]]:
    """What to train on and what to judge by."""
    if held_out is not None:
        judges = list(held_out)
        if not judges:
            raise ConfigError("held_out has no batches")
        return batches, judges
    if not isinstance(batches, list | tuple) or len(batches) < 2:
        raise ConfigError("give held_out=, batches to judge files by: only a list of at least 2 batches can be split")
    count = max(1, len(batches) // 10)
    return batches[:-count], batches[-count:]


def _steps(batches: Batches, steps: int | None, epochs: int | None) -> int:
    if steps is not None and epochs is not None:
        raise ConfigError("give steps= or epochs=, not both")
    if steps is None:
        if not isinstance(batches, Sized):
            raise ConfigError("give steps=: how many batches an epoch has is not known")
        steps = (3 if epochs is None else epochs) * len(batches)
    if steps < 1:
        raise ConfigError(f"{steps} steps: there must be at least 1 batch and 1 epoch")
    return steps
